"""The modules of the catalogue, one file a paper."""

from torchplug.modules.bam import BAM as BAM
from torchplug.modules.cbam import CBAM as CBAM
from torchplug.modules.cbam import ChannelGate as ChannelGate
from torchplug.modules.cbam import SpatialGate as SpatialGate
from torchplug.modules.concurrent_se import ConcurrentSE as ConcurrentSE
from torchplug.modules.concurrent_se import SpatialExcite as SpatialExcite
from torchplug.modules.global_context import GlobalContext as GlobalContext
from torchplug.modules.non_local import NonLocal as NonLocal
from torchplug.modules.squeeze_excite import SqueezeExcite as SqueezeExcite

__all__ = [
    "BAM",
    "CBAM",
    "ChannelGate",
    "ConcurrentSE",
    "GlobalContext",
    "NonLocal",
    "SpatialExcite",
    "SpatialGate",
    "SqueezeExcite",
]
