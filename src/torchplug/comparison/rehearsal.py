"""Build and plug every arm once before anything is written, and measure what it costs."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from torchplug.analysis import count_flops, count_parameters
from torchplug.comparison.arms import Study, make_example, prepare_model
from torchplug.comparison.seeds import derive_seed
from torchplug.comparison.spec import BASELINE, Control, Variant
from torchplug.comparison.trial import check_model
from torchplug.errors import UsageError, explain
from torchplug.surgery import Plan
from torchplug.surgery.plan import PlannedPlug

Cost = dict[str, Any]
_NOTHING: Cost = {"parameters": 0, "added": 0, "flops": 0, "memory": None, "latency": None}


@dataclass(frozen=True)
class Rehearsal:
    """What is known of the arms before they are trained."""

    plans: Mapping[str, Plan]
    costs: Mapping[str, Cost]


def rehearse(study: Study, arms: Sequence[Variant], known: Mapping[str, Cost]) -> Rehearsal:
    """Build and plug every arm once, as its first trial will.

    Args:
        study: what is compared.
        arms: all of them, or controls that come later.
        known: costs that were measured before; they are not measured again.

    Raises:
        UsageError: if the model does not fit the data, or its maker does not repeat.
        PlugError: if a variant cannot be plugged.
    """
    if study.comparison.command:
        return Rehearsal({}, {arm.name: {"places": _list_plugs(arm), **_NOTHING} for arm in arms})
    plans: dict[str, Plan] = {}
    costs: dict[str, Cost] = {}
    seed = study.comparison.seeds[0]
    first: nn.Module | None = None
    weights = ""
    base = known.get(BASELINE, {}).get("parameters", 0)
    for variant in arms:
        arm = prepare_model(study, variant, seed)
        if arm.model is first or (weights and _shares_base(variant, arm.base_weights, weights)):
            raise UsageError(_explain_second(study.comparison.model))
        if variant.name == BASELINE:
            first, weights, base = arm.model, arm.base_weights, count_parameters(arm.model)
            check_model(study, arm.model)
        planned = tuple(plug for report in arm.reports for plug in report.plan.plugs)
        costs[variant.name] = known.get(variant.name) or _measure(study, arm.model, planned, base)
        plan = Plan(host=type(arm.model).__name__, plugs=planned, seed=derive_seed("modules", seed))
        plan.to_json()  # options that no file can hold are refused before a file exists
        plans[variant.name] = plan
    return Rehearsal(plans, costs)


def find_controls(
    study: Study, variants: Sequence[Variant], kinds: Sequence[Control]
) -> tuple[Variant, ...]:
    """Return the controls of these kinds for these variants."""
    kinds = tuple(kind for kind in kinds if kind != "again")  # it is there in any case
    if not kinds or not variants or study.comparison.command:
        return ()
    try:
        from torchplug.comparison.controls import resolve_controls
    except ImportError:
        return ()
    return tuple(resolve_controls(study, variants, kinds))


def _shares_base(variant: Variant, found: str, first: str) -> bool:
    return variant.control is None and found != first


def _explain_second(model: str) -> str:
    return explain(
        "the maker of a model must make a new, equal one for the same random numbers",
        f"{model}, whose second model differs",
        "return a new model each time, drawn from torch's, numpy's or Python's generator",
    )


def _measure(study: Study, model: nn.Module, planned: Sequence[PlannedPlug], base: int) -> Cost:
    return {
        "places": describe_places(planned),
        "parameters": count_parameters(model),
        "added": count_parameters(model) - base,
        "flops": count_flops(model, make_example(model, study.data)),
    }


def describe_places(planned: Sequence[PlannedPlug]) -> str:
    """Return where an arm is plugged, such as ``3 x bottleneck``."""
    if not planned:
        return "-"
    roles = [plug.role for plug in planned]
    names = [plug.path for plug in planned]
    if set(roles) == {"named"}:
        return names[0] if len(names) == 1 else f"{len(names)} x named"
    return ", ".join(f"{roles.count(role)} x {role}" for role in dict.fromkeys(roles))


def _list_plugs(arm: Variant) -> str:
    """Return what a program is told to plug: where exactly, it finds itself."""
    return " + ".join(f"{plug.module} at {plug.at}" for plug in arm.plugs) or "-"
