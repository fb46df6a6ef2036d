"""Global Context: refine every position by one context vector that all positions share.

Equation (Cao et al., section 3.3), with positions j and p of one map::

    a_j = exp(W_k x_j) / sum_p exp(W_k x_p)        one attention map for every query
    t   = W_v2 relu(LN(W_v1 sum_j a_j x_j))        context, transformed in a bottleneck
    y_i = x_i + t                                  fusion by addition, the paper's choice

Compared with the authors' code (xvjiarui/GCNet, commit 029db540), which starts as the identity:
its last layers, W_v2 and the bias beside it, are zero.

Deviations: ``reduction`` divides, where the code multiplies by a ratio and rounds 49 · (1/49) to
zero; a bottleneck of one channel, which makes the norm constant, is refused.
"""

from typing import Any, Literal

import torch
from torch import Tensor, nn

from torchplug.card import Card, CheckpointFormat, Paper, Place, Sample, State
from torchplug.errors import explain, nearest
from torchplug.nn import hidden_width

Pooling = Literal["attention", "average"]
Fusion = Literal["add", "scale", "scale_add"]


class GlobalContext(nn.Module):
    """Global context block.

    A weighted mean over all positions, the weights from a softmax, gives one context vector; a
    two-layer bottleneck with layer norm transforms it; the result is added to every position or
    scales the channels. With the default fusion the output equals the input until training moves
    the last layer away from zero; the two others start by halving it.

    Args:
        channels: width of the map.
        reduction: divisor that gives the hidden width, rounded down; 16 in the paper, which also
            reports 4.
        hidden_channels: the hidden width itself, at least 2; overrides ``reduction``.
        pooling: ``"attention"`` as in the paper, or ``"average"``, the plain mean of its ablation.
        fusion: ``"add"`` as in the paper; ``"scale"`` multiplies by a sigmoid gate;
            ``"scale_add"`` does both, scaling first, each with a bottleneck of its own.
        eps: what the layer norm adds to the variance; 1e-5 in the authors' code, 1e-6 in timm's.
        act_layer: activation of the bottleneck.
        device: where the parameters are made.
        dtype: type of the parameters.

    Shape:
        ``(N, C, H, W) -> (N, C, H, W)`` for any ``H, W >= 1``.

    Raises:
        ValueError: if the bottleneck would have fewer than two channels, where the norm gives a
            constant and the context is lost, or if a choice is unknown.

    Source:
        GCNet: Non-local Networks Meet Squeeze-Excitation Networks and Beyond, arXiv 1904.11492;
        xvjiarui/GCNet.

    >>> x = torch.randn(2, 64, 7, 9)
    >>> bool((GlobalContext(64)(x) == x).all())
    True
    """

    def __init__(
        self,
        channels: int,
        *,
        reduction: int = 16,
        hidden_channels: int | None = None,
        pooling: Pooling = "attention",
        fusion: Fusion = "add",
        eps: float = 1e-5,
        act_layer: type[nn.Module] = nn.ReLU,
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        super().__init__()
        _require_choice("pooling", pooling, ("attention", "average"))
        _require_choice("fusion", fusion, ("add", "scale", "scale_add"))
        hidden = hidden_width(
            channels, reduction=reduction, hidden_channels=hidden_channels, at_least=2
        )
        self.channels, self.hidden_channels = channels, hidden
        self.pooling, self.fusion = pooling, fusion
        self.identity_at_start = fusion == "add"
        factory = {"device": device, "dtype": dtype}
        self.mask = nn.Conv2d(channels, 1, 1, **factory) if pooling == "attention" else None
        self.scale = self.add = None
        if fusion != "add":
            self.scale = _Transform(channels, hidden, eps, act_layer, **factory)
        if fusion != "scale":
            self.add = _Transform(channels, hidden, eps, act_layer, **factory)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw the mask from He's normal distribution and end each transform in zero."""
        if self.mask is not None:
            nn.init.kaiming_normal_(self.mask.weight, mode="fan_in", nonlinearity="relu")
            nn.init.zeros_(self.mask.bias)
        for transform in (self.scale, self.add):
            if transform is not None:
                transform.reset_parameters()

    def forward(self, x: Tensor) -> Tensor:
        """Return ``x`` refined by its global context."""
        context = self._pool(x)
        if self.scale is None:
            return x + self.add(context)
        gate = self.scale(context).sigmoid()
        if self.add is None:
            return x * gate
        return torch.addcmul(self.add(context), x, gate)

    def _pool(self, x: Tensor) -> Tensor:
        if self.mask is None:
            return x.mean((2, 3), keepdim=True)
        attention = self.mask(x).flatten(2).softmax(-1)
        return (x.flatten(2) @ attention.mT)[..., None]  # (n, c, 1, 1)

    def extra_repr(self) -> str:
        """Name the resolved widths and choices."""
        return (
            f"channels={self.channels}, hidden_channels={self.hidden_channels}, "
            f"pooling={self.pooling!r}, fusion={self.fusion!r}"
        )
