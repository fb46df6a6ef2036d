"""Controls: arms that tell a module's information from its size, its time and its presence."""

from torchplug.comparison.controls.resolve import Candidate as Candidate
from torchplug.comparison.controls.resolve import find_controls as find_controls
from torchplug.comparison.controls.resolve import resolve_controls as resolve_controls

__all__ = ["Candidate", "find_controls", "resolve_controls"]
