"""How far a run is, read from its directory while other processes work on it."""

import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from torchplug.comparison.lease import Leases
from torchplug.comparison.readback import read_comparison
from torchplug.comparison.spec import Comparison, Variant
from torchplug.comparison.store import PROGRESS, RECORD, TIMING, Store, read_json

Status = Literal["finished", "diverged", "failed", "running", "waiting"]

DRIVERS = "drivers"
SUMMARY = "summary.json"


@dataclass(frozen=True, kw_only=True)
class RunningTrial:
    """A trial that somebody works on."""

    name: str
    """Such as ``se, seed 3``."""

    epoch: int
    epochs: int
    seconds: float
    """Since it began."""


@dataclass(frozen=True, kw_only=True)
class RunState:
    """A run at one moment."""

    name: str
    arms: Mapping[str, Mapping[Status, int]]
    """How many trials of each arm are in which state."""

    running: tuple[RunningTrial, ...]
    failures: tuple[str, ...]
    """Trials that failed or diverged, with the reason."""

    left: float | None
    """Estimated seconds to the end; ``None`` before a trial has ended."""

    drivers: int
    """Processes that work on the run."""

    is_over: bool
    """Whether all trials are there and their result is written."""

    @property
    def total(self) -> int:
        """All trials."""
        return sum(sum(counts.values()) for counts in self.arms.values())

    @property
    def done(self) -> int:
        """Trials with a record."""
        ended: tuple[Status, ...] = ("finished", "diverged", "failed")
        return sum(counts.get(each, 0) for counts in self.arms.values() for each in ended)


@dataclass(frozen=True)
class _Ended:
    status: Status
    error: str
    seconds: float


@dataclass
class Watcher:
    """Looks at a run again and again; what has ended is read once.

    >>> import tempfile, torchplug as tp
    >>> from torchplug.comparison import Recipe
    >>> folder = Path(tempfile.mkdtemp())
    >>> _ = tp.compare("torchplug:resnet8", ["se"], seeds=2, recipe=Recipe(epochs=1), out=folder)
    >>> state = Watcher(folder).look()
    >>> state.done, state.total, state.is_over
    (6, 6, True)
    """

    root: Path
    _ended: dict[tuple[str, int], tuple[int, _Ended]] = field(default_factory=dict)
    _leases: Leases | None = None

    def look(self) -> RunState:
        """Return the state now.

        Raises:
            UsageError: if the directory holds no run.
        """
        store = Store(self.root)
        comparison = read_comparison(store)
        arms = store.read_arms() or comparison.arms
        self._leases = self._leases or Leases(self.root)
        counts: dict[str, Counter[Status]] = {arm.name: Counter() for arm in arms}
        running, failures, seconds = [], [], []
        for arm, seed in comparison.trials(arms):
            folder = store.trial_folder(comparison, arm, seed)
            ended = self._read_ended(store, comparison, arm, seed)
            if ended is None:
                trial = self._read_running(folder, f"{arm.name}, seed {seed}")
                counts[arm.name]["waiting" if trial is None else "running"] += 1
                running += [] if trial is None else [trial]
                continue
            counts[arm.name][ended.status] += 1
            seconds.append(ended.seconds)
            if ended.status != "finished":
                failures.append(f"{arm.name}, seed {seed}: {ended.status} {ended.error}".strip())
        drivers = self._count_drivers()
        missing = sum(each["waiting"] + each["running"] for each in counts.values())
        stopped = read_json(self.root / "stopped.json") or {}
        is_open = any(counts[arm.name]["waiting"] for arm in arms if arm.name not in stopped)
        return RunState(
            name=self.root.name,
            arms=counts,
            running=tuple(running),
            failures=tuple(failures),
            left=_estimate_left(seconds, running, missing),
            drivers=drivers,
            is_over=not running and not is_open and not drivers and self._has_summary(),
        )

    def _has_summary(self) -> bool:
        return (self.root / SUMMARY).exists()

    def _read_ended(
        self, store: Store, comparison: Comparison, arm: Variant, seed: int
    ) -> _Ended | None:
        folder = store.trial_folder(comparison, arm, seed)
        try:
            mark = (folder / RECORD).stat().st_mtime_ns
        except OSError:
            return None
        known = self._ended.get((arm.name, seed))
        if known is not None and known[0] == mark:
            return known[1]
        record = store.read_record(comparison, arm, seed)
        if record is None:  # damaged, or of another specification: it will be run again
            return None
        timing = read_json(folder / TIMING) or {}
        seconds = float(timing.get("seconds", 0.0))
        ended = _Ended(record["status"], record.get("error", ""), seconds)
        self._ended[arm.name, seed] = mark, ended
        return ended

    def _read_running(self, folder: Path, name: str) -> RunningTrial | None:
        if self._leases is None or not folder.is_dir():
            return None
        if self._leases.find_holder(folder) is None:
            return None
        progress = read_json(folder / PROGRESS) or {}
        began = float(progress.get("began", folder.stat().st_mtime))
        return RunningTrial(
            name=name,
            epoch=int(progress.get("epoch", 0)),
            epochs=int(progress.get("epochs", 0)),
            seconds=max(time.time() - began, 0.0),
        )

    def _count_drivers(self) -> int:
        folder = self.root / DRIVERS
        owners = [path.stem for path in folder.glob("*.json")] if folder.is_dir() else []
        leases = self._leases
        return 0 if leases is None else sum(leases.is_alive(owner) for owner in owners)


def _estimate_left(
    seconds: Sequence[float], running: Sequence[RunningTrial], missing: int
) -> float | None:
    """Return how long the rest takes at the pace of the trials that ended."""
    if not seconds:
        return None
    mean = sum(seconds) / len(seconds)
    begun = sum(trial.epoch / trial.epochs for trial in running if trial.epochs)
    return max(missing - begun, 0.0) * mean / max(len(running), 1)
