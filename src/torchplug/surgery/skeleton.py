"""What can stand beside a convolution of the host and starts at zero, to become one with it later.

ACNet's row and column stand beside the host's convolution, which stays the square kernel.

``y = host(x) + BN(conv_1xK(x)) + BN(conv_Kx1(x))``, both norms multiplying by zero at the start, so
the output is the host's. The host's own norm, where one follows, stays behind the sum. In the paper
each of the three convolutions has a norm and nothing follows the sum: there are as many parameters,
and in evaluation mode, where the host's norm is affine and moves into all three, it is the same
function. In training the sum is normalized once more.

MixConv's kernels stand beside it as what is added to each share of the outputs; with the host's
kernel in the middle of each, the sum is a mixed convolution.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from torchplug.errors import PlugError, explain
from torchplug.modules import AsymmetricConv, MixConv
from torchplug.nn import affine_of, replace_weights


class KernelSkeleton(nn.Module):
    """The row and the column of an asymmetric convolution, with their norms.

    Args:
        block: whose row and column to take; its square kernel is left behind.
    """

    def __init__(self, block: AsymmetricConv) -> None:
        super().__init__()
        self.crop = block.crop
        self.horizontal, self.horizontal_norm = block.horizontal, block.horizontal_norm
        self.vertical, self.vertical_norm = block.vertical, block.vertical_norm

    def forward(self, x: Tensor) -> Tensor:
        """Return what the row and the column add."""
        rows = columns = x
        if self.crop:
            rows = x[:, :, self.crop : -self.crop]
            columns = x[..., self.crop : -self.crop]
        row = self.horizontal_norm(self.horizontal(rows))
        return row + self.vertical_norm(self.vertical(columns))

    @property
    def is_silent(self) -> bool:
        """Whether both norms multiply by zero and add nothing."""
        norms = (self.horizontal_norm, self.vertical_norm)
        tensors = [(getattr(n, "weight", None), getattr(n, "bias", None)) for n in norms]
        return all(
            isinstance(weight, Tensor) and not weight.any() and (bias is None or not bias.any())
            for weight, bias in tensors
        )

    @torch.no_grad()
    def merge(self, host: nn.Module, scale: Tensor | None = None) -> nn.Conv2d:
        """Return the one convolution that computes host, row and column in evaluation mode.

        Args:
            host: the square convolution.
            scale: of the row and the column, if a norm was folded into the host.

        Raises:
            PlugError: if the host is not a plain convolution.
            UsageError: if a norm is in training mode or is not a batch norm with running
                statistics.
        """
        if not isinstance(host, nn.Conv2d):
            rule = "a row and a column merge into a convolution"
            raise PlugError(explain(rule, type(host).__name__, "ship the model as it is"))
        middle = host.kernel_size[0] // 2
        row_scale, row_shift = affine_of(self.horizontal_norm)
        column_scale, column_shift = affine_of(self.vertical_norm)
        row = self.horizontal.weight * row_scale[:, None, None, None]
        column = self.vertical.weight * column_scale[:, None, None, None]
        added = F.pad(row, (0, 0, middle, middle)) + F.pad(column, (middle, middle))
        bias = row_shift + column_shift
        if scale is not None:
            added, bias = added * scale[..., None], bias * scale.flatten()
        if host.bias is not None:
            bias = bias + host.bias
        return _remake(host, host.weight + added, bias)


class KernelGrowth(nn.Module):
    """A mixed convolution that is all zeros at first.

    Args:
        mixed: without norm and activation; its kernels become zero.
    """

    def __init__(self, mixed: MixConv) -> None:
        super().__init__()
        self.mixed = mixed
        for weight in mixed.parameters():
            nn.init.zeros_(weight)

    def forward(self, x: Tensor) -> Tensor:
        """Return what the kernels add."""
        return self.mixed(x)

    @torch.no_grad()
    def merge(self, host: nn.Module, scale: Tensor | None = None) -> nn.Conv2d:
        """Return the one convolution that computes the host and what is added.

        Args:
            host: the convolution beside it.
            scale: of what is added, if a norm was folded into the host.

        Raises:
            PlugError: if the host is not a plain convolution.
        """
        if not isinstance(host, nn.Conv2d):
            rule = "kernels merge into a convolution"
            raise PlugError(explain(rule, type(host).__name__, "ship the model as it is"))
        grown = self.mixed.merge()
        if not isinstance(grown, nn.Conv2d):
            rule = "kernels merge that pad to both sides alike"
            raise PlugError(explain(rule, "padding='same'", "ship the model as it is"))
        factor = 1 if scale is None else scale[..., None]
        size = max(grown.kernel_size[0], host.kernel_size[0])
        kernels = [grown.weight * factor, host.weight]
        if grown.groups != host.groups:
            kernels = [spread_groups(k, c) for k, c in zip(kernels, (grown, host), strict=True)]
        weight = sum((_frame(kernel, size) for kernel in kernels[1:]), _frame(kernels[0], size))
        bias = host.bias
        if grown.bias is not None:
            more = grown.bias if scale is None else grown.bias * scale.flatten()
            bias = more if bias is None else bias + more
        return _remake(host, weight, bias)


def spread_groups(kernel: Tensor, conv: nn.Conv2d) -> Tensor:
    """Return a kernel of ``conv`` over all inputs, zero where its groups do not look."""
    if conv.groups == 1:
        return kernel
    inner, outer = kernel.shape[1], len(kernel) // conv.groups
    spread = kernel.new_zeros(len(kernel), conv.in_channels, *kernel.shape[2:])
    rows = torch.arange(len(kernel), device=kernel.device)[:, None]
    spread[rows, rows // outer * inner + torch.arange(inner, device=kernel.device)] = kernel
    return spread


def _frame(kernel: Tensor, size: int) -> Tensor:
    margin = (size - kernel.shape[-1]) // 2
    return F.pad(kernel, (margin, margin, margin, margin))


def _remake(host: nn.Conv2d, weight: Tensor, bias: Tensor | None) -> nn.Conv2d:
    """A plain convolution like ``host`` with another kernel, which may be larger."""
    padding = host.padding
    if not isinstance(padding, str):
        grown = [
            step * ((new - old) // 2)
            for step, new, old in zip(
                host.dilation, weight.shape[2:], host.kernel_size, strict=True
            )
        ]
        padding = tuple(side + more for side, more in zip(padding, grown, strict=True))
    plain = nn.Conv2d(
        host.in_channels,
        host.out_channels,
        (weight.shape[2], weight.shape[3]),
        stride=host.stride,  # type: ignore[arg-type]
        padding=padding,  # type: ignore[arg-type]
        dilation=host.dilation,  # type: ignore[arg-type]
        groups=host.in_channels // weight.shape[1],
        padding_mode=host.padding_mode,
        device="meta",  # its weights are replaced
        dtype=host.weight.dtype,
    )
    return replace_weights(plain, weight, bias)
