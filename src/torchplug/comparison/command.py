"""A program of the user's own as the trial: any script that takes a seed, a plan and a folder.

    python train.py --seed {seed} --plan {plan} --out {out}

The script adds one line after it has built its model: ``torchplug.apply_plan(model, plan)``. The
plan holds what is to be plugged, not where exactly: places are found in the script's own model. For
the baseline it is empty, so all arms run the same code. Applying it leaves a receipt, without which
the trial fails: a script that forgot the line would make all arms equal.
"""

import dataclasses
import hashlib
import re
import shlex
import shutil
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from torchplug.comparison.arms import Study
from torchplug.comparison.metricfile import (
    STDOUT,
    MetricError,
    MetricPlace,
    is_lost,
    read_curve,
    read_metric,
)
from torchplug.comparison.outcome import Outcome, note_time
from torchplug.comparison.process import end_orphan, run_process
from torchplug.comparison.receipts import is_refused, take_receipt
from torchplug.comparison.seeds import derive_seed
from torchplug.comparison.spec import Comparison, Variant
from torchplug.comparison.store import write_text
from torchplug.errors import UsageError, explain, nearest
from torchplug.programs import ProgramControl, RequestPlan, receipt_path

PLACEHOLDERS = ("seed", "plan", "out", "variant", "python")
NO_LATENCY = explain(
    "a program makes its controls anew in each trial, the same from what its plan says",
    "latency, which is measured and would be another one each time",
    "ask for parameters or placebo, or compare a model that torchplug can build",
)
_NEEDED = ("seed", "plan")
_BRACED = re.compile(r"\{\{[A-Za-z_]\w*\}\}|\{(?P<name>[A-Za-z_]\w*)\}")
_EXAMPLE = "python train.py --seed {seed} --plan {plan} --out {out}"


def check_command(comparison: Comparison) -> None:
    """Refuse a command that cannot be a trial, before anything is written.

    Raises:
        UsageError: for an unknown placeholder, one that is missing, a program that is not there,
            a metric that cannot be found, or a control that is measured.
    """
    words = _split(comparison.command)
    used = {found["name"] for word in words for found in _BRACED.finditer(word)} - {None}
    for name in sorted(used - set(PLACEHOLDERS)):
        fix = f"{nearest(name, PLACEHOLDERS)} Double the braces to keep them: {{{{{name}}}}}"
        raise UsageError(explain("a command has placeholders of its own", f"{{{name}}}", fix))
    for name in _NEEDED:
        if name not in used:
            got = repr(comparison.command)
            fix = f"write it like: {_EXAMPLE}"
            raise UsageError(explain(f"a command says where its {{{name}}} goes", got, fix))
    if not comparison.metric_file:
        fix = "name it: --metric '{out}/metrics.json:map50'"
        raise UsageError(explain("a command's metric has a place", "none", fix))
    place = MetricPlace.parse(comparison.metric_file)
    if "{out}" in place.file and "out" not in used:
        fix = "hand the folder on with --out {out}, or as your script calls it"
        got = f"{place.file} and a command without {{out}}"
        raise UsageError(explain("a program must know where its metric goes", got, fix))
    program = _fill(words[0], {"python": sys.executable})
    if shutil.which(program) is None:
        fix = "name one that is installed, or {python} for this Python"
        raise UsageError(explain("a command begins with a program", repr(words[0]), fix))
    _check_controls(comparison)


def _check_controls(comparison: Comparison) -> None:
    if "latency" in comparison.controls:
        raise UsageError(NO_LATENCY)
    if comparison.base != "scratch":
        fix = "let the program load its weights before it applies the plan"
        raise UsageError(explain("a program starts its own base", comparison.base, fix))


def hash_command(command: str) -> str:
    """Return a hash of the files that a command names: a changed script is another comparison."""
    hashed = hashlib.sha256()
    for place, word in enumerate(_split(command)):
        path = Path(word)
        content = path.read_bytes() if path.is_file() else b""
        if place > 0 or content.startswith(b"#!"):  # another build of Python is not another script
            hashed.update(f"{word}\0".encode() + content)
    return hashed.hexdigest()


def write_plan(variant: Variant, seed: int, path: Path) -> None:
    """Write the plan of a trial: what the script plugs, in the order given, or its control."""
    control: ProgramControl | None = None
    if variant.control == "parameters" or variant.control == "placebo":
        control = variant.control
    sources = variant.details.get("sources", {})
    plan = RequestPlan(
        requests=tuple(
            dataclasses.replace(request, module=_make_absolute(request.module))
            for request in variant.plugs
        ),
        sources={_make_absolute(name): digest for name, digest in sources.items() if digest},
        seed=derive_seed("modules", variant.stream(seed)),
        receipt=True,
        control=control,
    )
    write_text(path, plan.to_json())


