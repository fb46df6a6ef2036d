"""Find places in a model, put modules there, and take them out again."""

from torchplug.surgery.attach import find_plugs as find_plugs
from torchplug.surgery.checkpoint import LoadReport as LoadReport
from torchplug.surgery.checkpoint import apply_plan as apply_plan
from torchplug.surgery.checkpoint import load as load
from torchplug.surgery.checkpoint import save as save
from torchplug.surgery.hub import load_from_hub as load_from_hub
from torchplug.surgery.hub import push_to_hub as push_to_hub
from torchplug.surgery.plan import Plan as Plan
from torchplug.surgery.plan import PlannedPlug as PlannedPlug
from torchplug.surgery.plug import plug as plug
from torchplug.surgery.plug import unplug as unplug
from torchplug.surgery.report import PlugReport as PlugReport
from torchplug.surgery.sites import Site as Site
from torchplug.surgery.sites import Sites as Sites
from torchplug.surgery.sites import find_sites as find_sites

__all__ = [
    "LoadReport",
    "Plan",
    "PlannedPlug",
    "PlugReport",
    "Site",
    "Sites",
    "apply_plan",
    "find_plugs",
    "find_sites",
    "load",
    "load_from_hub",
    "plug",
    "push_to_hub",
    "save",
    "unplug",
]
