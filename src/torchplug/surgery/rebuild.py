"""Build the modules of a plan that came from a file, without running the model.

The plan is a stranger's: each module is first built without memory, so that its tensors can be
compared with those of the file, and only then with it.
"""

from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

from torchplug.catalog import cards
from torchplug.errors import PlugError, UsageError, explain, nearest
from torchplug.nn import IdentityStart
from torchplug.surgery.attach import HOLDER
from torchplug.surgery.build import Recipe, build_plug, read_recipe
from torchplug.surgery.fingerprint import join
from torchplug.surgery.plan import Plan, PlannedPlug
from torchplug.surgery.sites import Site
from torchplug.surgery.verify import Step

_LARGEST_TEST_MAP = 32


def build_steps(
    plan: Plan, factories: Mapping[str, Callable[..., nn.Module]], model: nn.Module
) -> list[Step]:
    """Build every module of a plan, on the device and in the type of its place in ``model``.

    Raises:
        UsageError: if a module is neither of the catalogue nor among ``factories``.
        PlugError: if a module cannot be built or changes the shape of its map.
    """
    steps = []
    for planned in plan.plugs:
        recipe = _find_recipe(planned, factories)
        site = _make_site(planned, recipe, model)
        try:
            module = build_plug(recipe, site, planned, plan.seed)
        except PlugError:
            raise
        except Exception as error:
            raise PlugError(_explain_failure(planned, error)) from error
        steps.append(Step(planned, site, module))
    return steps


def build_empty(
    plan: Plan, factories: Mapping[str, Callable[..., nn.Module]], model: nn.Module
) -> dict[str, Tensor]:
    """Return the tensors that the plugs of a plan have, by their names in the model.

    What the catalogue makes is built on "meta": a wrong width costs no memory.

    Raises:
        UsageError: if a module is neither of the catalogue nor among ``factories``.
        PlugError: if a module cannot be built with its options.
    """
    needed: dict[str, Tensor] = {}
    for planned in plan.plugs:
        recipe = _find_recipe(planned, factories)
        site = _make_site(planned, recipe, model)
        # a factory of the caller's own may need real numbers while it builds
        device = torch.device("cpu" if recipe.card is None else "meta")
        try:
            with torch.random.fork_rng(devices=[]), device:
                module = recipe.build(site, planned)
                if planned.start == "identity" and not getattr(module, "identity_at_start", False):
                    module = IdentityStart(module)
        except Exception as error:
            raise PlugError(_explain_failure(planned, error)) from error
        for name, tensor in module.to(site.dtype).state_dict().items():
            needed[join(planned.path, HOLDER, planned.name, name)] = tensor
    return needed


def _explain_failure(planned: PlannedPlug, error: Exception) -> str:
    return explain(
        f"the plan's {planned.module} at {planned.path} must be buildable",
        f"options {dict(planned.options)} and {type(error).__name__}: {error}",
        "save the file again with the version of torchplug that reads it",
    )


def _find_recipe(planned: PlannedPlug, factories: Mapping[str, Callable[..., nn.Module]]) -> Recipe:
    """Return how to build a planned module: from the caller's factories or from the catalogue."""
    what = factories.get(planned.module)
    if what is None and planned.module not in cards():
        known = [*cards(), *factories]
        text = explain(
            "a file may name modules of the catalogue, and those that the caller gives",
            repr(planned.module),
            f"pass factories={{{planned.module!r}: …}} if you know and trust this module"
            if ":" in planned.module
            else nearest(planned.module, known),
        )
        raise UsageError(text)
    return read_recipe(what or planned.module, planned.name, planned.options)


def _make_site(planned: PlannedPlug, recipe: Recipe, model: nn.Module) -> Site:
    """The site of a planned plug, from the plan and the module that carries it."""
    height, width = planned.shape[2:]
    if not recipe.takes_site:  # a small map tests a module of the catalogue as well as a large one
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
        device=like.device,
        dtype=like.dtype,
    )


def _find_float(module: nn.Module, model: nn.Module) -> Tensor:
    """A tensor of the place's device and type: of the module itself, or else of the model."""
    for owner in (module, model):
        for tensor in (*owner.parameters(), *owner.buffers()):
            if tensor.is_floating_point():
                return tensor
    return torch.empty(0)
