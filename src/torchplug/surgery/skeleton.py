"""ACNet's row and column beside a convolution of the host, which stays the square kernel.

``y = host(x) + BN(conv_1xK(x)) + BN(conv_Kx1(x))``, both norms multiplying by zero at the start, so
the output is the host's. The host's own norm, where one follows, stays behind the sum. In the paper
each of the three convolutions has a norm and nothing follows the sum: there are as many parameters,
and in evaluation mode, where the host's norm is affine and moves into all three, it is the same
function. In training the sum is normalized once more.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from torchplug.errors import PlugError, explain
from torchplug.modules import AsymmetricConv
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
        plain = nn.Conv2d(
            host.in_channels,
            host.out_channels,
            host.kernel_size,  # type: ignore[arg-type]
            stride=host.stride,  # type: ignore[arg-type]
            padding=host.padding,  # type: ignore[arg-type]
            dilation=host.dilation,  # type: ignore[arg-type]
            groups=host.groups,
            padding_mode=host.padding_mode,
            device="meta",  # its weights are replaced
            dtype=host.weight.dtype,
        )
        return replace_weights(plain, host.weight + added, bias)
