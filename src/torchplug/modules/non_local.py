"""Non-local block: every position gathers from all positions, weighted by pairwise similarity.

Equation (Wang et al., sections 3.1 to 3.3), with positions i and j::

    y_i = sum_j f(x_i, x_j) g(x_j) / N(x)
    z_i = W y_i + x_i

    embedded gaussian   softmax_j of theta(x_i) · phi(x_j)
    gaussian            softmax_j of x_i · x_j
    dot product         theta(x_i) · phi(x_j) / number of positions
    concatenation       relu(w · [theta(x_i), phi(x_j)]) / number of positions

Compared with the authors' successor (facebookresearch/SlowFast, commit 287ec007), mmcv, timm and
AlexHex7's code. Deviations from the paper, all as in the authors' code:

- the logits of a softmax are scaled by one over the root of the hidden width;
- sub-sampling pools the map before phi and g; the paper's text says after them, which is another
  function (``subsample="after"``);
- W is followed by a batch norm whose weight starts at zero, so the block starts as the identity.

One deviation from that code: a side too short for the pool is left as it is, where theirs fails.
"""

from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from torchplug.card import Card, CheckpointFormat, Paper, Place, Sample, State
from torchplug.errors import explain
from torchplug.kernels import attend
from torchplug.nn import (
    build_norm,
    check_choice,
    check_whole,
    hidden_width,
    is_bare_conv,
)

Pairwise = Literal["embedded_gaussian", "gaussian", "dot_product", "concatenation"]
Scale = Literal["hidden", "channels", "none"]
Subsample = Literal["before", "after", "none"]

_CONVS: tuple[Any, ...] = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
_NORMS: tuple[Any, ...] = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)


