"""Build and plug every arm once before anything is written, and measure what it costs."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from torchplug.analysis import count_flops, count_parameters
from torchplug.comparison.arms import Study, input_channels, prepare_model
from torchplug.comparison.seeds import derive_seed
from torchplug.comparison.spec import BASELINE, Variant
from torchplug.comparison.trial import check_model
from torchplug.errors import UsageError, explain
from torchplug.surgery import Plan
from torchplug.surgery.plan import PlannedPlug

Cost = dict[str, Any]


@dataclass(frozen=True)
class Rehearsal:
    """What is known of the arms before they are trained."""

    plans: Mapping[str, Plan]
    costs: Mapping[str, Cost]


def rehearse(
    study: Study, arms: Sequence[Variant], base_parameters: int | None = None
) -> Rehearsal:
    """Build and plug every arm once, as its first trial will.

    Raises:
        UsageError: if the model does not fit the data, or its maker does not repeat.
        PlugError: if a variant cannot be plugged.
    """
    plans: dict[str, Plan] = {}
    costs: dict[str, Cost] = {}
    seed = study.comparison.seeds[0]
    weights = ""
    models: list[nn.Module] = []
    for variant in arms:
        arm = prepare_model(study, variant, seed)
        if any(arm.model is model for model in models):
            _check_weights(study, weights, "")
        models = [*models, arm.model][:1]
        if variant.name == BASELINE:
            check_model(study, arm.model)
            base_parameters = count_parameters(arm.model)
        if variant.control is None:
            weights = weights or arm.base_weights
            _check_weights(study, weights, arm.base_weights)
        planned = tuple(plug for report in arm.reports for plug in report.plan.plugs)
        costs[variant.name] = _measure(study, arm.model, planned, base_parameters or 0)
        plan = Plan(host=type(arm.model).__name__, plugs=planned, seed=derive_seed("modules", seed))
        plan.to_json()  # options that no file can hold are refused before a file exists
        plans[variant.name] = plan
    return Rehearsal(plans, costs)


def _check_weights(study: Study, first: str, found: str) -> None:
    if found != first:
        text = explain(
            "the maker of a model must make a new, equal one for the same random numbers",
            f"{study.comparison.model}, whose second model differs",
            "return a new model each time, drawn from torch's, numpy's or Python's generator",
        )
        raise UsageError(text)


def _measure(study: Study, model: nn.Module, planned: Sequence[PlannedPlug], base: int) -> Cost:
    channels = input_channels(model) or study.data.channels
    return {
        "places": describe_places(planned),
        "parameters": count_parameters(model),
        "added": count_parameters(model) - base,
        "flops": count_flops(model, (1, channels, *study.data.shape[2:])),
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
