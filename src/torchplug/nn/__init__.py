"""The few primitives that modules share."""

from torchplug.nn.bareness import is_bare_conv as is_bare_conv
from torchplug.nn.batch import check_batch as check_batch
from torchplug.nn.capture import is_exporting as is_exporting
from torchplug.nn.channels import check_channels as check_channels
from torchplug.nn.checkpoints import linear_to_conv as linear_to_conv
from torchplug.nn.checkpoints import rename_matches as rename_matches
from torchplug.nn.choices import check_choice as check_choice
from torchplug.nn.conv_norm_act import ActLayer as ActLayer
from torchplug.nn.conv_norm_act import ConvNormAct as ConvNormAct
from torchplug.nn.conv_norm_act import NormLayer as NormLayer
from torchplug.nn.conv_norm_act import build_act as build_act
from torchplug.nn.conv_norm_act import build_gate as build_gate
from torchplug.nn.conv_norm_act import build_norm as build_norm
from torchplug.nn.conv_norm_act import conv_norm_act as conv_norm_act
from torchplug.nn.conv_norm_act import make_act as make_act
from torchplug.nn.divisors import check_divisible as check_divisible
from torchplug.nn.folding import affine_of as affine_of
from torchplug.nn.folding import replace_weights as replace_weights
from torchplug.nn.identity import IdentityStart as IdentityStart
from torchplug.nn.padding import SamePad2d as SamePad2d
from torchplug.nn.resampling import conv_upsampled as conv_upsampled
from torchplug.nn.resampling import pool_to as pool_to
from torchplug.nn.resetting import reset_layers as reset_layers
from torchplug.nn.sizes import check_fraction as check_fraction
from torchplug.nn.sizes import check_natural as check_natural
from torchplug.nn.sizes import check_number as check_number
from torchplug.nn.sizes import check_odd as check_odd
from torchplug.nn.sizes import check_positive as check_positive
from torchplug.nn.sizes import check_several as check_several
from torchplug.nn.sizes import check_whole as check_whole
from torchplug.nn.weighting import weighted_sum as weighted_sum
from torchplug.nn.widths import hidden_width as hidden_width

__all__ = [
    "ActLayer",
    "ConvNormAct",
    "IdentityStart",
    "NormLayer",
    "SamePad2d",
    "affine_of",
    "build_act",
    "build_gate",
    "build_norm",
    "check_batch",
    "check_channels",
    "check_choice",
    "check_divisible",
    "check_fraction",
    "check_natural",
    "check_number",
    "check_odd",
    "check_positive",
    "check_several",
    "check_whole",
    "conv_norm_act",
    "conv_upsampled",
    "hidden_width",
    "is_bare_conv",
    "is_exporting",
    "linear_to_conv",
    "make_act",
    "pool_to",
    "rename_matches",
    "replace_weights",
    "reset_layers",
    "weighted_sum",
]
