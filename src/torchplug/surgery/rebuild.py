"""Build the modules of a plan that came from a file, without running the model.

The plan is a stranger's: what the catalogue makes is first built without memory, on "meta", so that
its tensors can be compared with those of the file, and only then with memory.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from torchplug.catalog import cards
from torchplug.errors import PlugError, UsageError, explain, nearest
from torchplug.surgery.build import Place, Recipe, build_plug, read_recipe
from torchplug.surgery.fingerprint import join
from torchplug.surgery.layout import CHANNELS_LAST
from torchplug.surgery.op_anchor import find_carrier, weight_prefix
from torchplug.surgery.plan import Plan, PlannedPlug
from torchplug.surgery.scene import Scene
from torchplug.surgery.sites import Site
from torchplug.surgery.verify import Step

Factories = Mapping[str, Callable[..., nn.Module]]

_LARGEST_TEST_MAP = 32


def build_empty(
    plan: Plan, factories: Factories, model: nn.Module, scene: Scene | None = None
) -> dict[str, Tensor]:
    """Return the tensors that the plugs of a plan have, by their names in ``model``.

    Raises:
        UsageError: if a module is neither of the catalogue nor among ``factories``.
        PlugError: if a module cannot be built with its options or changes the shape of its map.
    """
    return {
        join(weight_prefix(step.planned.path, step.planned.name), name): tensor
        for step in build_steps(plan, factories, model, scene, is_empty=True)
        for name, tensor in step.module.state_dict().items()
    }


def build_steps(
    plan: Plan,
    factories: Factories,
    model: nn.Module,
    scene: Scene | None = None,
    *,
    is_empty: bool = False,
) -> list[Step]:
    """Build every module of a plan, on the device and in the type of its place in ``model``.

    ``scene`` is a run of the model, for plugs whose place only a run shows.

    ``is_empty`` builds what the catalogue makes without memory. A factory of the caller's own may
    need real numbers while it builds, so it gets them always.

    Raises:
        UsageError: if a module is neither of the catalogue nor among ``factories``.
        PlugError: if a module cannot be built with its options or changes the shape of its map.
    """
    steps = []
    for planned in plan.plugs:
        recipe = _find_recipe(planned, factories)
        device = "meta" if is_empty and recipe.card is not None else None
        place = _make_place(planned, recipe, model, device, scene, plan)
        try:
            with torch.device(device or "cpu"):
                module = build_plug(recipe, place, planned, plan.seed)
        except Exception as error:
            text = explain(
                f"the plan's {planned.module} at {planned.path} must be buildable",
                f"options {dict(planned.options)} and {type(error).__name__}: {error}",
                "save the file again with the version of torchplug that reads it",
            )
            raise PlugError(text) from error
        steps.append(Step(planned, place.site, module))
    return steps


def _find_recipe(planned: PlannedPlug, factories: Factories) -> Recipe:
    """Return how to build a planned module: from the caller's factories or from the catalogue."""
    what: Any = factories.get(planned.module)
    if what is None and planned.module not in cards():
        fix = nearest(planned.module, [*cards(), *factories])
        if ":" in planned.module:
            fix = f"pass factories={{{planned.module!r}: …}} if you know and trust this module"
        text = explain(
            "a file may name modules of the catalogue, and those that the caller gives",
            repr(planned.module),
            fix,
        )
        raise UsageError(text)
    return read_recipe(what or planned.module, planned.name, planned.options)


def _make_place(
    planned: PlannedPlug,
    recipe: Recipe,
    model: nn.Module,
    device: str | None,
    scene: Scene | None,
    plan: Plan,
) -> Place:
    """What the model has at a planned place: from its layers where these tell, else from a run."""
    host = find_carrier(model, planned.path)
    site = _make_site(planned, recipe, model, device)
    if planned.mode == "attach":
        return Place(site=site, host=host)
    if planned.mode == "replace" and isinstance(host, nn.Conv2d):
        entry, shape = _pass_through(host)
        size = (shape[2], shape[3])
        site = dataclasses.replace(site, shape=shape, channels=shape[1], size=size)
        return Place(site=site, host=host, entry=entry)
    if scene is None:
        text = explain(
            "a plug in the place of a block or at the entrance of a decoder needs a run of the "
            "model to be loaded",
            f"{planned.module} at {planned.path} and no example",
            "pass example=, such as the shape of a small batch",
        )
        raise UsageError(text)
    place = scene.find_place(planned, plan)
    return dataclasses.replace(place, site=dataclasses.replace(place.site, device=site.device))


def _pass_through(conv: nn.Conv2d) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Return the shape of a small map that a convolution takes, and of what it gives."""
    reach = [d * (k - 1) + 1 for d, k in zip(conv.dilation, conv.kernel_size, strict=True)]
    side = max(*reach, _LARGEST_TEST_MAP)
    entry = (1, conv.in_channels, side, side)
    weight = torch.empty_like(conv.weight, device="meta")
    padding = conv.padding if isinstance(conv.padding, str) else tuple(conv.padding)
    y = F.conv2d(
        torch.empty(entry, device="meta", dtype=weight.dtype),
        weight,
        stride=conv.stride,
        padding=padding,
        dilation=conv.dilation,
        groups=conv.groups,
    )
    return entry, tuple(y.shape)


def _make_site(planned: PlannedPlug, recipe: Recipe, model: nn.Module, device: str | None) -> Site:
    """The site of a planned plug, from the plan and the module that carries it."""
    is_last = planned.layout == CHANNELS_LAST
    height, width = planned.shape[1:3] if is_last else planned.shape[2:]
    if not recipe.takes_site and device is None:
        # a module of channels is tested as well on a small map, which a file cannot make huge
        height, width = min(height, _LARGEST_TEST_MAP), min(width, _LARGEST_TEST_MAP)
    like, channels = _find_float(find_carrier(model, planned.path), model), planned.channels
    return Site(
        role=planned.role,
        path=planned.path,
        anchor=planned.path,
        stage=planned.stage,
        shape=(1, height, width, channels) if is_last else (1, channels, height, width),
        channels=channels,
        size=(height, width),
        stride=1,
        runs=1,
        layout=planned.layout,
        device=torch.device(device) if device else like.device,
        dtype=like.dtype,
    )


def _find_float(module: nn.Module, model: nn.Module) -> Tensor:
    """A tensor of the place's device and type: of the module itself, or else of the model."""
    for owner in (module, model):
        for tensor in (*owner.parameters(), *owner.buffers()):
            if tensor.is_floating_point():
                return tensor
    return torch.empty(0)
