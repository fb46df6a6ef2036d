"""What is done to a model so that it controls for a module: its information cut, or only its size.

``placebo`` keeps a module and cuts what it learns of the image; ``widening`` gives the bare network
more channels; ``matching`` finds how many. Nothing here needs more than torch, so that a training
script of the user's own can do it where only torch is installed.
"""

from torchplug.controls.matching import CLOSE as CLOSE
from torchplug.controls.matching import Match as Match
from torchplug.controls.matching import match_parameters as match_parameters
from torchplug.controls.placebo.cut import cut_plugs as cut_plugs
from torchplug.controls.widening.widen import widen as widen

__all__ = ["CLOSE", "Match", "cut_plugs", "match_parameters", "widen"]
