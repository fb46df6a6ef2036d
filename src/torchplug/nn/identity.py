"""Start any shape-preserving module as the identity."""

from typing import Any

import torch
from torch import Tensor, nn


class IdentityStart(nn.Module):
    """Blend a module in from nothing: ``x + gain * (module(x) - x)`` with a learned ``gain = 0``.

    At the start the output equals the input bit for bit whatever the module computes, and the
    first gradient step moves ``gain``. The last operation saves none of its outputs, so a host
    may work in place on the result. ``gain`` has one element in one dimension because FSDP2
    refuses tensors without dimensions.

    Args:
        module: any module whose output has the shape of its input.

    Shape:
        Any, unchanged.

    >>> x = torch.randn(2, 8, 5, 7)
    >>> bool((IdentityStart(nn.Sigmoid())(x) == x).all())
    True
    """

    def __init__(self, module: nn.Module, *, device: Any = None, dtype: Any = None) -> None:
        super().__init__()
        self.module = module
        self.gain = nn.Parameter(torch.empty(1, device=device, dtype=dtype))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Set the gain to zero: the identity."""
        nn.init.zeros_(self.gain)

    def forward(self, x: Tensor) -> Tensor:
        """Return ``x`` moved towards ``module(x)`` by the learned gain, in the type of ``x``."""
        refined = self.module(x).to(x.dtype)
        return x + self.gain.to(x.dtype) * (refined - x)
