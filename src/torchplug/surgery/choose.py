"""Choose the places for a call of plug: those the user asks for, or the paper's own."""

from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

from torch import nn

from torchplug.errors import PlugError, UsageError, explain
from torchplug.surgery.build import Recipe
from torchplug.surgery.plan import Mode
from torchplug.surgery.scene import MERGE, Scene
from torchplug.surgery.select import At, select_sites
from torchplug.surgery.sites import ROLES, Site

_MODES: dict[str, Mode] = {"conv": "replace", "block": "replace", "merge": "merge"}


def mode_of(recipe: Recipe) -> Mode:
    """Return how a module meets its place, by the kind on its card."""
    return "attach" if recipe.card is None else _MODES.get(recipe.card.kind, "attach")


def choose_sites(
    scene: Scene,
    recipe: Recipe,
    mode: Mode,
    at: At | None,
    stages: Sequence[int] | None,
    every: int | None,
    *,
    within: str | None = None,
    where: Callable[[Site], bool] | None = None,
) -> list[Site]:
    """Return the sites that a call asks for; the paper's place where it asks for none.

    Raises:
        UsageError: if a module without a paper has no place.
        PlugError: if nothing matches.
    """
    if at is None:
        at = _find_own_place(recipe, mode)
        if recipe.card is not None:
            stages = recipe.card.place.stages if stages is None else stages
            every = recipe.card.place.every if every is None else every
    if mode == "merge":
        candidates = _select_entrances(scene, recipe, at)
    else:
        candidates = select_sites(scene.model, scene.sites, at, within=within, where=where)
    chosen = [site for site in candidates if stages is None or site.stage in stages]
    chosen = _thin_out(chosen, every or 1)
    _check_carriers(chosen, mode)
    if not chosen:
        counts = Counter(site.stage for site in candidates)
        found = ", ".join(f"{count} in stage {stage}" for stage, count in counts.items())
        text = explain(
            f"{at!r} must match a site after stages and every are applied",
            f"stages={stages}, every={every}, and sites: {found}",
            "widen stages or every, or name places with at=",
        )
        raise PlugError(text)
    return chosen


def _check_carriers(sites: Sequence[Site], mode: Mode) -> None:
    strange = [site.path for site in sites if mode == "replace" and site.kind == "op"]
    if strange:
        rule = "mode='replace' puts a module in the place of another module"
        raise PlugError(explain(rule, f"the operation {strange[0]}", "attach it, or name modules"))


def _find_own_place(recipe: Recipe, mode: Mode) -> At:
    if recipe.card is None:
        text = explain(
            "a module of your own has no paper that says where it goes",
            f"{recipe.module} and at=None",
            "pass at=, a role or a path",
        )
        raise UsageError(text)
    place = recipe.card.place
    if mode == "merge" or (place.role in ROLES and (place.role != "conv3x3" or mode == "replace")):
        return place.role
    text = explain(
        f"plug finds these roles by itself: {', '.join(ROLES)}",
        f"{recipe.module}, whose paper puts it at {place.role!r} ({place.note})",
        f"name the places with at=, or build torchplug.{recipe.card.factory.__name__}",
    )
    raise PlugError(text)


def _select_entrances(scene: Scene, recipe: Recipe, at: Any) -> list[Site]:
    """The modules that receive maps of several sizes; by itself the first, such as the decoder."""
    sites = scene.entrance_sites
    names = dict(scene.model.named_modules())
    is_named = isinstance(at, str) and at in names and at not in sites.outputs
    if is_named or not sites.outputs:
        found = ", ".join(sites.outputs) or "none: this model has no decoder module"
        text = explain(
            f"{recipe.module} refines the maps that one module receives together, of several sizes",
            repr(at) if is_named else type(scene.model).__name__,
            f"name one of these with at=: {found}",
        )
        raise PlugError(text)
    if at == MERGE:
        return list(sites.outputs.values())[:1]
    return select_sites(scene.model, sites, at)


def find_misfit(recipe: Recipe, site: Site, scene: Scene) -> str:
    """Say why the module's own paper leaves out a site that has the right role, or nothing."""
    is_block = recipe.card is not None and recipe.card.kind == "block"
    if is_block and site.path not in scene.residual_blocks:
        return "its paper replaces residual blocks only"
    host = scene.model.get_submodule(site.path)
    if not isinstance(host, nn.Conv2d):
        return ""
    if recipe.module == "mixconv" and (host.groups == 1 or host.groups != host.in_channels):
        return "its paper replaces depthwise convolutions only"
    if recipe.module == "dwconv" and site.path == scene.first_convolution:
        return "its paper keeps the first convolution"
    if recipe.module in {"sk", "splat"} and site.path in scene.stem:
        return "its paper keeps the stem"
    return ""


def _thin_out(sites: list[Site], every: int) -> list[Site]:
    """Keep every n-th site of each stage."""
    position: Counter[int | None] = Counter()
    kept = []
    for site in sites:
        position[site.stage] += 1
        if position[site.stage] % every == 0:
            kept.append(site)
    return kept
