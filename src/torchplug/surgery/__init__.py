"""Find places in a model, put modules there, and take them out again."""

from torchplug.surgery.attach import find_plugs as find_plugs
from torchplug.surgery.find import find_sites as find_sites
from torchplug.surgery.plan import Plan as Plan
from torchplug.surgery.plan import PlannedPlug as PlannedPlug
from torchplug.surgery.plug import plug as plug
from torchplug.surgery.plug import unplug as unplug
from torchplug.surgery.report import PlugReport as PlugReport
from torchplug.surgery.sites import Site as Site
from torchplug.surgery.sites import Sites as Sites

__all__ = [
    "Plan",
    "PlannedPlug",
    "PlugReport",
    "Site",
    "Sites",
    "find_plugs",
    "find_sites",
    "plug",
    "unplug",
]