def _make_absolute(module: str) -> str:
    """Name the file of a module of the user's own wherever the script runs."""
    source, colon, name = module.rpartition(":")
    return f"{Path(source).absolute()}:{name}" if colon and source.endswith(".py") else module


def run_command_trial(
    study: Study,
    variant: Variant,
    seed: int,
    folder: Path,
    on_epoch: Callable[[int], None] | None = None,
) -> Outcome:
    """Run the program of a comparison as one trial.

    The folder keeps ``plan.json``, ``out/`` (the program's own; what an interrupted trial left
    there is still there when it runs again), and what was printed in ``logs/``. No shell is
    involved: a placeholder stays within its word. The program gets one thread unless the
    environment says otherwise.

    Args:
        study: its comparison has the command and the metric's place.
        variant: what to plug.
        seed: of the trial; ``{seed}`` is the variant's stream, which is another one for the
            baseline again.
        folder: of the trial.
        on_epoch: not called: what a program does is its own.

    Returns:
        The outcome; a program that fails, leaves no metric or never applies its plan gives a
        record of status ``failed`` with the reason, one whose metric is no finite number
        ``diverged``.
    """
    del on_epoch
    comparison = study.comparison
    began = time.time()
    place = MetricPlace.parse(comparison.metric_file)
    out, plan, logs = folder / "out", folder / "plan.json", folder / "logs"
    for path in (out, logs):
        path.mkdir(parents=True, exist_ok=True)
    end_orphan(folder)
    write_plan(variant, seed, plan)
    for leftover in (receipt_path(plan), place.find(out) if place.file != STDOUT else None):
        if leftover is not None:
            leftover.unlink(missing_ok=True)
    values = {
        "seed": str(variant.stream(seed)),
        "plan": str(plan.absolute()),
        "out": str(out.absolute()),
        "variant": variant.name,
        "python": sys.executable,
    }
    words = [_fill(word, values) for word in _split(comparison.command)]
    record = _begin_record(study, variant, seed)
    error = run_process(words, folder)
    if not error or is_refused(plan):  # the reason, whatever the program made of it
        error = take_receipt(plan, record)
    leaves_no_metric = False
    if not error:
        error = _read_result(place, out.absolute(), logs / "stdout.txt", comparison.metric, record)
        leaves_no_metric = bool(error) and record["status"] == "finished"
    if error:
        status = "failed" if record["status"] == "finished" else record["status"]
        record |= {"status": status, "error": _clean(error, folder)}
    return Outcome(record, note_time(began), leaves_no_metric)


def _begin_record(study: Study, variant: Variant, seed: int) -> dict[str, Any]:
    return {
        "format": 2,
        "specification": study.comparison.digest(variant, seed),
        "variant": variant.name,
        "control": variant.control,
        "of": variant.of,
        "seed": seed,
        "status": "finished",
        "error": "",
        "value": None,
        "metrics": {},
        "classes": {},
        "errors": None,
        "tested": 0,
        "curve": [],
        "base_weights": "",
        "data": getattr(study.data, "digest", ""),
        "parameters": {"base": 0, "modules": 0, "gates": 0},
    }


def _read_result(
    place: MetricPlace, out: Path, stdout: Path, metric: str, record: dict[str, Any]
) -> str:
    try:
        value = read_metric(place, out, stdout)
    except MetricError as error:
        return str(error)
    if is_lost(value):
        record["status"] = "diverged"
        return f"{metric} is {value}"
    curve = read_curve(place, out)
    record |= {
        "value": value,
        "metrics": {metric: value},
        "curve": [
            {"epoch": epoch, "loss": None, "validation": point}
            for epoch, point in enumerate(curve, start=1)
        ],
    }
    return ""


def _split(command: str) -> list[str]:
    try:
        words = shlex.split(command)
    except ValueError as error:
        fix = f"write it like: {_EXAMPLE}"
        raise UsageError(explain("a command is words as in a shell", str(error), fix)) from error
    if not words:
        raise UsageError(explain("a command has words", "none", f"write it like: {_EXAMPLE}"))
    return words


def _fill(word: str, values: Mapping[str, str]) -> str:
    def put(found: re.Match[str]) -> str:
        name = found["name"]
        return found[0][1:-1] if name is None else values.get(name, found[0])

    return _BRACED.sub(put, word)


def _clean(text: str, folder: Path) -> str:
    """Leave out what differs between two runs of the same trial."""
    text = text.replace(str(folder.absolute()), "FOLDER").replace(str(folder), "FOLDER")
    return re.sub(r"0x[0-9a-f]+", "0x…", " ".join(text.split()))
