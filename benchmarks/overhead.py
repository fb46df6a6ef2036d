"""What the driver costs: a study of 60 trials that do nothing but wait.

    python -m benchmarks.overhead --store benchmarks/results/overhead.json

Everything is real but the training: data, rehearsal with its measurements, ledger, leases,
statistics, summary. Imports do not count: training needs the same ones. The measure is under 2 % of
60 trials of 5 s.
"""

import argparse
import tempfile
import time
from pathlib import Path
from typing import Any
from unittest import mock

from benchmarks.stored import describe, publish
from torchplug.comparison import Comparison, compare, load_run
from torchplug.comparison.arms import Study
from torchplug.comparison.outcome import Outcome
from torchplug.comparison.spec import Variant

VARIANTS, SEEDS = ("se", "cbam", "cbam@stage", "gc"), 10  # six arms with both baselines


def wait(seconds: float) -> Any:
    """Return a trial that takes so long and finishes with the record of a real one."""

    def run(study: Study, variant: Variant, seed: int, folder: Path, on_epoch: Any) -> Outcome:
        began = time.time()
        epochs = study.comparison.recipe.epochs
        folder.mkdir(parents=True, exist_ok=True)
        for epoch in range(1, epochs + 1):
            time.sleep(seconds / epochs)
            on_epoch(epoch)
        record = make_record(study.comparison, study.data.digest, variant, seed)
        return Outcome(record, {"began": began, "seconds": time.time() - began, "host": ""})

    return run


def make_record(comparison: Comparison, data: str, variant: Variant, seed: int) -> dict[str, Any]:
    errors = [(7 * seed + 31 * i + len(variant.name)) % 719 for i in range(12)]
    value = 100 * (719 - len(errors)) / 719
    return {
        "format": 2,
        "specification": comparison.digest(variant, seed),
        "variant": variant.name,
        "control": variant.control,
        "of": variant.of,
        "seed": seed,
        "status": "finished",
        "error": "",
        "value": value,
        "metrics": {"accuracy": value},
        "classes": {str(label): value for label in range(10)},
        "errors": sorted(set(errors)),
        "tested": 719,
        "curve": [{"epoch": i, "loss": 1 / i, "validation": value} for i in range(1, 21)],
        "base_weights": "of the baseline again" if variant.control else "",
        "data": data,
        "parameters": {"base": 77_754, "modules": 0, "gates": 0},
    }


def measure(seconds: float) -> dict[str, Any]:
    with (
        tempfile.TemporaryDirectory() as folder,
        mock.patch("torchplug.comparison.trial_job.run_trial", wait(seconds)),
    ):
        root = Path(folder)
        with mock.patch("torchplug.comparison.trial_job.run_trial", wait(0.0)):
            compare("torchplug:resnet8", VARIANTS, seeds=2, out=root / "warm")
        began, busy = time.monotonic(), time.process_time()
        compare("torchplug:resnet8", VARIANTS, seeds=SEEDS, out=root / "run")
        whole, busy = time.monotonic() - began, time.process_time() - busy
        trials = load_run(root / "run").timings
    slept = sum(float(timing["seconds"]) for timing in trials.values())
    return {
        "trials": len(trials),
        "seconds a trial": seconds,
        "seconds in all": round(whole, 2),
        "overhead in seconds": round(whole - slept, 2),
        "overhead in percent": round(100 * (whole - slept) / slept, 2),
        "processor seconds of the driver": round(busy, 2),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=5.0, help="of one trial")
    parser.add_argument("--store", type=Path)
    chosen = parser.parse_args()
    publish(describe() | measure(chosen.seconds), chosen.store)


if __name__ == "__main__":
    main()
