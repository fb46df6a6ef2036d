"""Do to a model what a plan of requests says: plug, plug a placebo, or widen instead."""

import copy
import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from torchplug.analysis import count_flops, count_parameters
from torchplug.controls import cut_plugs, match_parameters, widen
from torchplug.errors import UsageError, explain
from torchplug.programs.own_modules import OwnModules, find_module
from torchplug.programs.request_plan import ProgramControl, RequestPlan
from torchplug.surgery import Plan, PlugReport, plug, unplug
from torchplug.surgery.measure import measure_change
from torchplug.surgery.trace import Arguments, evaluating


@dataclass(frozen=True)
class Done:
    """What was done to a model."""

    report: PlugReport
    control: ProgramControl | None = None
    details: Mapping[str, Any] = field(default_factory=dict)
    """Of a control: what was cut or widened, in words as ``told``, and as numbers."""

    @property
    def is_widened(self) -> bool:
        """Whether the model got channels and no plugs."""
        return self.control == "parameters"


def perform(
    model: nn.Module, plan: RequestPlan, example: Arguments, modules: OwnModules | None
) -> Done:
    """Do what a plan says, or leave the model as it was.

    Raises:
        PlugError: if a request fits nowhere, or what is plugged has no honest placebo.
        UsageError: if a module of the script's own is not handed in, or nothing can be widened.
    """
    before = _run(model, example)
    if plan.control == "parameters":
        return _widen(model, plan, example, modules, before)
    reports = _plug_all(model, plan, example, modules)
    details = {}
    if plan.control == "placebo":
        try:
            cut = cut_plugs(model)
        except BaseException:
            _take_back(model, reports)
            raise
        details = {"told": "; ".join(f"{name}: {what}" for name, what in cut.items())}
    change = measure_change(_run(model, example), before)
    report = dataclasses.replace(
        _join(reports), max_difference=change.absolute, max_relative_difference=change.relative
    )
    return Done(_note(report, details), plan.control, details)


def _widen(
    model: nn.Module,
    plan: RequestPlan,
    example: Arguments,
    modules: OwnModules | None,
    before: Any,
) -> Done:
    """Give the model the parameters that a plugged copy of it has.

    No layer reads the new channels at first, whether the script starts from scratch or from trained
    weights: the control starts as the base does, as plugs do.
    """
    plugged = copy.deepcopy(model)
    reports = _plug_all(plugged, plan, example, modules)
    match = match_parameters(model, plugged, reports, example)
    flops = count_flops(model, example)
    generator = torch.Generator().manual_seed(plan.seed)
    widen(model, match.widths, example=example, generator=generator, silent=True)
    change = measure_change(_run(model, example), before)
    details = {**dataclasses.asdict(match), "told": match.told}
    report = dataclasses.replace(
        report_nothing(model, plan.seed),
        max_difference=change.absolute,
        max_relative_difference=change.relative,
        flops=(flops, count_flops(model, example)),
    )
    return Done(_note(report, details), plan.control, details)


def _note(report: PlugReport, details: Mapping[str, Any]) -> PlugReport:
    told = (str(details["told"]),) if details else ()
    return dataclasses.replace(report, notes=(*report.notes, *told))


def _plug_all(
    model: nn.Module, plan: RequestPlan, example: Arguments, modules: OwnModules | None
) -> list[PlugReport]:
    """Plug all requests, or leave the model as it was."""
    found = [find_module(request, plan.sources, modules) for request in plan.requests]
    reports: list[PlugReport] = []
    try:
        for request, module in zip(plan.requests, found, strict=True):
            report = plug(
                model,
                module,
                request.at,
                example=example,
                start=request.start,
                stages=request.stages,
                every=request.every,
                seed=plan.seed,
                **request.options,
            )
            reports.append(report)
    except BaseException:
        _take_back(model, reports)
        raise
    return reports


def _take_back(model: nn.Module, reports: Sequence[PlugReport]) -> None:
    unplug(model, steps=[(p.path, p.name) for report in reports for p in report.plan.plugs])


def _run(model: nn.Module, example: Arguments) -> Any:
    try:
        with evaluating(model), torch.no_grad():
            return model(*example[0], **example[1])
    except Exception as error:
        got = f"{type(error).__name__}: {error}"
        fix = "pass the shape of a batch that the model accepts"
        raise UsageError(explain("the model must run on the example", got, fix)) from error


def _join(reports: Sequence[PlugReport]) -> PlugReport:
    first, last = reports[0], reports[-1]
    plugs = tuple(planned for report in reports for planned in report.plan.plugs)
    examples = (report.plan.example for report in reports)
    example = next((example for example in examples if example is not None), None)
    return PlugReport(
        plan=dataclasses.replace(first.plan, plugs=plugs, example=example),
        base_tensors=first.base_tensors,
        base_parameters=first.base_parameters,
        module_parameters=sum(report.module_parameters for report in reports),
        gate_parameters=sum(report.gate_parameters for report in reports),
        max_difference=0.0,
        flops=(first.flops[0], last.flops[1]),
        idle_parameters=sum(report.idle_parameters for report in reports),
        skipped=tuple(place for report in reports for place in report.skipped),
        notes=tuple(note for report in reports for note in report.notes),
    )


def report_nothing(model: nn.Module, seed: int) -> PlugReport:
    """Return the report of a model that has no plugs."""
    return PlugReport(
        plan=Plan(host=type(model).__name__, plugs=(), seed=seed),
        base_tensors=len(model.state_dict()),
        base_parameters=count_parameters(model),
        module_parameters=0,
        gate_parameters=0,
        max_difference=0.0,
    )
