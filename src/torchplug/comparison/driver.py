"""Run the trials that are missing: take one, hand it to an engine, write what came out."""

import contextlib
import math
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from torchplug.comparison.engines.work import Ended, Engine, Job
from torchplug.comparison.lease import Leases
from torchplug.comparison.outcome import Outcome
from torchplug.comparison.progress import Teller
from torchplug.comparison.spec import BASELINE, Comparison, Variant
from torchplug.comparison.stopping import Known, find_futile_stop
from torchplug.comparison.store import (
    PROGRESS,
    RECORD,
    TIMING,
    TRIAL_SPECIFICATION,
    Store,
    explain_full,
    is_disk_full,
    read_json,
    write_json,
)
from torchplug.comparison.trial_job import fail
from torchplug.errors import UsageError, explain

TRIES = 3
"""How often the process of a trial may die without finishing another epoch."""

_LOOK_SECONDS = 0.5
_RESULTS = frozenset({"finished", "diverged"})

Key = tuple[str, int]


@dataclass
class _Deaths:
    count: int = 0
    epoch: int = -1
    """The epoch that was reached before the last death."""


@dataclass
class Driver:
    """The trials of one run as one driver sees them, next to others that may work on it too."""

    comparison: Comparison
    data_digest: str
    store: Store
    leases: Leases
    teller: Teller
    deadline: float = math.inf
    """By the monotonic clock; no trial is begun after it."""

    known: dict[Key, Known] = field(default_factory=dict)
    stopped: dict[str, str] = field(default_factory=dict)
    """Why an arm has fewer seeds than the baseline."""

    out_of_time: bool = False
    _pending: deque[Job] = field(default_factory=deque)
    _elsewhere: list[Job] = field(default_factory=list)
    _before: dict[Key, int] = field(default_factory=dict)
    _deaths: dict[Key, _Deaths] = field(default_factory=dict)
    _next_look: float = 0.0
    _reasons: set[str] = field(default_factory=set)
    """Why trials failed, as far as it was told."""

    def plan(self, arms: Sequence[Variant], *, message: str = "") -> None:
        """Look for the records of all trials of these arms, and queue those that are missing."""
        jobs = [self._make_job(arm, seed) for arm, seed in self.comparison.trials(arms)]
        missing = [job for job in jobs if not self._look(job, at_start=True)]
        self.teller.total += len(jobs)
        self.teller.done += len(jobs) - len(missing)
        self.teller.tell("phase" if message else "begin", message=message)
        self._pending.extend(missing)
        for job in jobs:
            if (known := self.known.get(_key(job))) is not None:
                self.teller.tell("kept", job.name, status=known.status)
            elif _key(job) in self._before:
                self.teller.tell("redo", job.name)

    @property
    def has_work(self) -> bool:
        """Whether a trial has no record yet."""
        return bool(self._pending or self._elsewhere)

    def run(self, engine: Engine) -> None:
        """Run what is queued, together with other drivers, until every trial has its record.

        Raises:
            DiskFullError: if there is no space for a record; nothing of it is written.
            UsageError: if a program's first baseline leaves no metric.
        """
        running: dict[Key, Job] = {}
        try:
            while self.has_work or running:
                while len(running) < engine.slots and (job := self._take()) is not None:
                    running[_key(job)] = job
                    engine.submit(job)
                if running:
                    self._wait(engine, running)
                elif self.has_work:
                    time.sleep(_LOOK_SECONDS)
        except BaseException:
            engine.stop()  # first: nobody takes a trial over that still runs
            for job in running.values():
                self.leases.give_back(Path(job.folder))
            raise

    def _wait(self, engine: Engine, running: dict[Key, Job]) -> None:
        for ended in engine.wait(_LOOK_SECONDS):
            if self._finish(ended):
                del running[_key(ended.job)]
            else:
                engine.submit(ended.job)

    def explain_stops(self, arms: Sequence[Variant]) -> dict[str, str]:
        """Return why arms have fewer seeds than were asked for."""
        told = dict(self.stopped)
        for arm in arms if self.out_of_time else ():
            seeds = sum((arm.name, seed) in self.known for seed in self.comparison.seeds)
            if seeds < len(self.comparison.seeds) and arm.name not in told:
                told[arm.name] = f"by the budget after {seeds}"
        return told

    def _make_job(self, variant: Variant, seed: int) -> Job:
        folder = self.store.trial_folder(self.comparison, variant, seed)
        return Job(variant, seed, str(folder))

    def _look(self, job: Job, *, at_start: bool = False) -> bool:
        """Look for the record of a trial; a failure of an earlier run does not count."""
        key, path = _key(job), Path(job.folder) / RECORD
        record = self.store.read_record(self.comparison, job.variant, job.seed)
        usable = record is not None and record.get("data") in {self.data_digest, None}
        status = record["status"] if record is not None and usable else ""
        if at_start and status not in _RESULTS:
            with contextlib.suppress(OSError):
                self._before[key] = path.stat().st_mtime_ns
            return False
        if not status or (status not in _RESULTS and self._is_old(key, path)):
            return False
        self.known[key] = Known(status, (record or {}).get("value"))
        return True

    def _is_old(self, key: Key, path: Path) -> bool:
        try:
            return path.stat().st_mtime_ns == self._before.get(key)
        except OSError:
            return True

    def _take(self) -> Job | None:
        """Return the next trial that nobody has done or does."""
        if time.monotonic() >= self.deadline:
            self._run_out_of_time()
        while self._pending:
            job = self._pending.popleft()
            if not self._is_stopped(job) and self._claim(job):
                return job
        if self._elsewhere and time.monotonic() >= self._next_look:
            self._next_look = time.monotonic() + _LOOK_SECONDS
            jobs, self._elsewhere = self._elsewhere, []
            for index, job in enumerate(jobs):
                if not self._is_stopped(job) and self._claim(job):
                    self._elsewhere += jobs[index + 1 :]
                    return job
        return None

    def _claim(self, job: Job) -> bool:
        """Take the lease of a trial that has no record; keep it in mind if another has it."""
        folder = Path(job.folder)
        if self._look(job):
            self._tell_end(job)
            return False
        if not self.leases.take(folder):
            self._elsewhere.append(job)
            return False
        if self._look(job):  # its driver was done just before
            self.leases.give_back(folder)
            self._tell_end(job)
            return False
        try:
            self.store.sweep(folder)
            specification = self.comparison.specify(job.variant, job.seed)
            write_json(folder / TRIAL_SPECIFICATION, specification, sync=False)
        except BaseException:
            self.leases.give_back(folder)
            raise
        self.teller.tell("start", job.name)
        return True

    def _is_stopped(self, job: Job) -> bool:
        name = job.variant.of or job.variant.name
        if not self.comparison.futility or name == BASELINE:
            return False
        if name not in self.stopped:
            seeds = find_futile_stop(self.comparison, name, self.known)
            if seeds is None:
                return False
            self.stopped[name] = f"for futility after {len(seeds)} seeds"
            self.teller.tell("stop", name, message=self.stopped[name])
        if job.variant.name not in self.stopped:
            self.stopped[job.variant.name] = f"with {name}, {self.stopped[name]}"
        self.teller.total -= 1
        return True

    def _run_out_of_time(self) -> None:
        left = [*self._pending, *self._elsewhere]
        self._pending.clear()
        self._elsewhere = []
        self.teller.total -= len(left)
        if left and not self.out_of_time:
            self.out_of_time = True
            self.teller.tell("stop", message=f"the budget is spent: {len(left)} trials not begun")

    def _finish(self, ended: Ended) -> bool:
        """Write what came out of a trial; return whether it has ended."""
        job, folder = ended.job, Path(ended.job.folder)
        if ended.error is not None:
            if is_disk_full(ended.error):
                raise explain_full(folder, ended.error) from ended.error
            raise ended.error
        if ended.death and not self._has_died_enough(job):
            self.teller.tell("retry", job.name, message=ended.death)
            return False
        outcome: Outcome = ended.result
        if ended.death:
            text = f"its process died {TRIES} times without finishing an epoch in between"
            outcome = fail(self.comparison, self.data_digest, job, text)
        if self.leases.holds(folder) or not self._look(job):  # else another took it over
            self.store.write_outcome(folder, outcome.record, outcome.timing)
            self._look(job)
        self.leases.give_back(folder)
        self._tell_end(job)
        if outcome.leaves_no_metric:
            self._check_place(job, outcome.record["error"])
        return True

    def _check_place(self, job: Job, reason: str) -> None:
        """End the run if a program's first baseline has no metric: every trial would end so."""
        is_known = any(known.status == "finished" for known in self.known.values())
        if job.variant.name == BASELINE and not is_known:
            text = explain(
                "a program's metric is where it was said to be",
                f"none after {job.name}, so no other trial is begun: {reason}",
                f"then run it under another name, or remove {self.store.root} first",
            )
            raise UsageError(text)

    def _has_died_enough(self, job: Job) -> bool:
        deaths = self._deaths.setdefault(_key(job), _Deaths())
        progress = read_json(Path(job.folder) / PROGRESS) or {}
        epoch = int(progress.get("epoch", 0))
        deaths.count = deaths.count + 1 if epoch <= deaths.epoch else 1
        deaths.epoch = max(epoch, deaths.epoch)
        return deaths.count >= TRIES

    def _tell_end(self, job: Job) -> None:
        timing = read_json(Path(job.folder) / TIMING) or {}
        status, seconds = self.known[_key(job)].status, timing.get("seconds", 0.0)
        message = ""
        if status != "finished":
            reason = (read_json(Path(job.folder) / RECORD) or {}).get("error") or ""
            message = "" if reason in self._reasons else reason  # the same in all is told once
            self._reasons.add(reason)
        self.teller.tell("end", job.name, status=status, seconds=seconds, message=message)


def _key(job: Job) -> Key:
    return job.variant.name, job.seed
