"""Run the trials that are missing, one after another in this process."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from torchplug.comparison.spec import Variant
from torchplug.comparison.store import Store, is_sealed, read_json, seal, write_json
from torchplug.comparison.trial import Study, run_trial


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


def run_missing(study: Study, store: Store, on_event: OnEvent) -> list[dict[str, Any]]:
    """Run every trial without a valid record and return all records, in the order of the plan."""
    comparison = study.comparison
    trials = list(comparison.trials())
    total, epochs = len(trials), comparison.recipe.epochs
    records = [_read_record(study, store, variant, seed) for variant, seed in trials]
    done = sum(record is not None for record in records)
    on_event(Event(kind="begin", done=done, total=total, epochs=epochs))
    for index, (variant, seed) in enumerate(trials):
        name = f"{variant.name}, seed {seed}"
        if records[index] is not None:
            on_event(Event(kind="kept", done=done, total=total, trial=name))
            continue
        if store.trial_path(variant, seed).exists():
            on_event(Event(kind="redo", done=done, total=total, trial=name))
        on_event(Event(kind="start", done=done, total=total, trial=name, epochs=epochs))

        def on_epoch(epoch: int, name: str = name, done: int = done) -> None:
            event = Event(
                kind="epoch", done=done, total=total, trial=name, epoch=epoch, epochs=epochs
            )
            on_event(event)

        began = time.time()
        record = _run_and_store(study, store, variant, seed, on_epoch)
        records[index] = record
        done += 1
        on_event(
            Event(
                kind="end",
                done=done,
                total=total,
                trial=name,
                status=record["status"],
                seconds=time.time() - began,
                epochs=epochs,
            )
        )
    return [record for record in records if record is not None]


def _read_record(study: Study, store: Store, variant: Variant, seed: int) -> dict[str, Any] | None:
    """Return the record of a trial if it is whole, of this specification, and no failure."""
    record = read_json(store.trial_path(variant, seed))
    if not isinstance(record, dict) or not is_sealed(record):
        return None
    is_ours = record.get("specification") == study.comparison.digest(variant, seed)
    is_result = record.get("status") in {"finished", "diverged"}
    same_data = record.get("data") == study.data.digest
    return record if is_ours and is_result and same_data else None


def _run_and_store(
    study: Study, store: Store, variant: Variant, seed: int, on_epoch: Callable[[int], None]
) -> dict[str, Any]:
    """Run one trial and write its record; a failure is recorded too, and run again next time."""
    began = time.time()
    try:
        record = run_trial(study, variant, seed, on_epoch)
    except Exception as error:  # whatever a user's model raises is this trial's failure only
        record = {
            "format": 1,
            "specification": study.comparison.digest(variant, seed),
            "variant": variant.name,
            "seed": seed,
            "status": "failed",
            "error": f"{type(error).__name__}: {error}",
            "data": study.data.digest,
        }
    record = seal(record)
    timing = {"began": began, "seconds": time.time() - began}
    write_json(store.timing_path(variant, seed), timing)
    write_json(store.trial_path(variant, seed), record)  # last: a record has its timing
    return record
