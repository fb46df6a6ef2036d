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

from torch import Tensor, nn

from torchplug.card import Card, CheckpointFormat, Paper, Place, Sample, State
from torchplug.kernels import (
    add_context,
    apply_gate,
    pool_positions,
    pool_weighted,
    project,
)
from torchplug.nn import (
    build_act,
    check_choice,
    check_number,
    hidden_width,
)

Pooling = Literal["attention", "average"]
Fusion = Literal["add", "scale", "scale_add"]


class ContextTransform(nn.Module):
    """The bottleneck of a context vector, ``(N, C, 1, 1) -> (N, C, 1, 1)``; zero at the start.

    Without ``eps`` it has no layer norm.
    """

    def __init__(
        self,
        channels: int,
        hidden_channels: int,
        eps: float | None,
        act_layer: type[nn.Module],
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        super().__init__()
        factory = {"device": device, "dtype": dtype}
        self.reduce = nn.Conv2d(channels, hidden_channels, 1, **factory)
        self.norm: nn.LayerNorm | None = None
        if eps is not None:
            self.norm = nn.LayerNorm([hidden_channels, 1, 1], eps=eps, **factory)
        self.act = build_act(act_layer, device=device, dtype=dtype)
        self.expand = nn.Conv2d(hidden_channels, channels, 1, **factory)

    def reset_parameters(self) -> None:
        """Draw the first layer from PyTorch's default and set the last to zero."""
        for layer in (self.reduce, self.norm, self.act):
            reset = getattr(layer, "reset_parameters", None)
            if callable(reset):
                reset()
        for parameter in self.expand.parameters():
            nn.init.zeros_(parameter)

    def forward(self, context: Tensor) -> Tensor:
        """Return the transformed context."""
        hidden = self.reduce(context)
        return self.expand(self.act(hidden if self.norm is None else self.norm(hidden)))


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
        hidden_channels: the hidden width itself, at least 2 with a layer norm; overrides
            ``reduction``.
        pooling: ``"attention"`` as in the paper, or ``"average"``, the plain mean of its ablation.
        fusion: ``"add"`` as in the paper; ``"scale"`` multiplies by a sigmoid gate;
            ``"scale_add"`` does both, scaling first, each with a bottleneck of its own.
        layer_norm: whether the bottleneck has a layer norm; false is in the paper's ablation.
        eps: what the layer norm adds to the variance; 1e-5 in the authors' code, 1e-6 in timm's.
        act_layer: activation of the bottleneck.
        device: where the parameters are made.
        dtype: type of the parameters.

    Shape:
        ``(N, C, H, W) -> (N, C, H, W)`` for any ``H, W >= 1``.

    Raises:
        ValueError: if the bottleneck would have fewer than two channels, where the norm gives a
            constant and the context is lost (without norm: no channel), or if a choice is unknown.

    Source:
        GCNet: Non-local Networks Meet Squeeze-Excitation Networks and Beyond, arXiv 1904.11492;
        xvjiarui/GCNet.

    >>> import torch
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
        layer_norm: bool = True,
        eps: float = 1e-5,
        act_layer: type[nn.Module] = nn.ReLU,
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        super().__init__()
        check_choice("pooling", pooling, ("attention", "average"))
        check_choice("fusion", fusion, ("add", "scale", "scale_add"))
        check_number("eps", eps)
        hidden = hidden_width(
            channels,
            reduction=reduction,
            hidden_channels=hidden_channels,
            at_least=2 if layer_norm else 1,
        )
        self.channels, self.hidden_channels = channels, hidden
        self.pooling, self.fusion = pooling, fusion
        self.identity_at_start = fusion == "add"
        factory = {"device": device, "dtype": dtype}
        added = eps if layer_norm else None
        self.mask = nn.Conv2d(channels, 1, 1, **factory) if pooling == "attention" else None
        self.scale: ContextTransform | None = None
        self.add: ContextTransform | None = None
        if fusion != "add":
            self.scale = ContextTransform(channels, hidden, added, act_layer, **factory)
        if fusion != "scale":
            self.add = ContextTransform(channels, hidden, added, act_layer, **factory)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw the mask from He's normal distribution and end each transform in zero."""
        if self.mask is not None:
            nn.init.kaiming_normal_(self.mask.weight, mode="fan_in", nonlinearity="relu")
            if self.mask.bias is not None:
                nn.init.zeros_(self.mask.bias)
        for transform in (self.scale, self.add):
            if transform is not None:
                transform.reset_parameters()

    def forward(self, x: Tensor) -> Tensor:
        """Return ``x`` refined by its global context."""
        x, context = self._pool(x)
        if self.scale is not None:
            x = apply_gate(x, self.scale(context).sigmoid())
        if self.add is not None:
            x = add_context(x, self.add(context))
        return x

    def _pool(self, x: Tensor) -> tuple[Tensor, Tensor]:
        if self.mask is None:
            x, mean = pool_positions(x)
            return x, mean
        x, scores = project(self.mask, x)
        return pool_weighted(x, scores.flatten(2).softmax(-1))

    def extra_repr(self) -> str:
        """Name the resolved widths and choices."""
        return (
            f"channels={self.channels}, hidden_channels={self.hidden_channels}, "
            f"pooling={self.pooling!r}, fusion={self.fusion!r}"
        )


def _flops(module: GlobalContext, shape: tuple[int, ...]) -> int:
    batch, channels, height, width = shape
    transforms = sum(transform is not None for transform in (module.scale, module.add))
    pooling = 4 * channels * height * width if module.mask is not None else 0
    return batch * (pooling + 4 * transforms * channels * module.hidden_channels)


def _vector_to_map(state: State) -> State:
    return {
        name: tensor[:, None, None] if ".norm." in name else tensor
        for name, tensor in state.items()
    }


_OFFICIAL = {
    "conv_mask": "mask",
    "channel_add_conv.0": "add.reduce",
    "channel_add_conv.1": "add.norm",
    "channel_add_conv.3": "add.expand",
    "channel_mul_conv.0": "scale.reduce",
    "channel_mul_conv.1": "scale.norm",
    "channel_mul_conv.3": "scale.expand",
}
_TIMM = {
    "conv_attn": "mask",
    **{
        f"mlp_{ours}.{theirs}": f"{ours}.{name}"
        for ours in ("add", "scale")
        for theirs, name in (("fc1", "reduce"), ("norm", "norm"), ("fc2", "expand"))
    },
}


def _count(
    channels: int, hidden: int, *, transforms: int, mask: bool, layer_norm: bool = True
) -> int:
    norm = 2 * hidden if layer_norm else 0
    transform = channels * hidden + hidden + norm + hidden * channels + channels
    return transforms * transform + (channels + 1 if mask else 0)


CARD = Card(
    key="gc",
    factory=GlobalContext,
    title="Global Context",
    summary="Add to every position one context vector, pooled by attention and transformed.",
    equation="y = x + W2 relu(LN(W1 sum_j softmax_j(Wk x) x_j))",
    paper=Paper(
        title="GCNet: Non-local Networks Meet Squeeze-Excitation Networks and Beyond",
        authors="Cao, Xu, Lin, Wei, Hu",
        venue="ICCV Workshops",
        year=2019,
        arxiv="1904.11492",
        code="https://github.com/xvjiarui/GCNet",
    ),
    kind="refine",
    place=Place(
        role="bottleneck",
        stages=(2, 3, 4),
        note="on the output of the residual branches of c3, c4 and c5, before the add",
    ),
    identity_at_start=True,
    min_channels=32,
    flops=_flops,
    samples=(
        Sample(
            args=(32,),
            shape=(2, 32, 9, 7),
            parameters=_count(32, 2, transforms=1, mask=True),
        ),
        Sample(
            args=(20,),
            options={"reduction": 4, "fusion": "scale_add", "act_layer": nn.SiLU},
            shape=(2, 20, 6, 8),
            parameters=_count(20, 5, transforms=2, mask=True),
        ),
        Sample(
            args=(12,),
            options={"hidden_channels": 3, "pooling": "average", "fusion": "scale", "eps": 1e-6},
            shape=(2, 12, 7, 5),
            parameters=_count(12, 3, transforms=1, mask=False),
        ),
        Sample(
            args=(10,),
            options={"hidden_channels": 1, "fusion": "scale_add", "layer_norm": False},
            shape=(2, 10, 5, 6),
            parameters=_count(10, 1, transforms=2, mask=True, layer_norm=False),
        ),
    ),
    inert={"mask.bias": "a softmax over positions does not see a constant"},
    formats=(
        CheckpointFormat(source="official", rename=_OFFICIAL),
        CheckpointFormat(source="mmcv", rename=_OFFICIAL),
        CheckpointFormat(
            source="timm",
            options={"fusion": "scale", "eps": 1e-6},
            rename=_TIMM,
            transform=_vector_to_map,
        ),
    ),
    deviations=(
        "reduction is a divisor; the authors' code multiplies by a ratio.",
        "a bottleneck of one channel is refused: its layer norm is constant.",
    ),
)
