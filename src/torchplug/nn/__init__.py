"""The few primitives that modules share."""

from torchplug.nn.batch import check_batch as check_batch
from torchplug.nn.checkpoints import linear_to_conv as linear_to_conv
from torchplug.nn.choices import check_choice as check_choice
from torchplug.nn.identity import IdentityStart as IdentityStart
from torchplug.nn.widths import hidden_width as hidden_width

__all__ = ["IdentityStart", "check_batch", "check_choice", "hidden_width", "linear_to_conv"]
