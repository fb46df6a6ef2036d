"""Plug modules into a model, as one transaction: all of it holds, or the model is as before."""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import nn

from torchplug.errors import PlugError, UsageError, explain, nearest
from torchplug.surgery.attach import find_plugs
from torchplug.surgery.build import Recipe, build_plug, read_recipe
from torchplug.surgery.find import sites_in
from torchplug.surgery.op_anchor import attach_at, detach_at
from torchplug.surgery.plan import Plan, PlannedPlug, Start
from torchplug.surgery.report import PlugReport, count_gates
from torchplug.surgery.select import At, select_sites
from torchplug.surgery.sites import NAMED, ROLES, Site, Sites
from torchplug.surgery.trace import read_example, record
from torchplug.surgery.verify import Base, Step, verify


def plug(
    model: nn.Module,
    what: str | type[nn.Module] | Callable[[Site], nn.Module] | Plan,
    at: At | None = None,
    *,
    example: Any,
    start: Start = "identity",
    stages: Sequence[int] | None = None,
    every: int | None = None,
    within: str | None = None,
    where: Callable[[Site], bool] | None = None,
    seed: int = 0,
    name: str | None = None,
    **options: Any,
) -> PlugReport:
    """Put modules into ``model``, in place, without renaming or changing any of its weights.

    The model runs a few times on ``example`` in evaluation mode: to find the places, to prove
    that the output is unchanged, that each plug runs, and that a backward pass works. If
    anything fails, the model is as it was.

    Args:
        model: the host. It must not be compiled, scripted or wrapped for distributed training
            yet: plug the inner module first.
        what: a key of the catalogue (``"cbam"``), a module class whose first argument is the
            number of channels, a factory ``(site) -> Module``, or a :class:`Plan` to repeat.
        at: where: a role (``"bottleneck"``, ``"stage"``, …: :func:`torchplug.sites` shows them),
            the id of a site, a module path, a glob (``"layer?.*.bn2"``; ``**`` crosses dots),
            ``"re:…"``, a module class, a predicate ``(path, module) -> bool`` or
            ``(site) -> bool``, or a list of these. ``None`` is the place in the module's paper.
        example: the shape of a small batch, a tensor, a tuple of arguments of the forward, a
            dict of keyword arguments, or a pair ``(args, kwargs)``.
        start: ``"identity"`` makes the plugged model compute what the base computed, by a
            learned gate of zero where the module itself does not start so; ``"paper"`` leaves
            the module as its authors start it.
        stages: keep only the sites in these stages, counted from 1 after the stem.
        every: keep every n-th site of each stage: ``2`` keeps the second, fourth, …
        within: keep only the sites below this path or glob: ``"backbone"``.
        where: keep only the sites for which this is true: ``lambda site: site.stride == 8``.
        seed: of the modules' own initial weights; the global generator is not touched.
        name: of the plug, in weight names and for :func:`unplug`; the key if not given.
        **options: the module's own options, such as ``reduction=8``.

    Returns:
        A report that prints what happened; its ``plan`` repeats it on another instance.

    Raises:
        UsageError: if ``what`` or an option is unknown, or ``example`` cannot be read.
        PlugError: if nothing matches, a module does not fit, or the proof fails.

    >>> import torchplug as tp
    >>> from torchplug.hosts import build_model
    >>> model = build_model("torchplug:resnet8", num_classes=10, in_channels=1)
    >>> report = tp.plug(model, "se", example=(1, 1, 8, 8))
    >>> report.max_difference, report.paths[0]
    (0.0, 'layer1.bn2')
    """
    _check_host(model)
    arguments = read_example(example, model)
    trace = record(model, arguments)
    sites = sites_in(model, trace)
    if isinstance(what, Plan):
        limits = {"stages": stages, "every": every, "within": within, "where": where}
        _check_nothing_else(at=at, **limits, name=name, **options)
        plan = what
        recipes = [read_recipe(p.module, p.name, p.options) for p in plan.plugs]
    else:
        recipe = read_recipe(what, name, options)
        select = partial(select_sites, model, sites, within=within, where=where)
        chosen = _choose(select, recipe, at, stages, every)
        plan = _make_plan(model, recipe, chosen, options, start, seed)
        recipes = [recipe] * len(chosen)
    steps = _build(model, plan, recipes, sites)
    base = Base(model)
    try:
        for step in steps:
            attach_at(model, step.planned.path, step.planned.name, step.module)
        difference = verify(model, steps, arguments, trace.output, base)
    except BaseException:
        unplug(model, steps=[(step.planned.path, step.planned.name) for step in steps])
        raise
    modules = [step.module for step in steps]
    gates = count_gates(modules)
    added = sum(p.numel() for module in modules for p in module.parameters())
    return PlugReport(
        plan=plan,
        base_tensors=len(base.state),
        base_parameters=base.parameters,
        module_parameters=added - gates,
        gate_parameters=gates,
        max_difference=difference,
    )


