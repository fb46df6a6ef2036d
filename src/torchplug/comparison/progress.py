"""What a display is told while a comparison runs."""

import dataclasses
import shlex
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Literal

Kind = Literal["begin", "kept", "redo", "start", "epoch", "retry", "end", "stop", "phase", "over"]


@dataclass(frozen=True, kw_only=True)
class Event:
    """What a progress display needs to know."""

    kind: Kind
    """``kept``: a record from an earlier run; ``redo``: a broken or failed one is run again;
    ``retry``: a process died and its trial goes on; ``stop``: trials that are not run, and why;
    ``phase``: more trials were found to be needed, those of the controls of winners; ``over``: all
    was done that could be."""

    done: int
    total: int
    """Trials, those of earlier runs included."""

    trial: str = ""
    """Such as ``se, seed 3``."""

    epoch: int = 0
    epochs: int = 0
    status: str = ""
    """How a trial ended: ``finished``, ``diverged`` or ``failed``."""

    message: str = ""
    """Why, in words, told once of trials that fail alike; the run's directory when it is over."""

    seconds: float = 0.0
    """Of the trial that ended."""

    left: float | None = None
    """Estimated seconds to the end of all trials; ``None`` before anything was measured."""


OnEvent = Callable[[Event], None]


def ignore(event: Event) -> None:
    """Tell nobody."""
    del event


def print_event(event: Event) -> None:
    """Tell whoever called from Python, by one line on stderr for each trial that ends."""
    if event.kind == "begin":
        there = f", {event.done} of them there from an earlier run" if event.done else ""
        text = f"{event.total} trials{there}"
    elif event.kind == "end":
        text = f"{event.done} of {event.total}  {_describe_end(event)}"
    elif event.kind == "over":
        text = f"write the report: torchplug report {shlex.quote(event.message)}"
    else:
        text = describe_step(event)
    if text:
        sys.stderr.write(f"{text}\n")
        sys.stderr.flush()


def _describe_end(event: Event) -> str:
    text = describe_step(event) or f"{event.trial}: {event.status}"
    left = "" if event.left is None else f", left {_show_time(event.left)}"
    return f"{text}, {_show_time(event.seconds)}{left}"


def _show_time(seconds: float) -> str:
    return str(timedelta(seconds=round(seconds)))


def describe_step(event: Event) -> str:
    """Return what any display says of an event; empty for one that goes as it should.

    >>> describe_step(Event(kind="end", done=1, total=8, trial="se, seed 0", status="diverged"))
    'se, seed 0: diverged'
    """
    if event.kind == "end" and event.status != "finished":
        return ": ".join(filter(None, (event.trial, event.status, event.message)))
    told = {
        "redo": f"{event.trial}: its record is not usable, run again",
        "retry": f"{event.trial}: its process died ({event.message}), goes on",
        "stop": f"{event.trial} stopped {event.message}".strip(),
        "phase": event.message,
    }
    return told.get(event.kind, "")


@dataclass
class Teller:
    """Counts trials and tells a display, with the time left."""

    on_event: OnEvent
    epochs: int
    total: int = 0
    done: int = 0
    _here: float = 0.0  # trials that ended since the start
    _partial: dict[str, float] = field(default_factory=dict)
    _began: float = field(default_factory=time.monotonic)

    def tell(self, kind: Kind, trial: str = "", *, epoch: int = 0, status: str = "",
             message: str = "", seconds: float = 0.0) -> None:  # fmt: skip
        """Count a step and tell the display."""
        if kind == "epoch":
            self._partial[trial] = min(epoch / max(self.epochs, 1), 1.0)
        elif kind == "end":
            self.done += 1
            self._here += 1
            self._partial.pop(trial, None)
        event = Event(
            kind=kind,
            done=self.done,
            total=self.total,
            epochs=self.epochs,
            trial=trial,
            epoch=epoch,
            status=status,
            message=message,
            seconds=seconds,
        )
        self.on_event(dataclasses.replace(event, left=self.estimate_left()))

    def estimate_left(self) -> float | None:
        """Return the seconds that the rest takes at the pace so far."""
        partial = sum(self._partial.values())
        run = self._here + partial
        if run <= 0:
            return None
        pace = (time.monotonic() - self._began) / run
        return max(self.total - self.done - partial, 0.0) * pace
