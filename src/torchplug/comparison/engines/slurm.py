"""Run trials as jobs of a Slurm cluster, through submitit; its nodes share the ledger's folder."""

import contextlib
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torchplug.comparison.engines.work import Ended, Job, Work
from torchplug.errors import UsageError, explain, import_extra

_SLOTS = 64
_DAY_MINUTES = 24 * 60
_POLL_SECONDS = 0.2


class SlurmEngine:
    """Keeps a number of jobs in Slurm's queue."""

    def __init__(
        self,
        work: Work,
        *,
        folder: Path,
        address: str | None,
        workers: int | None,
        options: Mapping[str, Any],
        gpus: int,
        owner: str,
    ) -> None:
        submitit = import_extra("submitit", extra="slurm", purpose="the Slurm engine")
        self.slots = workers or _SLOTS
        self._work, self._owner = work, owner
        self._unfinished = submitit.core.utils.UncompletedJobError
        self._running: dict[Any, Job] = {}
        settings = {
            "timeout_min": _DAY_MINUTES,
            "cpus_per_task": 1,
            "gpus_per_node": gpus,
            "name": "torchplug",
        }
        try:
            self._executor = submitit.AutoExecutor(folder=folder, cluster=address)
            self._executor.update_parameters(**{**settings, **options})
        except (RuntimeError, NameError, TypeError, ValueError) as error:
            text = explain(
                "the Slurm engine needs a machine that can submit, and options that submitit knows",
                str(error),
                "run it where sbatch is, or pass address='local'",
            )
            raise UsageError(text) from error

    def submit(self, job: Job) -> None:
        """Put the job into the queue."""
        task = SlurmTrial(self._work, job, self._owner)
        self._running[self._executor.submit(task)] = job

    def wait(self, seconds: float) -> list[Ended]:
        """Return the jobs that ended, and those that were killed."""
        until = time.monotonic() + seconds
        while True:
            done = [each for each in self._running if each.done()]
            if done or time.monotonic() >= until:
                return [self._collect(each) for each in done]
            time.sleep(_POLL_SECONDS)

    def _collect(self, submitted: Any) -> Ended:
        job = self._running.pop(submitted)
        try:
            return Ended(job, submitted.result())
        except self._unfinished as error:
            if type(error) is self._unfinished:
                return Ended(job, death=f"Slurm job {submitted.job_id} {submitted.state}")
            return Ended(job, error=error)

    def stop(self) -> None:
        """Cancel what is in the queue or runs."""
        for submitted in self._running:
            with contextlib.suppress(Exception):  # it may have ended
                submitted.cancel()
        self._running = {}


class AbandonedError(RuntimeError):
    """The driver of a job has ended and another has taken its trial over."""


class SlurmTrial:
    """A job of Slurm's: put back into the queue when its time is over, it goes on."""

    def __init__(self, work: Work, job: Job, owner: str) -> None:
        self.work, self.job, self.owner = work, job, owner

    def __call__(self) -> Any:
        """Run the trial unless its driver has lost it while it waited."""
        self._check()
        return self.work.run(self.work.start(*self.work.arguments), self.job, self._check)

    def _check(self, epoch: int = 0) -> None:
        del epoch
        lease = Path(self.job.folder, "lease.json")
        if not lease.exists() or self.owner not in lease.read_text(encoding="utf-8"):
            raise AbandonedError(f"{self.job.name} has another driver now")

    def checkpoint(self) -> Any:
        """Return what submitit puts into the queue when the job is preempted or out of time."""
        submitit = import_extra("submitit", extra="slurm", purpose="the Slurm engine")
        return submitit.helpers.DelayedSubmission(self)
