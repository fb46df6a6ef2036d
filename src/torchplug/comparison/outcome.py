"""What comes out of a trial."""

import platform
import time
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Outcome:
    """What came out of a trial."""

    record: dict[str, Any]
    """What is equal in every repetition: no clock, no host name."""

    timing: dict[str, Any]
    """When it began, how long it took, and where."""

    leaves_no_metric: bool = False
    """A program ran to its end, and its metric is not where it should be."""


def note_time(began: float) -> dict[str, Any]:
    """Return the timing of a trial that ends now and has no epochs."""
    return {
        "began": began,
        "seconds": time.time() - began,
        "epoch_seconds": [],
        "resumed_at": [],
        "host": platform.node(),
    }
