"""Run the trials that are missing: one after another in this process, or several at once."""

import dataclasses
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Literal

from torchplug.comparison.arms import Study
from torchplug.comparison.pool import Job, Work, run_pool
from torchplug.comparison.spec import Variant
from torchplug.comparison.store import Store, is_sealed, read_json, seal, write_json
from torchplug.comparison.trial import run_trial


@dataclass(frozen=True, kw_only=True)
class Event:
    """What a progress display needs to know."""

    kind: Literal["begin", "kept", "redo", "start", "epoch", "end"]
    """``kept``: a record from an earlier run; ``redo``: a broken or failed one is run again."""

    done: int
    total: int
    """Trials, those of earlier runs included."""

    trial: str = ""
    epoch: int = 0
    epochs: int = 0
    status: str = ""
    seconds: float = 0.0


OnEvent = Callable[[Event], None]


def run_missing(
    study: Study, store: Store, on_event: OnEvent, *, work: Work | None = None, workers: int = 1
) -> list[dict[str, Any]]:
    """Run every trial without a valid record and return all records, in the order of the plan.

    Args:
        study: what is compared.
        store: where the records are.
        on_event: told of every step.
        work: how another process makes the study, for more than one worker.
        workers: processes; one runs the trials here.
    """
    trials = {(variant.name, seed): variant for variant, seed in study.comparison.trials()}
    kept = {job: _read_record(study, store, trials[job], job[1]) for job in trials}
    done = sum(record is not None for record in kept.values())
    told = _Told(on_event, total=len(trials), epochs=study.comparison.recipe.epochs, done=done)
    told.tell("begin")
    for job, record in kept.items():
        if record is not None:
            told.tell("kept", job)
        elif store.trial_path(trials[job], job[1]).exists():
            told.tell("redo", job)
    missing = [job for job, record in kept.items() if record is None]
    run = _run_here(study, store, told) if work is None else _run_elsewhere(work, workers, told)
    for job, death in run(missing):
        trial = trials[job], job[1]
        record = read_json(store.trial_path(*trial)) if death is None else None
        record = record or _store_failure(study, store, *trial, str(death))
        kept[job] = record
        told.done += 1
        seconds = (read_json(store.timing_path(*trial)) or {}).get("seconds", 0.0)
        told.tell("end", job, status=record["status"], seconds=seconds)
    return [record for record in kept.values() if record is not None]


Ended = Iterator[tuple[Job, str | None]]


@dataclass
class _Told:
    """Tells a display what happens."""

    on_event: OnEvent
    total: int
    epochs: int
    done: int

    def tell(self, kind: Any, job: Job | None = None, **more: Any) -> None:
        trial = "" if job is None else f"{job[0]}, seed {job[1]}"
        event = Event(kind=kind, done=self.done, total=self.total, epochs=self.epochs, trial=trial)
        self.on_event(dataclasses.replace(event, **more))


def _run_here(study: Study, store: Store, told: _Told) -> Callable[[list[Job]], Ended]:
    arms = {variant.name: variant for variant in study.comparison.arms}

    def run(missing: list[Job]) -> Ended:
        for job in missing:
            told.tell("start", job)

            def on_epoch(epoch: int, job: Job = job) -> None:
                told.tell("epoch", job, epoch=epoch)

            run_and_store(study, store, arms[job[0]], job[1], on_epoch)
            yield job, None

    return run


def _run_elsewhere(work: Work, workers: int, told: _Told) -> Callable[[list[Job]], Ended]:
    def run(missing: list[Job]) -> Ended:
        for job in missing[:workers]:
            told.tell("start", job)
        yield from run_pool(work, missing, workers)

    return run


def _read_record(study: Study, store: Store, variant: Variant, seed: int) -> dict[str, Any] | None:
    """Return the record of a trial if it is whole, of this specification, and no failure."""
    record = read_json(store.trial_path(variant, seed))
    if not isinstance(record, dict) or not is_sealed(record):
        return None
    is_ours = record.get("specification") == study.comparison.digest(variant, seed)
    is_result = record.get("status") in {"finished", "diverged"}
    same_data = record.get("data") == study.data.digest
    return record if is_ours and is_result and same_data else None


def run_and_store(
    study: Study,
    store: Store,
    variant: Variant,
    seed: int,
    on_epoch: Callable[[int], None] | None = None,
) -> None:
    """Run one trial and write its record; a failure is recorded too, and run again next time."""
    began = time.time()
    try:
        record = seal(run_trial(study, variant, seed, on_epoch))
    except Exception as error:  # whatever a user's model raises is this trial's failure only
        _store_failure(study, store, variant, seed, f"{type(error).__name__}: {error}", began)
        return
    _store(store, variant, seed, record, began)


def _store_failure(
    study: Study, store: Store, variant: Variant, seed: int, error: str, began: float | None = None
) -> dict[str, Any]:
    record = seal(
        {
            "format": 1,
            "specification": study.comparison.digest(variant, seed),
            "variant": variant.name,
            "seed": seed,
            "status": "failed",
            "error": error,
            "data": study.data.digest,
        }
    )
    _store(store, variant, seed, record, time.time() if began is None else began)
    return record


def _store(store: Store, variant: Variant, seed: int, record: dict[str, Any], began: float) -> None:
    timing = {"began": began, "seconds": time.time() - began}
    write_json(store.timing_path(variant, seed), timing)
    write_json(store.trial_path(variant, seed), record)  # last: a record has its timing
