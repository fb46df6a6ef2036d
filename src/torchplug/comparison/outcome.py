"""What comes out of a trial."""

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Outcome:
    """What came out of a trial."""

    record: dict[str, Any]
    """What is equal in every repetition: no clock, no host name."""

    timing: dict[str, Any]
    """When it began, how long it took, and where."""
