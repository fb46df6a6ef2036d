"""Every trial of a run as a row, in the page and in ``trials.csv``."""

import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torchplug.reporting.view import View

_FORMULA = ("=", "+", "-", "@", "\t", "\r")


@dataclass(frozen=True)
class ListedTrial:
    """One trial as a reader wants it."""

    variant: str
    seed: int
    status: str
    value: float | None
    wrong: int | None
    seconds: float | None
    resumed_at: tuple[int, ...]
    host: str
    error: str


COLUMNS = ("variant", "seed", "status", "value", "wrong", "seconds", "resumed_at", "host", "error")


def list_trials(view: View) -> list[ListedTrial]:
    """Return all trials in the order of the records."""
    return [_read(view, record) for record in view.run.records]


def _read(view: View, record: Any) -> ListedTrial:
    timing = view.timing_of(record["variant"], record["seed"])
    errors = record.get("errors")
    return ListedTrial(
        variant=record["variant"],
        seed=record["seed"],
        status=record["status"],
        value=record.get("value"),
        wrong=len(errors) if errors is not None else None,
        seconds=timing.get("seconds"),
        resumed_at=tuple(int(epoch) for epoch in timing.get("resumed_at", ())),
        host=str(timing.get("host") or ""),
        error=str(record.get("error") or ""),
    )


def write_csv(trials: Sequence[ListedTrial]) -> str:
    """Return the table of trials as CSV text.

    A text that a spreadsheet would run as a formula gets an apostrophe in front of it.
    """
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(COLUMNS)
    for trial in trials:
        writer.writerow([_to_text(getattr(trial, name)) for name in COLUMNS])
    return buffer.getvalue()


def _to_text(value: Any) -> Any:
    if isinstance(value, tuple):
        return " ".join(map(str, value))
    if isinstance(value, str):
        return f"'{value}" if value.startswith(_FORMULA) else value
    return "" if value is None else value
