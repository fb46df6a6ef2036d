"""Run trials in this process, one after another."""

from typing import Any

from torchplug.comparison.engines.work import Ended, Job, OnEpoch, Work


class InlineEngine:
    """Runs a job when it is waited for."""

    slots = 1

    def __init__(self, work: Work, on_epoch: OnEpoch) -> None:
        self._work, self._on_epoch = work, on_epoch
        self._state: Any = None
        self._jobs: list[Job] = []

    def submit(self, job: Job) -> None:
        """Keep the job until it is waited for."""
        self._jobs.append(job)

    def wait(self, seconds: float) -> list[Ended]:
        """Run the job to its end, however long it takes."""
        del seconds
        if self._state is None:
            self._state = self._work.start(*self._work.arguments)
        jobs, self._jobs = self._jobs, []
        return [self._run(job) for job in jobs]

    def _run(self, job: Job) -> Ended:
        def report(epoch: int) -> None:
            self._on_epoch(job, epoch)

        try:
            return Ended(job, self._work.run(self._state, job, report))
        except Exception as error:
            return Ended(job, error=error)

    def stop(self) -> None:
        """Forget what was not begun."""
        self._jobs = []
