"""What a display is told while a comparison runs."""

import dataclasses
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

Kind = Literal["begin", "kept", "redo", "start", "epoch", "retry", "end", "stop", "phase"]


@dataclass(frozen=True, kw_only=True)
class Event:
    """What a progress display needs to know."""

    kind: Kind
    """``kept``: a record from an earlier run; ``redo``: a broken or failed one is run again;
    ``retry``: a process died and its trial goes on; ``stop``: trials that are not run, and why;
    ``phase``: more trials were found to be needed, those of the controls of winners."""

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
    seconds: float = 0.0
    """Of the trial that ended."""

    left: float | None = None
    """Estimated seconds to the end of all trials; ``None`` before anything was measured."""


OnEvent = Callable[[Event], None]


def ignore(event: Event) -> None:
    """Tell nobody."""
    del event


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
