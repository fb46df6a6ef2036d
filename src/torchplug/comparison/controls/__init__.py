"""Controls: arms that tell a module's information from its size, its time and its presence."""

from torchplug.comparison.controls.resolve import Candidate as Candidate
from torchplug.comparison.controls.resolve import find_controls as find_controls
from torchplug.comparison.controls.resolve import name_control as name_control
from torchplug.comparison.controls.resolve import resolve_controls as resolve_controls

__all__ = ["Candidate", "find_controls", "name_control", "resolve_controls"]