def unplug(
    model: nn.Module,
    name: str | None = None,
    *,
    steps: Sequence[tuple[str, str]] | None = None,
) -> int:
    """Take plugs out again: classes, weight names and output are those of the base.

    Args:
        model: the plugged host; it is changed in place.
        name: take out the plugs of this name only; ``None`` takes out all.
        steps: take out these (path, name) pairs only, where they are attached.

    Returns:
        How many plugs were taken out.

    Raises:
        PlugError: if no plug has this name.

    >>> import torchplug as tp
    >>> from torchplug.hosts import build_model
    >>> model = build_model("torchplug:resnet8", num_classes=10, in_channels=1)
    >>> _ = tp.plug(model, "se", example=(1, 1, 8, 8))
    >>> tp.unplug(model)
    3
    """
    plugs = [(path, plug_name) for path, plug_name, _ in find_plugs(model)]
    wanted = [plug for plug in plugs if name in {None, plug[1]}]
    if steps is not None:
        wanted = [plug for plug in wanted if plug in set(steps)]
    elif name is not None and not wanted:
        names = sorted({plug_name for _, plug_name in plugs})
        fix = nearest(name, names) if names else "the model has no plugs"
        raise PlugError(explain("unplug takes the name of a plug", repr(name), fix))
    for path, plug_name in wanted:
        detach_at(model, path, plug_name)
    return len(wanted)


_WRAPPERS = {"DataParallel", "DistributedDataParallel", "FullyShardedDataParallel"} | {
    "OptimizedModule"
}


def _check_host(model: Any) -> None:
    if not isinstance(model, nn.Module):
        fix = "pass the model itself; torchplug.hosts.build_model makes one from a name"
        raise UsageError(explain("a host is an nn.Module", type(model).__name__, fix))
    if isinstance(model, torch.jit.ScriptModule):
        fix = "plug the Python model, then script or export it"
        raise PlugError(explain("a scripted model cannot be changed", type(model).__name__, fix))
    if type(model).__name__ in _WRAPPERS:
        fix = "plug the inner module first, then compile or distribute it"
        raise PlugError(explain("a host must not be wrapped yet", type(model).__name__, fix))


def _check_nothing_else(**given: Any) -> None:
    extra = [name for name, value in given.items() if value is not None]
    if extra:
        text = explain(
            "a plan already says what goes where",
            ", ".join(extra),
            "pass the plan and example alone, or edit the plan",
        )
        raise UsageError(text)


