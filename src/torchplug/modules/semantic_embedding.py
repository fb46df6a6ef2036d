"""Semantic embedding: multiply a fine map by what the coarser levels above it know.

Equation (Zhang et al., semantic embedding branch), with x_l the map of level l, L the last one,
and up(.) to the size of x_l::

    y_l = x_l * product over k = l+1 ... L of up(W_k * x_k)        W_k a 3x3 convolution

There is no official code; compared with lxtGH/fuse_seg_pytorch (commit 942f1cd3) and with a public
re-implementation that multiplies over several levels. Deviations:

- upsampling follows PyTorch's default; one of the two puts corners on corners
  (``align_corners=True``).
- a popular copy adds a 1x1 convolution of the fine map, which neither of the two has.
"""

import math
from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F

from torchplug.card import Card, CheckpointFormat, Paper, Place, Sample
from torchplug.errors import explain
from torchplug.nn import (
    check_odd,
    check_positive,
    check_several,
    reset_layers,
)


class SemanticEmbedding(nn.Module):
    """Semantic embedding branch of ExFuse.

    Each level above is convolved at its own size, then upsampled: in this order, as the paper says;
    the other order is another function.

    Args:
        low_channels: width of the fine map.
        high_channels: width of the map above it, or of each of several.
        kernel_size: of the convolutions; 3 in the paper.
        align_corners: whether upsampling puts corners on corners.
        device: where the parameters are made.
        dtype: type of the parameters.

    Shape:
        ``(N, C, H, W)`` and one or more ``(N, C_k, H_k, W_k)`` of any sizes ``-> (N, C, H, W)``.

    Raises:
        ValueError: if a width is not positive or ``kernel_size`` is even; in the forward, if the
            number of maps is another than that of ``high_channels``.

    Source:
        ExFuse: Enhancing Feature Fusion for Semantic Segmentation, arXiv 1804.03821.

    >>> import torch
    >>> low, high = torch.randn(2, 16, 9, 13), torch.randn(2, 32, 5, 7)
    >>> SemanticEmbedding(16, 32)(low, high).shape
    torch.Size([2, 16, 9, 13])
    """

    def __init__(
        self,
        low_channels: int,
        high_channels: int | Sequence[int],
        *,
        kernel_size: int = 3,
        align_corners: bool = False,
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        super().__init__()
        if not isinstance(high_channels, int):
            check_several("high_channels", high_channels)
        levels = (high_channels,) if isinstance(high_channels, int) else tuple(high_channels)
        check_positive({"low_channels": low_channels, "number of high_channels": len(levels)})
        check_positive({f"high_channels[{index}]": width for index, width in enumerate(levels)})
        check_odd("kernel_size", kernel_size)
        self.low_channels, self.high_channels = low_channels, levels
        self.align_corners = align_corners
        padding = kernel_size // 2
        self.embed = nn.ModuleList(
            nn.Conv2d(width, low_channels, kernel_size, padding=padding, device=device, dtype=dtype)
            for width in levels
        )
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw the weights from PyTorch's default; the paper names no other."""
        reset_layers(self)

    def forward(self, low: Tensor, *higher: Tensor) -> Tensor:
        """Return ``low`` times what each of ``higher`` says at its place."""
        if len(higher) != len(self.embed):
            rule = "semantic embedding takes the low map and one for each of high_channels"
            got = f"{len(higher)} for high_channels={self.high_channels}"
            raise ValueError(explain(rule, got, "pass them in that order"))
        size, y = low.shape[2:], low
        for embed, high in zip(self.embed, higher, strict=True):
            y = y * F.interpolate(
                embed(high), size=size, mode="bilinear", align_corners=self.align_corners
            )
        return y

    def extra_repr(self) -> str:
        """Name the widths."""
        return (
            f"low_channels={self.low_channels}, high_channels={self.high_channels}, "
            f"align_corners={self.align_corners}"
        )


def _flops(module: SemanticEmbedding, low: tuple[int, ...], *higher: tuple[int, ...]) -> int:
    """Count the convolutions; without their shapes, every level has half the sides below it."""
    batch, _, *size = low
    levels = range(1, len(module.embed) + 1)
    halved = [tuple(max(side >> level, 1) for side in size) for level in levels]
    sizes = [shape[2:] for shape in higher] or halved
    total = 0
    for embed, sides in zip(module.embed, sizes, strict=True):
        total += math.prod(sides) * sum(p.numel() for p in embed.parameters() if p.ndim == 4)
    return 2 * batch * total


CARD = Card(
    key="seb",
    factory=SemanticEmbedding,
    title="Semantic Embedding Branch",
    summary="Multiply a fine map by the convolved and upsampled maps of the levels above it.",
    equation="y_l = x_l * prod_k up(W_k * x_k)",
    paper=Paper(
        title="ExFuse: Enhancing Feature Fusion for Semantic Segmentation",
        authors="Zhang, Zhang, Peng, Xue, Sun",
        venue="ECCV",
        year=2018,
        arxiv="1804.03821",
        code="none published",
    ),
    kind="merge",
    place=Place(
        role="merge",
        note="on each encoder map that a decoder takes, with the encoder maps above it",
    ),
    identity_at_start=False,
    min_channels=1,
    flops=_flops,
    samples=(
        Sample(
            args=(6, 10),
            shape=(2, 6, 9, 13),
            other_shapes=((2, 10, 5, 7),),
            parameters=9 * 10 * 6 + 6,
        ),
        Sample(
            args=(5, (8, 7)),
            options={"align_corners": True},
            shape=(2, 5, 12, 10),
            other_shapes=((2, 8, 6, 5), (2, 7, 3, 4)),
            parameters=9 * 8 * 5 + 5 + 9 * 7 * 5 + 5,
        ),
        Sample(
            args=(4, (6,)),
            options={"kernel_size": 1},
            shape=(2, 4, 5, 6),
            other_shapes=((2, 6, 5, 6),),
            parameters=6 * 4 + 4,
        ),
    ),
    formats=(
        CheckpointFormat(source="fuse_seg", rename={"conv": "embed.0"}),
        CheckpointFormat(
            source="exfuse", options={"align_corners": True}, rename={"convs": "embed"}
        ),
    ),
    deviations=(
        "there is no official code; upsampling follows PyTorch's default, align_corners=False.",
    ),
)
