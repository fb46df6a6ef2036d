"""Run one trial wherever an engine sends it; what a model raises is that trial's failure only."""

import gc
import platform
import time
from dataclasses import dataclass, field
from pathlib import Path

import torch

from torchplug.comparison.arms import Study
from torchplug.comparison.command import run_command_trial
from torchplug.comparison.engines.work import Job, Report, clean_error
from torchplug.comparison.outcome import Outcome, note_time
from torchplug.comparison.spec import Comparison
from torchplug.comparison.store import PROGRESS, explain_full, is_disk_full, write_json
from torchplug.comparison.trial import run_trial

_PROGRESS_SECONDS = 0.5
_LONG_SECONDS = 30.0


def run_job(study: Study, job: Job, report: Report) -> Outcome:
    """Run a trial in its folder; an exception becomes a record that says so.

    Raises:
        DiskFullError: if there is no space, which is no fault of the trial.
    """
    folder = Path(job.folder)
    began = time.time()
    try:
        on_epoch = _Progress(folder, study.comparison.recipe.epochs, report)
        run = run_command_trial if study.comparison.command else run_trial
        outcome = run(study, job.variant, job.seed, folder, on_epoch)
    except Exception as error:
        if is_disk_full(error):
            raise explain_full(folder, error) from error
        text = clean_error(f"{type(error).__name__}: {error}", job.folder)
        outcome = fail(study.comparison, study.data.digest, job, text, began)
    _free_memory(time.time() - began, failed=outcome.record["status"] == "failed")
    return outcome


def fail(
    comparison: Comparison, data_digest: str, job: Job, error: str, began: float | None = None
) -> Outcome:
    """Return the outcome of a trial that failed."""
    record = {
        "format": 2,
        "specification": comparison.digest(job.variant, job.seed),
        "variant": job.variant.name,
        "control": job.variant.control,
        "of": job.variant.of,
        "seed": job.seed,
        "status": "failed",
        "error": error,
        "value": None,
        "data": data_digest,
    }
    return Outcome(record, note_time(began or time.time()))


@dataclass
class _Progress:
    """Says how far a trial is: to who waits for it, and in a file for who only looks."""

    folder: Path
    epochs: int
    report: Report
    _began: float = field(default_factory=time.time)
    _told: float = 0.0

    def __call__(self, epoch: int) -> None:
        now = time.time()
        if now - self._told >= _PROGRESS_SECONDS or epoch == self.epochs:
            content = {
                "epoch": epoch,
                "epochs": self.epochs,
                "began": self._began,
                "updated": now,
                "host": platform.node(),
            }
            write_json(self.folder / PROGRESS, content, sync=False)
            self._told = now
        self.report(epoch)


def _free_memory(seconds: float, *, failed: bool) -> None:
    """Give back what a trial held: a trainer is a cycle that reference counts do not free.

    To look through all objects takes a fraction of a second, so short trials leave it to Python.
    """
    if failed or seconds > _LONG_SECONDS:
        gc.collect()
        torch.cuda.empty_cache()  # does nothing where no GPU was used