def _choose(
    select: Callable[[At], list[Site]],
    recipe: Recipe,
    at: At | None,
    stages: Sequence[int] | None,
    every: int | None,
) -> list[Site]:
    """Return the sites that the call asks for; the paper's place where it asks for none."""
    if at is None:
        if recipe.card is None:
            text = explain(
                "a module of your own has no paper that says where it goes",
                f"{recipe.module} and at=None",
                "pass at=, a role or a path",
            )
            raise UsageError(text)
        place = recipe.card.place
        if place.role not in ROLES or place.role == "conv3x3":  # in its place, not after it
            text = explain(
                f"plug finds these roles by itself: {', '.join(ROLES)}",
                f"{recipe.module}, whose paper puts it at {place.role!r} ({place.note})",
                f"name the places with at=, or build torchplug.{recipe.card.factory.__name__}",
            )
            raise PlugError(text)
        at = place.role
        stages = place.stages if stages is None else stages
        every = place.every if every is None else every
    candidates = select(at)
    chosen = [site for site in candidates if stages is None or site.stage in stages]
    chosen = _thin_out(chosen, every or 1)
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


def _thin_out(sites: list[Site], every: int) -> list[Site]:
    """Keep every n-th site of each stage."""
    if every < 1:
        raise UsageError(explain("every counts from 1", f"every={every}", "pass 1 for all sites"))
    position: Counter[int | None] = Counter()
    kept = []
    for site in sites:
        position[site.stage] += 1
        if position[site.stage] % every == 0:
            kept.append(site)
    return kept


def _make_plan(
    model: nn.Module,
    recipe: Recipe,
    chosen: list[Site],
    options: Mapping[str, Any],
    start: Start,
    seed: int,
) -> Plan:
    if start not in {"identity", "paper"}:
        fix = "choose 'identity' or 'paper'"
        raise UsageError(explain("start is one of two words", repr(start), fix))
    plugs = tuple(
        PlannedPlug(
            path=site.anchor,
            name=recipe.name,
            module=recipe.module,
            shape=site.shape,
            channels=site.channels,
            options=dict(options),
            start=start,
            role=site.role,
            stage=site.stage,
        )
        for site in chosen
    )
    return Plan(host=type(model).__name__, plugs=plugs, seed=seed)


def _build(model: nn.Module, plan: Plan, recipes: list[Recipe], sites: Sites) -> list[Step]:
    """Build every module before anything is attached."""
    taken = {(path, name) for path, name, _ in find_plugs(model)}
    steps = []
    for planned, recipe in zip(plan.plugs, recipes, strict=True):
        site = _find_site(planned, sites, plan)
        _check_site(site, planned, taken)
        taken.add((planned.path, planned.name))
        steps.append(Step(planned, site, build_plug(recipe, site, planned, plan.seed)))
    return steps


def _find_site(planned: PlannedPlug, sites: Sites, plan: Plan) -> Site:
    """Return the site that a plan means, if this model has it."""
    candidates = [sites.outputs[planned.path]] if planned.path in sites.outputs else []
    if planned.role != NAMED:
        candidates = [s for s in sites.with_role(planned.role) if s.anchor == planned.path]
    for site in candidates:
        if site.channels == planned.channels:
            return site
    kind = "map" if planned.role == NAMED else planned.role
    text = explain(
        f"the plan needs a {kind} of {planned.channels} channels at {planned.path}",
        f"{candidates[0].channels} channels" if candidates else "a model without one there",
        f"use it on a {plan.host} like the one it was made for, or make a new plan",
    )
    raise PlugError(text)


def _check_site(site: Site, planned: PlannedPlug, taken: set[tuple[str, str]]) -> None:
    if site.layout != "NCHW":
        text = explain(
            "a plug works on maps (N, C, H, W)",
            f"{site.path}, whose map is {site.layout}",
            "choose a place where the channels come second",
        )
        raise PlugError(text)
    if site.runs != 1:
        text = explain(
            "a plugged module must run once in a forward",
            f"{site.path}, which runs {site.runs} times",
            "choose the module around it, such as its block",
        )
        raise PlugError(text)
    if (planned.path, planned.name) in taken:
        text = explain(
            "each plug at one place needs a name of its own",
            f"a second {planned.name!r} at {planned.path}",
            "pass name=, or take the first one out with unplug",
        )
        raise PlugError(text)
