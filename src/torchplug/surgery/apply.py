"""Plug a model as a file says: the one line that a training script adds."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from torchplug.errors import UsageError, explain
from torchplug.surgery.fingerprint import base_state, hash_tensors
from torchplug.surgery.measure import measure_change
from torchplug.surgery.plan import Plan
from torchplug.surgery.plug import check_host, plug, unplug
from torchplug.surgery.plugfile import read_plug_file
from torchplug.surgery.receipt import leave_receipt
from torchplug.surgery.report import PlugReport
from torchplug.surgery.request import Request, RequestPlan
from torchplug.surgery.strict_json import parse_json
from torchplug.surgery.trace import Arguments, evaluating, read_example

SIDES = (224, 64, 32, 256, 384, 128, 96, 48, 28, 299, 512, 640)
"""Sides of the square images on which a model is tried if nothing is said of its input."""


def apply_plan(
    model: nn.Module, plan: Plan | RequestPlan | str | Path, example: Any = None
) -> PlugReport:
    """Plug a model as a plan says: the one line that a training script needs.

    The modules start as the plan's seed makes them, and the global random generator is not
    touched: a script draws the same weights and the same order of images with and without plugs.
    To get trained weights as well, use :func:`torchplug.load`.

    Args:
        model: the host; it is changed in place, before it is compiled, distributed, copied for
            an average of weights, or handed to an optimizer.
        plan: a plan, a file of its JSON text (``*.json``), or a file that :func:`torchplug.save`
            wrote (any other name), whose weights are left aside. The file that ``torchplug
            compare --command`` hands to a script as ``{plan}`` holds requests (a module and a
            role, path or glob), which are looked up in ``model``; for the baseline it is empty.
            A file beside it, ``plan.applied.json``, then tells the driver that it was applied, and
            at the end of the process whether the plugs were trained.
        example: the shape of a small batch, a tensor, or the arguments of the forward. Without
            it the model is tried on square images of usual sizes, with the channels that its
            first convolution reads.

    Returns:
        What :func:`torchplug.plug` returns, over all plugs of the plan.

    Raises:
        UsageError: if the file cannot be read or is no plan, or no example is given and the
            model runs on none of those that are tried.
        PlugError: if the plan does not fit the model, which is then as it was.

    >>> import tempfile, pathlib, torchplug as tp
    >>> from torchplug.hosts import build_model
    >>> example = (1, 3, 32, 32)
    >>> report = tp.plug(build_model("torchplug:resnet8"), "se", example=example)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     file = pathlib.Path(folder, "plan.json")
    ...     _ = file.write_text(report.plan.to_json())
    ...     tp.apply_plan(build_model("torchplug:resnet8"), file, example).plan == report.plan
    True
    """
    read = _read_plan(plan)
    check_host(model)
    if isinstance(read, RequestPlan) and read.receipt and not isinstance(plan, (Plan, RequestPlan)):
        base = hash_tensors(base_state(model))
        report = _apply(model, read, example)
        leave_receipt(Path(plan), model, report, base)
        return report
    return _apply(model, read, example)


def _apply(model: nn.Module, plan: Plan | RequestPlan, example: Any) -> PlugReport:
    if not (plan.plugs if isinstance(plan, Plan) else plan.requests):
        return _report_nothing(model, plan.seed)
    if example is None:
        example = guess_example(model)
    if isinstance(plan, Plan):
        return plug(model, plan, example=example)
    return _plug_requests(model, plan, read_example(example, model))


def guess_example(model: nn.Module) -> tuple[int, int, int, int]:
    """Return the shape of an image on which ``model`` runs.

    Raises:
        UsageError: if it has no two-dimensional convolution, or runs on no image of :data:`SIDES`.

    >>> from torchplug.hosts import build_model
    >>> guess_example(build_model("torchplug:resnet8", in_channels=1))
    (1, 1, 224, 224)
    """
    convolutions = (module for module in model.modules() if isinstance(module, nn.Conv2d))
    channels = next((module.in_channels for module in convolutions), None)
    for side in SIDES if channels is not None else ():
        shape = (1, int(channels or 0), side, side)
        args, kwargs = read_example(shape, model)
        try:
            with evaluating(model), torch.no_grad():
                model(*args, **kwargs)
        except Exception:
            continue
        return shape
    text = explain(
        "without example=, a model must run on one square image",
        f"{type(model).__name__}, which ran on none of sides {', '.join(map(str, SIDES))}",
        "pass example=, the shape of a batch or the arguments of its forward",
    )
    raise UsageError(text)


def _plug_requests(model: nn.Module, plan: RequestPlan, example: Arguments) -> PlugReport:
    """Plug all requests, or leave the model as it was."""
    before = _run(model, example)
    reports: list[PlugReport] = []
    try:
        for request in plan.requests:
            reports.append(_plug_one(model, request, plan.seed, example))  # noqa: PERF401
    except BaseException:
        steps = [(p.path, p.name) for report in reports for p in report.plan.plugs]
        unplug(model, steps=steps)
        raise
    change = measure_change(_run(model, example), before)
    return _join(reports, change.absolute, change.relative)


def _plug_one(model: nn.Module, request: Request, seed: int, example: Arguments) -> PlugReport:
    return plug(
        model,
        request.module,
        request.at,
        example=example,
        start=request.start,
        stages=request.stages,
        every=request.every,
        seed=seed,
        **request.options,
    )


def _run(model: nn.Module, example: Arguments) -> Any:
    try:
        with evaluating(model), torch.no_grad():
            return model(*example[0], **example[1])
    except Exception as error:
        got = f"{type(error).__name__}: {error}"
        fix = "pass the shape of a batch that the model accepts"
        raise UsageError(explain("the model must run on the example", got, fix)) from error


def _join(reports: Sequence[PlugReport], absolute: float, relative: float) -> PlugReport:
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
        max_difference=absolute,
        max_relative_difference=relative,
        flops=(first.flops[0], last.flops[1]),
        idle_parameters=sum(report.idle_parameters for report in reports),
        skipped=tuple(place for report in reports for place in report.skipped),
        notes=tuple(note for report in reports for note in report.notes),
    )


def _report_nothing(model: nn.Module, seed: int) -> PlugReport:
    return PlugReport(
        plan=Plan(host=type(model).__name__, plugs=(), seed=seed),
        base_tensors=len(model.state_dict()),
        base_parameters=sum(p.numel() for p in model.parameters()),
        module_parameters=0,
        gate_parameters=0,
        max_difference=0.0,
    )


def _read_plan(plan: Plan | RequestPlan | str | Path) -> Plan | RequestPlan:
    if isinstance(plan, (Plan, RequestPlan)):
        return plan
    path = Path(plan)
    if path.suffix != ".json":
        return read_plug_file(path).plan
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        fix = "write it with Plan.to_json"
        raise UsageError(explain(f"the plan {path} must be readable", str(error), fix)) from error
    return RequestPlan.from_json(text) if _holds_requests(text) else Plan.from_json(text)


def _holds_requests(text: str) -> bool:
    try:
        content = parse_json(text)
    except (RecursionError, ValueError):
        return False  # Plan.from_json says what is wrong
    return isinstance(content, dict) and "requests" in content
