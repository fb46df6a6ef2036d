"""Build and plug every arm once before anything is written, and measure what it costs."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torchplug.analysis import count_parameters, measure_costs
from torchplug.comparison.arms import Arm, Study, make_example, prepare_model
from torchplug.comparison.seeds import derive_seed
from torchplug.comparison.spec import BASELINE, Variant
from torchplug.comparison.trial import check_model
from torchplug.errors import UsageError, explain
from torchplug.surgery import Plan
from torchplug.surgery.plan import PlannedPlug

Cost = dict[str, Any]
_GROUP = 4
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
    seed = study.comparison.seeds[0]
    base = prepare_model(study, Variant(name=BASELINE), seed)
    check_model(study, base.model)
    plans: dict[str, Plan] = {}
    costs: dict[str, Cost] = {}
    group: dict[str, Arm] = {}
    for variant in arms:
        arm = base if variant.name == BASELINE else prepare_model(study, variant, seed)
        if variant.name != BASELINE:
            _check_maker(study, variant, arm, base)
        group[variant.name] = arm
        plans[variant.name] = _make_plan(arm, seed)
        if len(group) == _GROUP:
            costs |= _measure(study, base, group, known)
            group = {}
    return Rehearsal(plans, costs | _measure(study, base, group, known))


def _check_maker(study: Study, variant: Variant, arm: Arm, base: Arm) -> None:
    """Refuse a maker that makes one model for all, or another one each time."""
    differs = variant.control != "again" and arm.base_weights != base.base_weights
    if arm.model is base.model or differs:
        text = explain(
            "the maker of a model must make a new, equal one for the same random numbers",
            f"{study.comparison.model}, whose second model differs",
            "return a new model each time, drawn from torch's, numpy's or Python's generator",
        )
        raise UsageError(text)


def _make_plan(arm: Arm, seed: int) -> Plan:
    planned = tuple(plug for report in arm.reports for plug in report.plan.plugs)
    plan = Plan(host=type(arm.model).__name__, plugs=planned, seed=derive_seed("modules", seed))
    plan.to_json()  # options that no file can hold are refused before a file exists
    return plan


def _measure(
    study: Study, base: Arm, group: Mapping[str, Arm], known: Mapping[str, Cost]
) -> dict[str, Cost]:
    """Measure a few arms beside the baseline: not all models are held at once."""
    new = {name: arm.model for name, arm in group.items() if name not in known}
    found = {name: known[name] for name in group if name in known}
    if not new:
        return found
    device = study.comparison.device  # where the trials run
    models = {name: model.to(device) for name, model in {BASELINE: base.model, **new}.items()}
    measured = measure_costs(models, make_example(base.model, study.data))
    parameters = count_parameters(base.model)
    for name in new:
        planned = [plug for report in group[name].reports for plug in report.plan.plugs]
        found[name] = {
            "places": describe_places(planned),
            "added": count_parameters(new[name]) - parameters,
            **measured[name],
        }
    return found


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
    if arm.control == "parameters":
        return "-"
    return " + ".join(f"{plug.module} at {plug.at}" for plug in arm.plugs) or "-"
