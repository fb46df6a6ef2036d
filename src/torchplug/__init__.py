"""torchplug: put a module into a network that already exists, and learn whether it helped.

``sites`` shows where a module can go, ``plug`` puts it there without touching the network's source
or weights, ``compare`` trains baseline and variants on paired seeds and says what was found.
"""

from typing import TYPE_CHECKING, Any

from torchplug import hosts as hosts
from torchplug._version import __version__ as __version__
from torchplug.catalog import cards as cards
from torchplug.catalog import convert_state_dict as convert_state_dict
from torchplug.catalog import get_card as get_card
from torchplug.errors import MissingExtra as MissingExtra
from torchplug.errors import PlugError as PlugError
from torchplug.errors import TorchplugError as TorchplugError
from torchplug.errors import UsageError as UsageError
from torchplug.modules import *  # noqa: F403
from torchplug.programs import apply_plan as apply_plan
from torchplug.surgery import LoadReport as LoadReport
from torchplug.surgery import Plan as Plan
from torchplug.surgery import PlugReport as PlugReport
from torchplug.surgery import check as check
from torchplug.surgery import disabled as disabled
from torchplug.surgery import draw as draw
from torchplug.surgery import find_plugs as find_plugs
from torchplug.surgery import find_sites as sites  # noqa: F401 - its public name
from torchplug.surgery import freeze_base as freeze_base
from torchplug.surgery import load as load
from torchplug.surgery import load_from_hub as load_from_hub
from torchplug.surgery import merge_plugs as merge_plugs
from torchplug.surgery import named_plug_parameters as named_plug_parameters
from torchplug.surgery import plug as plug
from torchplug.surgery import plug_parameters as plug_parameters
from torchplug.surgery import push_to_hub as push_to_hub
from torchplug.surgery import repair as repair
from torchplug.surgery import save as save
from torchplug.surgery import unfreeze_base as unfreeze_base
from torchplug.surgery import unplug as unplug

if TYPE_CHECKING:
    from torchplug.comparison import compare as compare


def __dir__() -> list[str]:
    # what completion offers: the lazy name too, and nothing that is here for annotations only
    return sorted({*globals(), "compare"} - {"Any", "TYPE_CHECKING"})


def __getattr__(name: str) -> Any:
    # `compare` needs the extra of the same name: it is imported when it is first asked for
    if name == "compare":
        from torchplug.comparison import compare

        return compare
    raise AttributeError(f"module 'torchplug' has no attribute {name!r}")
