"""Find places in a model, put modules there, and take them out again."""

from torchplug.surgery.attach import find_plugs as find_plugs
from torchplug.surgery.checkpoint import LoadReport as LoadReport
from torchplug.surgery.checkpoint import load as load
from torchplug.surgery.checkpoint import save as save
from torchplug.surgery.checkup import Checkup as Checkup
from torchplug.surgery.checkup import Problem as Problem
from torchplug.surgery.checkup import check as check
from torchplug.surgery.drawing import draw as draw
from torchplug.surgery.find import find_sites as find_sites
from torchplug.surgery.hub import load_from_hub as load_from_hub
from torchplug.surgery.hub import push_to_hub as push_to_hub
from torchplug.surgery.manage import Freeze as Freeze
from torchplug.surgery.manage import disabled as disabled
from torchplug.surgery.manage import freeze_base as freeze_base
from torchplug.surgery.manage import named_plug_parameters as named_plug_parameters
from torchplug.surgery.manage import plug_parameters as plug_parameters
from torchplug.surgery.manage import unfreeze_base as unfreeze_base
from torchplug.surgery.merging import merge_plugs as merge_plugs
from torchplug.surgery.plan import Plan as Plan
from torchplug.surgery.plan import PlannedPlug as PlannedPlug
from torchplug.surgery.plug import plug as plug
from torchplug.surgery.plug import unplug as unplug
from torchplug.surgery.repair import Repair as Repair
from torchplug.surgery.repair import repair as repair
from torchplug.surgery.report import PlugReport as PlugReport
from torchplug.surgery.sites import Site as Site
from torchplug.surgery.sites import Sites as Sites

__all__ = [
    "Checkup",
    "Freeze",
    "LoadReport",
    "Plan",
    "PlannedPlug",
    "PlugReport",
    "Problem",
    "Repair",
    "Site",
    "Sites",
    "check",
    "disabled",
    "draw",
    "find_plugs",
    "find_sites",
    "freeze_base",
    "load",
    "load_from_hub",
    "merge_plugs",
    "named_plug_parameters",
    "plug",
    "plug_parameters",
    "push_to_hub",
    "repair",
    "save",
    "unfreeze_base",
    "unplug",
]
