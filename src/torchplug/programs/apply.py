"""Plug a model as a file says: the one line that a training script adds."""

import contextlib
import random
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import nn

from torchplug.errors import TorchplugError, UsageError, explain
from torchplug.programs.own_modules import OwnModules
from torchplug.programs.perform import Done, perform, report_nothing
from torchplug.programs.receipt import leave_receipt, leave_refusal
from torchplug.programs.request_plan import RequestPlan
from torchplug.surgery import Plan, PlugReport, plug
from torchplug.surgery.fingerprint import base_state, hash_tensors
from torchplug.surgery.plug import check_host
from torchplug.surgery.plugfile import read_plug_file
from torchplug.surgery.strict_json import parse_json
from torchplug.surgery.trace import evaluating, read_example

SIDES = (224, 64, 32, 256, 384, 128, 96, 48, 28, 299, 512, 640)
"""Sides of the square images on which a model is tried if nothing is said of its input."""


def apply_plan(
    model: nn.Module,
    plan: Plan | RequestPlan | str | Path,
    example: Any = None,
    *,
    modules: OwnModules | None = None,
) -> PlugReport:
    """Plug a model as a plan says: the one line that a training script needs.

    The modules start as the plan's seed makes them, and the global random generators are not
    touched: a script draws the same weights and the same order of images with and without plugs.
    To get trained weights as well, use :func:`torchplug.load`.

    Args:
        model: the host; it is changed in place, before it is compiled, distributed, copied for
            an average of weights, or handed to an optimizer.
        plan: a plan, a file of its JSON text (``*.json``), or a file that :func:`torchplug.save`
            wrote (any other name), whose weights are left aside. The file that ``torchplug
            compare --command`` hands to a script as ``{plan}`` holds requests (a module and a
            role, path or glob), which are looked up in ``model``; for the baseline it is empty.
            For a control it says so: a placebo's plugs have their information cut, and a model
            that is to have as many parameters as the plugged one is widened instead. A file
            beside it, ``plan.applied.json``, then tells the driver what was done, or why it could
            not be, and at the end of the process whether it was trained.
        example: the shape of a small batch, a tensor, or the arguments of the forward. Without
            it the model is tried on square images of usual sizes, with the channels that its
            first convolution reads.
        modules: classes of the script's own that a plan of requests may name, by their names:
            ``{"MyAttention": MyAttention}``. Nothing that a plan names is imported.

    Returns:
        What :func:`torchplug.plug` returns, over all plugs of the plan. A control's ``notes`` tell
        what was cut or widened.

    Raises:
        UsageError: if the file cannot be read or is no plan, no example is given and the model
            runs on none of those that are tried, a module of the script's own is missing from
            ``modules``, or a model cannot be widened.
        PlugError: if the plan does not fit the model, or a module has no honest placebo; the
            model is then as it was.

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
    if isinstance(read, Plan):
        if not read.plugs:
            return report_nothing(model, read.seed)
        return plug(model, read, example=guess_example(model) if example is None else example)
    leaves_receipt = read.receipt and not isinstance(plan, (Plan, RequestPlan))
    if not leaves_receipt:
        return _apply(model, read, example, modules).report
    base = hash_tensors(base_state(model))
    try:
        done = _apply(model, read, example, modules)
    except TorchplugError as error:
        leave_refusal(Path(str(plan)), read, str(error))
        raise
    leave_receipt(Path(str(plan)), model, done, base)
    return done.report


def _apply(model: nn.Module, plan: RequestPlan, example: Any, modules: OwnModules | None) -> Done:
    if not plan.requests:
        return Done(report_nothing(model, plan.seed))
    with _leaving_generators():
        arguments = read_example(guess_example(model) if example is None else example, model)
        return perform(model, plan, arguments, modules)


@contextlib.contextmanager
def _leaving_generators() -> Iterator[None]:
    """Restore the global generators afterwards, Python's and numpy's too: a model may draw."""
    numpy = sys.modules.get("numpy")
    states = random.getstate(), numpy.random.get_state() if numpy else None
    with torch.random.fork_rng():
        try:
            yield
        finally:
            random.setstate(states[0])
            if numpy:
                numpy.random.set_state(states[1])


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
