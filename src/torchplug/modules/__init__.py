"""The modules of the catalogue, one file a paper."""

from torchplug.modules.aspp import ASPP as ASPP
from torchplug.modules.asymmetric_conv import AsymmetricConv as AsymmetricConv
from torchplug.modules.bam import BAM as BAM
from torchplug.modules.blaze_block import BlazeBlock as BlazeBlock
from torchplug.modules.cbam import CBAM as CBAM
from torchplug.modules.cbam import ChannelGate as ChannelGate
from torchplug.modules.cbam import SpatialGate as SpatialGate
from torchplug.modules.concurrent_se import ConcurrentSE as ConcurrentSE
from torchplug.modules.concurrent_se import SpatialExcite as SpatialExcite
from torchplug.modules.criss_cross import CrissCross as CrissCross
from torchplug.modules.global_context import GlobalContext as GlobalContext
from torchplug.modules.mix_conv import MixConv as MixConv
from torchplug.modules.mixed_pooling import MixedPooling as MixedPooling
from torchplug.modules.mixed_pooling import StripPoolingHead as StripPoolingHead
from torchplug.modules.non_local import NonLocal as NonLocal
from torchplug.modules.pyramid_pooling import PyramidPooling as PyramidPooling
from torchplug.modules.receptive_field_block import RFB as RFB
from torchplug.modules.selective_kernel import SelectiveKernel as SelectiveKernel
from torchplug.modules.semantic_embedding import SemanticEmbedding as SemanticEmbedding
from torchplug.modules.separable_conv import SeparableConv as SeparableConv
from torchplug.modules.split_attention import SplitAttention as SplitAttention
from torchplug.modules.spp import SpatialPyramidPooling as SpatialPyramidPooling
from torchplug.modules.squeeze_excite import SqueezeExcite as SqueezeExcite
from torchplug.modules.ssh_context import SSH as SSH
from torchplug.modules.strip_pooling import StripPooling as StripPooling

__all__ = [
    "ASPP",
    "BAM",
    "CBAM",
    "RFB",
    "SSH",
    "AsymmetricConv",
    "BlazeBlock",
    "ChannelGate",
    "ConcurrentSE",
    "CrissCross",
    "GlobalContext",
    "MixConv",
    "MixedPooling",
    "NonLocal",
    "PyramidPooling",
    "SelectiveKernel",
    "SemanticEmbedding",
    "SeparableConv",
    "SpatialExcite",
    "SpatialGate",
    "SpatialPyramidPooling",
    "SplitAttention",
    "SqueezeExcite",
    "StripPooling",
    "StripPoolingHead",
]
