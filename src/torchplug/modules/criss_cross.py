"""Criss-Cross attention: every position gathers from its row and its column, twice.

Equation (Huang et al., section 3.2), with u a position and Ω_u the H + W - 1 positions of its row
and its column, itself once::

    Q, K, V = W_q x + b_q, W_k x + b_k, W_v x + b_v
    A_u     = softmax over j in Ω_u of Q_u · K_j
    y_u     = x_u + gamma * sum_j A_uj V_j

and once more from y with the same weights: after two passes every position has seen every other.

Compared with the authors' code (speedinghzl/CCNet, commit 1fae6c67) and with mmcv.

Deviations: none; the authors' mask of minus infinity is of the logits' own type, so half precision
works, and their loop over the module (RCCAModule) is ``recurrence``.
"""

from typing import Any

import torch
from torch import Tensor, nn

from torchplug.card import Card, CheckpointFormat, Paper, Place, Sample, State
from torchplug.nn import (
    check_positive,
    hidden_width,
)


class CrissCross(nn.Module):
    """Recurrent criss-cross attention.

    Memory and time grow with the number of positions times H + W, and the map of all pairs of
    positions is never built. ``gamma`` starts at zero: the output equals the input until it is
    trained, and in the first step only ``gamma`` learns.

    Args:
        channels: width of the map.
        reduction: divisor that gives the width of queries and keys, rounded down; 8 in the paper.
        hidden_channels: that width itself; overrides ``reduction``.
        recurrence: number R of passes with the same weights; 2 in the paper.
        device: where the parameters are made.
        dtype: type of the parameters.

    Shape:
        ``(N, C, H, W) -> (N, C, H, W)`` for any ``H, W >= 1``.

    Raises:
        ValueError: if queries would have no channel, or there is no pass.

    Source:
        CCNet: Criss-Cross Attention for Semantic Segmentation, arXiv 1811.11721;
        speedinghzl/CCNet.

    >>> x = torch.randn(2, 16, 7, 9)
    >>> bool((CrissCross(16)(x) == x).all())
    True
    """

    identity_at_start = True

    def __init__(
        self,
        channels: int,
        *,
        reduction: int = 8,
        hidden_channels: int | None = None,
        recurrence: int = 2,
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        super().__init__()
        check_positive({"recurrence": recurrence})
        hidden = hidden_width(channels, reduction=reduction, hidden_channels=hidden_channels)
        self.channels, self.hidden_channels, self.recurrence = channels, hidden, recurrence
        factory = {"device": device, "dtype": dtype}
        self.query = nn.Conv2d(channels, hidden, 1, **factory)
        self.key = nn.Conv2d(channels, hidden, 1, **factory)
        self.value = nn.Conv2d(channels, channels, 1, **factory)
        self.gamma = nn.Parameter(torch.empty(1, **factory))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw the projections from PyTorch's default and set ``gamma`` to zero."""
        for layer in (self.query, self.key, self.value):
            layer.reset_parameters()
        nn.init.zeros_(self.gamma)

    def forward(self, x: Tensor) -> Tensor:
        """Return ``x`` after all passes, in the type of ``x``."""
        for _ in range(self.recurrence):
            x = x + self.gamma.to(x.dtype) * self.gather(x)
        return x

    def gather(self, x: Tensor) -> Tensor:
        """Return what every position gathers in one pass, ``(N, C, H, W)``."""
        batch, _, height, width = x.shape
        query, key, value = (_to_grid(layer(x)) for layer in (self.query, self.key, self.value))
        along = torch.bmm(_rows(query), _rows(key).mT)  # (h n, w, w)
        down = torch.bmm(_columns(query), _columns(key).mT)  # (n w, h, h)
        # a position is in its row and in its column: the row counts it
        own = torch.eye(height, dtype=torch.bool, device=x.device)
        down = down.masked_fill(own, -torch.inf)

        energy = [along.view(height, batch, width, width), _from_columns(down, width)]
        weights = torch.cat(energy, dim=-1).softmax(-1)  # (h, n, w, w + h)
        along, down = torch.split(weights, [width, height], dim=-1)
        from_row = torch.bmm(_rows(along), _rows(value)).view_as(value)
        from_column = _from_columns(torch.bmm(_columns(down), _columns(value)), width)
        return (from_row + from_column).permute(1, 3, 0, 2)

    def extra_repr(self) -> str:
        """Name the resolved widths."""
        return (
            f"channels={self.channels}, hidden_channels={self.hidden_channels}, "
            f"recurrence={self.recurrence}"
        )


def _to_grid(x: Tensor) -> Tensor:
    """Lay a map out as ``(H, N, W, C)``: its rows and its columns are then both views of it.

    In any other order one of the two would be a second copy, kept for backward.
    """
    return x.permute(2, 0, 3, 1).contiguous()


def _rows(grid: Tensor) -> Tensor:
    """Return every row as a matrix: ``(H, N, W, C) -> (H N, W, C)``."""
    return grid.flatten(0, 1)


def _columns(grid: Tensor) -> Tensor:
    """Return every column as a matrix: ``(H, N, W, C) -> (N W, H, C)``."""
    return grid.flatten(1, 2).transpose(0, 1)


def _from_columns(columns: Tensor, width: int) -> Tensor:
    """Undo :func:`_columns`."""
    grid = columns.transpose(0, 1)
    return grid.view(grid.shape[0], grid.shape[1] // width, width, grid.shape[2])


def _flops(module: CrissCross, shape: tuple[int, ...]) -> int:
    batch, channels, height, width = shape
    hidden, positions = module.hidden_channels, height * width
    projections = channels * (2 * hidden + channels)
    attention = (height + width) * (hidden + channels)
    return 2 * module.recurrence * batch * positions * (projections + attention)


def _count(channels: int, hidden: int) -> int:
    return 2 * (channels * hidden + hidden) + channels * channels + channels + 1


def _flatten_gamma(state: State) -> State:
    return {**state, "gamma": state["gamma"].reshape(1)} if "gamma" in state else state


_PROJECTIONS = {
    **{f"{name}_conv": name for name in ("query", "key", "value")},
    "gamma": "gamma",
}

CARD = Card(
    key="cc",
    factory=CrissCross,
    title="Criss-Cross Attention",
    summary="Add to every position what it gathers from its row and its column, twice over.",
    equation="y_u = x_u + gamma * sum_j softmax_j(Q_u . K_j) V_j, j in the row and column of u",
    paper=Paper(
        title="CCNet: Criss-Cross Attention for Semantic Segmentation",
        authors="Huang, Wang, Wei, Huang, Shi, Liu, Huang",
        venue="ICCV",
        year=2019,
        arxiv="1811.11721",
        code="https://github.com/speedinghzl/CCNet",
    ),
    kind="refine",
    place=Place(
        role="backbone_end",
        note="in the segmentation head, on the last map of a backbone dilated to stride 8, between "
        "a 3x3 convolution that narrows it to 512 channels and another",
    ),
    identity_at_start=True,
    min_channels=8,
    flops=_flops,
    samples=(
        Sample(args=(16,), shape=(2, 16, 9, 7), parameters=_count(16, 2)),
        Sample(
            args=(9,),
            options={"reduction": 3, "recurrence": 1},
            shape=(2, 9, 5, 8),
            parameters=_count(9, 3),
        ),
        Sample(
            args=(5,),
            options={"hidden_channels": 2, "recurrence": 3},
            shape=(2, 5, 6, 5),
            parameters=_count(5, 2),
        ),
    ),
    inert={"key.bias": "a softmax does not see what is equal for all positions of one query"},
    formats=(
        CheckpointFormat(source="official", rename=_PROJECTIONS),
        CheckpointFormat(
            source="mmcv",
            rename={**_PROJECTIONS, "gamma.scale": "gamma"},
            transform=_flatten_gamma,
        ),
    ),
)