class NonLocal(nn.Module):
    """Non-local block.

    The embedded Gaussian runs through PyTorch's fused attention, whose memory grows with the number
    of positions; the dot product is computed as ``theta (phi^T g)``, which never builds the map of
    all pairs. The concatenation builds it, and so does the Gaussian where no fused operator takes
    keys and values of two widths.

    Args:
        channels: width of the map.
        reduction: divisor that gives the width of theta, phi and g, rounded down; 2 in the paper.
        hidden_channels: that width itself; overrides ``reduction``.
        pairwise: the pairwise function.
        scale: what the logits of a softmax are divided by: the root of the ``"hidden"`` width (the
            authors' code), of ``"channels"`` (timm), or ``"none"`` (the paper's formula).
        subsample: whether a max pool of 2 halves the positions that are gathered from:
            ``"before"`` phi and g (the authors' code), ``"after"`` them (the paper's text, mmcv),
            or ``"none"`` (mmcv's and timm's default). In three dimensions time is not pooled.
        norm_layer: norm after W, or ``None``; batch norm takes the form of ``dimension``. Its
            parameters start at zero, or those of W where it has none.
        dimension: 1 for sequences, 2 for images, 3 for video.
        device: where the parameters are made.
        dtype: type of the parameters.

    Shape:
        ``(N, C, ...) -> (N, C, ...)`` with as many dimensions as ``dimension``, each of any size: a
        side of 1 is not pooled.

    Raises:
        ValueError: if the hidden width would be 0 or a choice is unknown.

    Source:
        Non-local Neural Networks, arXiv 1711.07971; facebookresearch/video-nonlocal-net.

    >>> import torch
    >>> x = torch.randn(2, 8, 7, 9)
    >>> bool((NonLocal(8)(x) == x).all())
    True
    """

    identity_at_start = True

    def __init__(
        self,
        channels: int,
        *,
        reduction: int = 2,
        hidden_channels: int | None = None,
        pairwise: Pairwise = "embedded_gaussian",
        scale: Scale = "hidden",
        subsample: Subsample = "before",
        norm_layer: Callable[..., nn.Module] | None = nn.BatchNorm2d,
        dimension: Literal[1, 2, 3] = 2,
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        super().__init__()
        check_choice("pairwise", pairwise, ("embedded_gaussian", "gaussian", *_PLAIN))
        check_choice("scale", scale, ("hidden", "channels", "none"))
        check_choice("subsample", subsample, ("before", "after", "none"))
        check_whole("dimension", dimension)
        if dimension not in {1, 2, 3}:
            fix = "pass 2 for images"
            raise ValueError(explain("dimension is 1, 2 or 3", f"dimension={dimension}", fix))
        hidden = hidden_width(channels, reduction=reduction, hidden_channels=hidden_channels)
        self.channels, self.hidden_channels, self.dimension = channels, hidden, dimension
        self.pairwise, self.subsample = pairwise, subsample
        self.scale = {"hidden": hidden**-0.5, "channels": channels**-0.5, "none": 1.0}[scale]
        factory = {"device": device, "dtype": dtype}
        conv, norm = _CONVS[dimension - 1], norm_layer
        self.query: nn.Module | None = None
        self.key: nn.Module | None = None
        if pairwise != "gaussian":
            self.query = conv(channels, hidden, 1, **factory)
            self.key = conv(channels, hidden, 1, **factory)
        self.value = conv(channels, hidden, 1, **factory)
        self.project = (
            conv(2 * hidden, 1, 1, bias=False, **factory) if pairwise == "concatenation" else None
        )
        self.expand = conv(hidden, channels, 1, **factory)
        if norm in _NORMS:
            norm = _NORMS[dimension - 1]
        self.norm = build_norm(norm, channels, **factory) if norm is not None else None
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw weights from N(0, 0.01), set biases to zero, and end the block in zero."""
        for layer in (self.query, self.key, self.value, self.project, self.expand):
            for name, parameter in layer.named_parameters() if layer is not None else ():
                if name == "bias":
                    nn.init.zeros_(parameter)
                else:
                    nn.init.normal_(parameter, std=0.01)
        reset = getattr(self.norm, "reset_parameters", None)
        if callable(reset):
            reset()
        last = [] if self.norm is None else list(self.norm.parameters())
        for parameter in last or self.expand.parameters():
            nn.init.zeros_(parameter)

    def forward(self, x: Tensor) -> Tensor:
        """Return ``x`` plus what each position gathered."""
        gathered = self._gather(x).mT
        z = self.expand(gathered.reshape(*gathered.shape[:2], *x.shape[2:]))
        return x + (z if self.norm is None else self.norm(z))

    def _gather(self, x: Tensor) -> Tensor:
        """Return y, ``(N, positions, hidden)``."""
        source = self._pool(x) if self.subsample == "before" else x
        query = _to_rows(x if self.query is None else self.query(x))
        key = source if self.key is None else self.key(source)
        value = self.value(source)
        if self.subsample == "after":
            key, value = self._pool(key), self._pool(value)
        key, value = _to_rows(key), _to_rows(value)
        if self.pairwise == "dot_product":
            return query @ (key.mT @ value) / key.shape[1]
        if self.project is not None:
            energy = self._score_pairs(query, key, self.project)
            return energy.relu() @ value / key.shape[1]
        return attend(query, key, value, self.scale)

    def _score_pairs(self, query: Tensor, key: Tensor, project: nn.Module) -> Tensor:
        """Return w · [query_i, key_j] of every pair, without the pairs where nobody sees them."""
        if is_bare_conv(project):
            ours, theirs = project.weight.reshape(2, self.hidden_channels, 1)
            return query @ ours + (key @ theirs).mT
        shape = (-1, -1, query.shape[1], key.shape[1])
        pairs = torch.cat([query.mT[..., None].expand(shape), key.mT[:, :, None].expand(shape)], 1)
        rows = pairs.flatten(2)
        return project(rows.view(*rows.shape, *[1] * (self.dimension - 1))).view(pairs[:, 0].shape)

    def _pool(self, x: Tensor) -> Tensor:
        sides = [2 if side >= 2 else 1 for side in x.shape[2:]]
        if self.dimension == 3:
            sides[0] = 1
        if self.dimension == 1:  # pools of sequences cannot be exported for any length
            return F.max_pool2d(x[..., None], (*sides, 1))[..., 0]
        return F.max_pool2d(x, sides) if self.dimension == 2 else F.max_pool3d(x, sides)

    def extra_repr(self) -> str:
        """Name the resolved widths and choices."""
        return (
            f"channels={self.channels}, hidden_channels={self.hidden_channels}, "
            f"pairwise={self.pairwise!r}, scale={self.scale:.4g}, subsample={self.subsample!r}"
        )


_PLAIN = ("dot_product", "concatenation")


def _to_rows(x: Tensor) -> Tensor:
    """Lay positions out as rows: ``(N, C, ...) -> (N, positions, C)``."""
    return x.flatten(2).mT


def _flops(module: NonLocal, shape: tuple[int, ...]) -> int:
    batch, channels, height, width = shape
    hidden, positions = module.hidden_channels, height * width
    pooled = max(height // 2, 1) * max(width // 2, 1)
    sources = positions if module.subsample == "none" else pooled
    embedded = pooled if module.subsample == "before" else positions
    projections = positions if module.query is not None else 0
    keys = embedded if module.key is not None else 0
    convolutions = 2 * channels * hidden * (projections + keys + embedded + positions)
    match module.pairwise:
        case "embedded_gaussian":
            pairs = 4 * positions * sources * hidden
        case "gaussian":
            pairs = 2 * positions * sources * (channels + hidden)
        case "dot_product":
            pairs = 2 * hidden * hidden * (positions + sources)
        case _:
            pairs = 2 * hidden * (positions + sources + positions * sources)
    return batch * (convolutions + pairs)


def _add_output_bias(state: State) -> State:
    """Mmcv leaves the bias out before a norm: it is zero."""
    if "expand.weight" not in state or "expand.bias" in state:
        return state
    weight = state["expand.weight"]
    return {**state, "expand.bias": weight.new_zeros(weight.shape[0])}


def _count(channels: int, hidden: int, *, embeddings: int = 3, norm: bool = True) -> int:
    inner = embeddings * (channels * hidden + hidden)
    return inner + hidden * channels + channels + (2 * channels if norm else 0)


_MMCV = {
    "theta.conv": "query",
    "phi.conv": "key",
    "phi.0.conv": "key",
    "g.conv": "value",
    "g.0.conv": "value",
    "concat_project.conv": "project",
    "conv_out.conv": "expand",
    "conv_out.bn": "norm",
}

CARD = Card(
    key="nl",
    factory=NonLocal,
    title="Non-Local",
    summary="Add to every position what it gathers from all positions by pairwise similarity.",
    equation="z_i = x_i + BN(W sum_j softmax_j(theta(x_i) . phi(x_j)) g(x_j))",
    paper=Paper(
        title="Non-local Neural Networks",
        authors="Wang, Girshick, Gupta, He",
        venue="CVPR",
        year=2018,
        arxiv="1711.07971",
        code="https://github.com/facebookresearch/video-nonlocal-net",
    ),
    kind="refine",
    place=Place(
        role="block",
        stages=(2, 3),
        every=2,
        note="after every second block of res3 and res4: the five blocks of ResNet-50",
    ),
    identity_at_start=True,
    min_channels=2,
    flops=_flops,
    samples=(
        Sample(args=(12,), shape=(2, 12, 9, 7), parameters=_count(12, 6)),
        Sample(
            args=(9,),
            options={
                "reduction": 3,
                "pairwise": "gaussian",
                "scale": "none",
                "subsample": "after",
                "norm_layer": None,
            },
            shape=(2, 9, 6, 8),
            parameters=_count(9, 3, embeddings=1, norm=False),
        ),
        Sample(
            args=(8,),
            options={"hidden_channels": 5, "pairwise": "dot_product", "subsample": "none"},
            shape=(2, 8, 5, 6),
            parameters=_count(8, 5),
            learned=("key.bias",),
        ),
        Sample(
            args=(6,),
            options={"pairwise": "concatenation", "scale": "channels"},
            shape=(2, 6, 5, 7),
            parameters=_count(6, 3) + 2 * 3,
            learned=("key.bias",),
        ),
    ),
    inert={"key.bias": "a softmax over positions does not see what is equal for all of them"},
    formats=(
        CheckpointFormat(
            source="official",
            options={"dimension": 3},
            rename={
                "conv_theta": "query",
                "conv_phi": "key",
                "conv_g": "value",
                "conv_out": "expand",
                "bn": "norm",
            },
        ),
        CheckpointFormat(
            source="mmcv", options={"subsample": "none"}, rename=_MMCV, transform=_add_output_bias
        ),
        CheckpointFormat(
            source="timm",
            options={"scale": "channels", "subsample": "none"},
            rename={"t": "query", "p": "key", "g": "value", "z": "expand", "norm": "norm"},
        ),
        CheckpointFormat(
            source="alexhex7",
            options={"subsample": "none"},
            rename={
                "theta": "query",
                "phi": "key",
                "phi.0": "key",
                "g": "value",
                "g.0": "value",
                "concat_project.0": "project",
                "W": "expand",
                "W.0": "expand",
                "W.1": "norm",
            },
        ),
    ),
    deviations=(
        "softmax logits are scaled by hidden**-0.5, as in the authors' code; scale='none' is the "
        "paper's formula.",
        "sub-sampling pools before phi and g, as in the authors' code; subsample='after' is the "
        "paper's text.",
        "a batch norm of weight zero follows W, as in the authors' code.",
        "a side too short for the pool is left as it is, where the authors' code fails.",
    ),
)
