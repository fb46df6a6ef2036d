"""Build the modules of a plan that came from a file, without running the model.

The plan is a stranger's: what the catalogue makes is first built without memory, on "meta", so that
its tensors can be compared with those of the file, and only then with memory.
"""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from torchplug.catalog import cards
from torchplug.errors import PlugError, UsageError, explain, nearest
from torchplug.surgery.attach import HOLDER
from torchplug.surgery.build import Recipe, build_plug, read_recipe
from torchplug.surgery.fingerprint import join
from torchplug.surgery.plan import Plan, PlannedPlug
from torchplug.surgery.sites import Site
from torchplug.surgery.verify import Step

Factories = Mapping[str, Callable[..., nn.Module]]

_LARGEST_TEST_MAP = 32


def build_empty(plan: Plan, factories: Factories, model: nn.Module) -> dict[str, Tensor]:
    """Return the tensors that the plugs of a plan have, by their names in ``model``.

    Raises:
        UsageError: if a module is neither of the catalogue nor among ``factories``.
        PlugError: if a module cannot be built with its options or changes the shape of its map.
    """
    return {
        join(step.planned.path, HOLDER, step.planned.name, name): tensor
        for step in build_steps(plan, factories, model, is_empty=True)
        for name, tensor in step.module.state_dict().items()
    }


def build_steps(
    plan: Plan, factories: Factories, model: nn.Module, *, is_empty: bool = False
) -> list[Step]:
    """Build every module of a plan, on the device and in the type of its place in ``model``.

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
        site = _make_site(planned, recipe, model, device)
        try:
            with torch.device(device or "cpu"):
                module = build_plug(recipe, site, planned, plan.seed)
        except Exception as error:
            text = explain(
                f"the plan's {planned.module} at {planned.path} must be buildable",
                f"options {dict(planned.options)} and {type(error).__name__}: {error}",
                "save the file again with the version of torchplug that reads it",
            )
            raise PlugError(text) from error
        steps.append(Step(planned, site, module))
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


def _make_site(planned: PlannedPlug, recipe: Recipe, model: nn.Module, device: str | None) -> Site:
    """The site of a planned plug, from the plan and the module that carries it."""
    height, width = planned.shape[2:]
    if not recipe.takes_site and device is None:
        # a module of channels is tested as well on a small map, which a file cannot make huge
        height, width = min(height, _LARGEST_TEST_MAP), min(width, _LARGEST_TEST_MAP)
    like = _find_float(model.get_submodule(planned.path), model)
    return Site(
        role=planned.role,
        path=planned.path,
        anchor=planned.path,
        stage=planned.stage,
        shape=(1, planned.channels, height, width),
        channels=planned.channels,
        size=(height, width),
        stride=1,
        runs=1,
        layout="NCHW",
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
