"""Trials that take no time: what an engine and a driver do can be seen without any training."""

import hashlib
import os
import signal
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from torchplug.comparison import Comparison, Event, Recipe, Variant
from torchplug.comparison.driver import Driver
from torchplug.comparison.engines import Job, Work
from torchplug.comparison.engines.inline import InlineEngine
from torchplug.comparison.lease import Leases
from torchplug.comparison.outcome import Outcome
from torchplug.comparison.progress import Teller
from torchplug.comparison.store import RECORD, Store

DATA = "digest of the data"
Act = Callable[[Job], None]


def make_comparison(*names: str, seeds: int = 3, **more: Any) -> Comparison:
    """A comparison of variants by these names; nothing of it is ever built."""
    variants = tuple(Variant(name=name) for name in names or ("one", "two"))
    settings: dict[str, Any] = {"recipe": Recipe(epochs=4), **more}
    return Comparison(
        model="none", data="none", variants=variants, seeds=tuple(range(seeds)), **settings
    )


def make_outcome(comparison: Comparison, job: Job, value: float | None = None) -> Outcome:
    """An outcome whose value depends on the trial alone."""
    text = f"{job.variant.name} {job.seed}".encode()
    if value is None:
        value = 90 + hashlib.sha256(text).digest()[0] / 256
    record = {
        "format": 2,
        "specification": comparison.digest(job.variant, job.seed),
        "variant": job.variant.name,
        "control": job.variant.control,
        "of": job.variant.of,
        "seed": job.seed,
        "status": "finished",
        "error": "",
        "value": value,
        "metrics": {"accuracy": value},
        "data": DATA,
    }
    return Outcome(record, {"began": time.time(), "seconds": 0.0})


def begin(comparison: str, notes: str) -> tuple[Comparison, Path]:
    import json

    return Comparison.from_dict(json.loads(comparison)), Path(notes)


def act(state: tuple[Comparison, Path], job: Job, report: Callable[[int], None]) -> Outcome:
    """Note that the trial ran, and behave as its name says."""
    comparison, notes = state
    tries = len(list(notes.glob(f"{job.variant.name}-{job.seed}-*")))
    (notes / f"{job.variant.name}-{job.seed}-{tries}-{os.getpid()}").touch()
    if job.seed == 0 and (job.variant.name == "always" or (job.variant.name, tries) == ("once", 0)):
        os.kill(os.getpid(), signal.SIGKILL)
    for name in ("checkpoint.ckpt", "logs/metrics.csv"):
        path = Path(job.folder, name)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(job.name)
    report(1)
    return make_outcome(comparison, job)


def make_work(comparison: Comparison, notes: Path) -> Work:
    notes.mkdir(exist_ok=True)
    return Work(begin, (comparison.to_json(), str(notes)), act)


def count_tries(notes: Path) -> dict[tuple[str, int], int]:
    found: dict[tuple[str, int], int] = {}
    for path in notes.iterdir():
        name, seed, *_ = path.name.rsplit("-", 3)
        found[name, int(seed)] = found.get((name, int(seed)), 0) + 1
    return found


def read_records(root: Path) -> dict[str, bytes]:
    """Every record of a run, by its folder."""
    found = sorted((root / "trials").glob(f"*/{RECORD}"))
    return {path.parent.name: path.read_bytes() for path in found}


class Session:
    """One driver with its leases; what it tells is kept."""

    def __init__(self, comparison: Comparison, root: Path, **more: Any) -> None:
        self.events: list[Event] = []
        self.leases = Leases(root, **more.pop("leases", {}))
        teller = Teller(self.events.append, 1)
        self.driver = Driver(comparison, DATA, Store(root), self.leases, teller, **more)

    def run(self, work: Work, engine: Any = None, arms: Sequence[Variant] = ()) -> Driver:
        with self.leases:
            self.driver.plan(arms or self.driver.comparison.arms)
            engine = engine or InlineEngine(work, lambda job, epoch: None)
            try:
                self.driver.run(engine)
            finally:
                engine.stop()
        return self.driver

    def kinds(self) -> list[str]:
        return [event.kind for event in self.events]


def make_local_work(comparison: Comparison, do: Act = lambda job: None) -> Work:
    """Work for this process: ``do`` is called in each trial."""

    def run(state: None, job: Job, report: Callable[[int], None]) -> Outcome:
        do(job)
        return make_outcome(comparison, job)

    return Work(lambda: None, (), run)


def run_in_threads(*targets: Callable[[], Any]) -> None:
    threads = [threading.Thread(target=target) for target in targets]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
        assert not thread.is_alive()


def check_deaths(session: Session, notes: Path) -> None:
    """What must come of ``act`` with the variants once and always, two seeds of each."""
    known = {key: known.status for key, known in session.driver.known.items()}
    assert [key for key, status in known.items() if status != "finished"] == [("always", 0)]
    assert len(known) == len(read_records(session.driver.store.root)) == 8
    tries = count_tries(notes)
    assert tries.pop(("once", 0)) == 2
    assert tries.pop(("always", 0)) == 3
    assert set(tries.values()) == {1}
    assert session.kinds().count("retry") == 3
