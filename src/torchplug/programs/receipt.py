"""The receipt of a plan: what was applied to what, and whether it was trained in the end.

A script may forget to apply its plan, or apply it to a model that its framework then builds anew;
either way all arms of a comparison would be equal, and the comparison would call that a finding.
"""

import atexit
import contextlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from torchplug.errors import UsageError, explain
from torchplug.programs.perform import Done
from torchplug.programs.request_plan import RequestPlan
from torchplug.surgery.attach import find_plugs
from torchplug.surgery.fingerprint import hash_tensors, join


def receipt_path(plan: Path) -> Path:
    """Return the file that says that a plan was applied, and to what.

    >>> receipt_path(Path("trial/plan.json")).name
    'plan.applied.json'
    """
    return plan.with_suffix(".applied.json")


def leave_receipt(plan: Path, model: nn.Module, done: Done, base_weights: str) -> None:
    """Write what was applied; when the process ends, add whether it was trained.

    What must have changed is the plugs' weights, or those of a base that was widened instead.
    Several processes of one training write the same.

    Raises:
        UsageError: if the folder of the plan cannot be written.
    """
    report = done.report
    content = {
        "base_weights": base_weights,
        "parameters": {
            "base": report.base_parameters,
            "modules": report.module_parameters,
            "gates": report.gate_parameters,
        },
        "flops": list(report.flops),
        "max_difference": report.max_difference,
        "plan": json.loads(report.plan.to_json()),
        "seed": report.plan.seed,
        "control": done.control,
        "details": done.details,
    }
    path = receipt_path(plan)
    _write_first(path, content)
    weights = {
        join(place, name, key): value
        for place, name, plug in ([("", "", model)] if done.is_widened else find_plugs(model))
        for key, value in plug.named_parameters()
        if value.requires_grad
    }
    if weights:
        atexit.register(_note_training, path, weights, hash_tensors(weights))


def leave_refusal(path: Path, plan: RequestPlan, reason: str) -> None:
    """Write why a plan cannot be applied: a script's own way to fail may not say it.

    Raises:
        UsageError: if the folder of the plan cannot be written.
    """
    content = {"seed": plan.seed, "control": plan.control, "refused": reason}
    _write_first(receipt_path(path), content)


def _write_first(path: Path, content: Mapping[str, Any]) -> None:
    try:
        _write(path, content)
    except OSError as error:
        fix = "let the script run where it can write into the folder of its plan"
        raise UsageError(explain(f"{path} must be writable", str(error), fix)) from error


def _note_training(path: Path, weights: Mapping[str, Tensor], before: str) -> None:
    with contextlib.suppress(Exception):  # the process ends: what it leaves is no reason to fail
        content = json.loads(path.read_text(encoding="utf-8"))
        changed = hash_tensors(weights) != before
        content["trained"] = changed or content.get("trained", False)
        _write(path, content)


def _write(path: Path, content: Mapping[str, Any]) -> None:
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.write_text(json.dumps(content, indent=1, sort_keys=True), encoding="utf-8")
    temporary.replace(path)
