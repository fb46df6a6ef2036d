"""Fold a batch norm into the convolution before it.

In evaluation a batch norm is affine in each channel, so behind a convolution it only scales and
shifts what the kernel makes::

    g · (W x + b - mean) / sqrt(var + eps) + beta  =  (s W) x + (s (b - mean) + beta)
    with s = g / sqrt(var + eps), one number for each output channel

Whether the norm is the only reader of the convolution's output is a matter of the network around
them and not known here.
"""

import copy
from typing import TypeVar

import torch
from torch import Tensor, nn

from torchplug.errors import UsageError, explain
from torchplug.nn import affine_of, replace_weights

_TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
_PLAIN = (nn.Conv1d, nn.Conv2d, nn.Conv3d, *_TRANSPOSED)

Conv = TypeVar(
    "Conv",
    nn.Conv1d,
    nn.Conv2d,
    nn.Conv3d,
    nn.ConvTranspose1d,
    nn.ConvTranspose2d,
    nn.ConvTranspose3d,
)


@torch.no_grad()
def fold_conv_bn(conv: Conv, bn: nn.Module) -> Conv:
    """Return one convolution that computes ``bn(conv(x))`` in evaluation mode.

    Both are left as they are. The result is a copy of ``conv`` with its stride, padding, padding
    mode, dilation, groups, device and type; the products are made in float32 at least. It has a
    bias whether ``conv`` has one or not.

    Args:
        conv: a convolution or a transposed convolution over 1, 2 or 3 dimensions, with any groups.
        bn: a batch norm of its outputs, in evaluation mode and with running statistics; with or
            without weights.

    Raises:
        UsageError: if the two do more than that (other classes of layers, forwards of their own,
            hooks in between, parametrized weights), if the norm is in training mode or has no
            running statistics, or if their widths differ.

    >>> conv, bn = nn.Conv2d(3, 8, 3, bias=False), nn.BatchNorm2d(8).eval()
    >>> folded, x = fold_conv_bn(conv, bn), torch.randn(1, 3, 9, 7)
    >>> bool(torch.allclose(folded(x), bn(conv(x)), atol=1e-6))
    True
    """
    _check_conv(conv)
    scale, shift = affine_of(bn)
    if len(scale) != conv.out_channels:
        got = f"{conv.out_channels} output channels and a norm of {len(scale)}"
        rule = "a norm folds into the convolution whose output it reads"
        raise UsageError(explain(rule, got, "pass layers that follow each other"))
    bias = shift if conv.bias is None else scale * conv.bias + shift
    return replace_weights(copy.deepcopy(conv), _scale_outputs(conv, scale), bias)


def _scale_outputs(conv: Conv, scale: Tensor) -> Tensor:
    """The weight of ``conv`` with every output channel scaled."""
    ones = (1,) * len(conv.kernel_size)
    if not isinstance(conv, _TRANSPOSED):
        return conv.weight * scale.view(-1, 1, *ones)
    # (inputs, outputs of a group, ...): the same columns are other outputs in each group
    grouped = conv.weight.view(conv.groups, -1, *conv.weight.shape[1:])
    return (grouped * scale.view(conv.groups, 1, -1, *ones)).flatten(0, 1)


def _check_conv(conv: nn.Module) -> None:
    own = next((kind.forward for kind in _PLAIN if isinstance(conv, kind)), None)
    got = ""
    if own is None:
        got = type(conv).__name__
    elif type(conv).forward is not own or "forward" in vars(conv):
        got = f"{type(conv).__name__} with a forward of its own"
    elif conv._forward_hooks:
        got = f"{type(conv).__name__} with forward hooks"
    elif "weight" not in conv._parameters:
        got = f"{type(conv).__name__} with a parametrized weight"
    if got:
        rule = "only a plain convolution takes in the norm after it"
        fix = "fold before changing it (remove_parametrizations, unplug), or leave it as it is"
        raise UsageError(explain(rule, got, fix))
