"""Start the module in a convolution's place from the convolution's kernel.

Each module takes over of the old kernel what its own kernels can hold. Norms and activations inside
a module, and the choice between branches, make the start an approximation; how far it is from the
old output is measured on the example and reported.
"""

from collections.abc import Callable
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor, nn

from torchplug.modules import (
    AsymmetricConv,
    MixConv,
    SelectiveKernel,
    SeparableConv,
    SplitAttention,
)
from torchplug.surgery.skeleton import spread_groups


@torch.no_grad()
def seed_from(module: nn.Module, conv: nn.Conv2d) -> bool:
    """Start ``module`` from the kernel and the bias of ``conv``; return whether it is known how.

    >>> module, conv = MixConv(8, wiring="depthwise"), nn.Conv2d(8, 8, 3, padding=1, groups=8)
    >>> seed_from(module, conv)
    True
    >>> bool((module.branches[0].weight == conv.weight[:4]).all())
    True
    """
    seed = next((seed for kind, seed in _SEEDS.items() if isinstance(module, kind)), None)
    if seed is None:
        return False
    bias = None if conv.bias is None else conv.bias.detach().cpu().float()
    kernel = spread_groups(conv.weight.detach().cpu().float(), conv)
    seed(module, kernel, conv, bias)
    return True


def _project(kernel: Tensor, conv: nn.Conv2d, first_input: int = 0) -> Tensor:
    """The part of a spread kernel that the groups of ``conv`` see."""
    inner, outer = conv.in_channels // conv.groups, conv.out_channels // conv.groups
    rows = torch.arange(conv.out_channels)[:, None]
    return kernel[rows, first_input + rows // outer * inner + torch.arange(inner)]


def _fit_taps(kernel: Tensor, old: nn.Conv2d, new: nn.Conv2d) -> Tensor:
    """The taps of a kernel in the frame of another.

    Frames with as many taps take them as they are, though these may lie further apart; another
    frame takes the taps at the same places: a larger one has zeros around, a smaller one crops.
    """
    if old.kernel_size == new.kernel_size:
        return kernel
    fitted = kernel.new_zeros(*kernel.shape[:2], *new.kernel_size)
    sides = [_shared_taps(old, new, axis) for axis in (0, 1)]
    for new_row, old_row in sides[0]:
        for new_column, old_column in sides[1]:
            fitted[..., new_row, new_column] = kernel[..., old_row, old_column]
    return fitted


def _shared_taps(old: nn.Conv2d, new: nn.Conv2d, axis: int) -> list[tuple[int, int]]:
    places = [
        {conv.dilation[axis] * (2 * tap - size + 1): tap for tap in range(size)}
        for conv in (new, old)
        for size in (conv.kernel_size[axis],)
    ]
    return [(tap, places[1][place]) for place, tap in places[0].items() if place in places[1]]


def _add_bias(bias: Tensor | None, *layers: nn.Module | None) -> None:
    """Give the old bias to the first layer that can hold one."""
    for layer in layers:
        own = getattr(layer, "bias", None)
        if isinstance(own, Tensor):
            own.copy_(torch.zeros_like(own) if bias is None else bias)
            return


def _seed_asymmetric(
    module: AsymmetricConv, kernel: Tensor, conv: nn.Conv2d, bias: Tensor | None
) -> None:
    """The square kernel is the old one; the row and the column are what they are."""
    module.square.weight.copy_(_fit_taps(_project(kernel, module.square), conv, module.square))
    _add_bias(bias, module.square_norm)


def _seed_separable(
    module: SeparableConv, kernel: Tensor, conv: nn.Conv2d, bias: Tensor | None
) -> None:
    """The nearest separable kernel, by a singular value decomposition for each input.

    What an input gives to all outputs is a matrix (outputs, taps); its first singular vectors are
    the depthwise kernel and the column of the 1x1 mix, several with a multiplier. Each depthwise
    kernel has unit length and a positive sum, so that an activation between the two passes most of
    what it makes of a map that is not negative.
    """
    kernel = _fit_taps(kernel, conv, module.depthwise)
    multiplier = module.depthwise.out_channels // module.in_channels
    outputs, singular, taps = torch.linalg.svd(
        kernel.flatten(2).transpose(0, 1), full_matrices=False
    )
    rank = min(multiplier, singular.shape[1])
    sign = taps[:, :rank].sum(2).sign()
    sign = sign.where(sign != 0, 1)
    depthwise = taps.new_zeros(module.in_channels, multiplier, taps.shape[2])
    depthwise[:, :rank] = taps[:, :rank] * sign[..., None]
    pointwise = taps.new_zeros(module.in_channels, multiplier, module.out_channels)
    mixed = outputs[..., :rank] * (singular[:, :rank] * sign)[:, None]
    pointwise[:, :rank] = mixed.transpose(1, 2)
    module.depthwise.weight.copy_(depthwise.reshape(module.depthwise.weight.shape))
    module.pointwise.weight.copy_(pointwise.flatten(0, 1).T[..., None, None])
    _add_bias(None, module.depthwise)
    _add_bias(bias, module.pointwise_norm, module.pointwise)


def _seed_selective(
    module: SelectiveKernel, kernel: Tensor, conv: nn.Conv2d, bias: Tensor | None
) -> None:
    """Each branch holds the old kernel, at its own dilation or size; all weigh the same."""
    for branch in module.branches:
        own: Any = branch.get_submodule("conv")
        own.weight.copy_(_fit_taps(_project(kernel, own), conv, own))
        _add_bias(bias, getattr(branch, "norm", None))
    nn.init.zeros_(module.select.weight)


def _seed_split(
    module: SplitAttention, kernel: Tensor, conv: nn.Conv2d, bias: Tensor | None
) -> None:
    """Each split holds the part of the old kernel for the inputs it sees.

    Times the number of splits, because each weighs one over that number at first: their weighted
    sum is the old convolution but for norm and activation.
    """
    kernels = torch.cat([kernel * module.radix] * module.radix)
    own = module.conv
    own.weight.copy_(_fit_taps(_project(kernels, own), conv, own))
    _add_bias(None if bias is None else bias.repeat(module.radix), module.norm)
    nn.init.zeros_(module.select.weight)
    _add_bias(None, module.select)


def _seed_mixed(module: MixConv, kernel: Tensor, conv: nn.Conv2d, bias: Tensor | None) -> None:
    """Each kernel holds the old one with zeros around it, or the old one's middle."""
    widths = module.in_shares[:-1] if module.splits_input else [0] * (len(module.in_shares) - 1)
    first_output = 0
    for branch, first_input in zip(module.branches, accumulate(widths, initial=0), strict=True):
        own: Any = branch
        rows = slice(first_output, first_output + own.out_channels)
        first_output += own.out_channels
        own.weight.copy_(_fit_taps(_project(kernel[rows], own, first_input), conv, own))
        _add_bias(None if bias is None else bias[rows], own)


_SEEDS: dict[type[nn.Module], Callable[..., None]] = {
    AsymmetricConv: _seed_asymmetric,
    SeparableConv: _seed_separable,
    SelectiveKernel: _seed_selective,
    SplitAttention: _seed_split,
    MixConv: _seed_mixed,
}
