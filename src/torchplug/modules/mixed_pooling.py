"""Mixed pooling, and the segmentation head of strip pooling's paper that is made of it.

Equation (Hou et al., section 3.3), with a and b the halves of a 1x1 convolution of x::

    near = conv3x3(relu(conv3x3(a) + up(conv3x3(pool_20(a))) + up(conv3x3(pool_12(a)))))
    far  = conv3x3(relu(conv3x1(mean_w b) + conv1x3(mean_h b)))
    y    = relu(x + conv1x1([near; far]))

where every convolution has a norm, and those outside a sum also an activation.

Compared with the authors' code (Andrew-Qibin/SPNet, commit 5e97da3d), where this module is called
StripPooling. Recordings and checkpoint formats are those of the card in ``strip_pooling.py``.

Deviations: none from the code's numbers; a strip meets the map by broadcasting, where the code
resizes it bilinearly, which is the same, and the two 1x1 convolutions of x are one layer.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from torchplug.errors import explain
from torchplug.modules.strip_pooling import Strips
from torchplug.nn import (
    ActLayer,
    NormLayer,
    build_act,
    check_batch,
    check_channels,
    check_fraction,
    check_natural,
    check_several,
    conv_norm_act,
    hidden_width,
    pool_to,
    reset_layers,
)


class MixedPooling(nn.Module):
    """Mixed pooling module (MPM): a pyramid of grids for near context, strips for far context.

    The grids' averages are upsampled. The default sides fit maps of 60 x 60 (480 pixels at stride
    8); on a map smaller than a grid the cells share positions and cost more than the map itself.

    Args:
        channels: width of the map.
        bins: sides of the grids; 20 and 12 in the paper.
        reduction: divisor that gives the width of each path, rounded down; 4 in the paper.
        hidden_channels: that width itself; overrides ``reduction``.
        align_corners: of the bilinear upsampling of the grids; true in the authors' code.
        norm_layer: norm of every layer.
        act_layer: activation of the stem, of both paths, and of the output.
        device: where the parameters are made.
        dtype: type of the parameters.

    Shape:
        ``(N, C, H, W) -> (N, C, H, W)`` for any ``H, W >= 1``.

    Raises:
        ValueError: if a path would have no channel or a grid no cell; in training, if batch norm
            sees one position and one image.

    >>> MixedPooling(8, bins=(5, 3))(torch.randn(2, 8, 7, 9)).shape
    torch.Size([2, 8, 7, 9])
    """

    def __init__(
        self,
        channels: int,
        *,
        bins: tuple[int, ...] = (20, 12),
        reduction: int = 4,
        hidden_channels: int | None = None,
        align_corners: bool = True,
        norm_layer: NormLayer | None = nn.BatchNorm2d,
        act_layer: ActLayer = nn.ReLU,
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        super().__init__()
        check_several("bins", bins)
        if any(side < 1 for side in bins):
            raise ValueError(explain("a grid needs a cell", f"bins={bins}", "pass (20, 12)"))
        hidden = hidden_width(channels, reduction=reduction, hidden_channels=hidden_channels)
        self.channels, self.hidden_channels = channels, hidden
        self.bins, self.align_corners = tuple(bins), align_corners
        factory = {"device": device, "dtype": dtype}
        active = {"norm_layer": norm_layer, "act_layer": act_layer, **factory}
        linear = {**active, "act_layer": None}
        self.stem = conv_norm_act(channels, 2 * hidden, **active)
        self.local = conv_norm_act(hidden, hidden, 3, **linear)
        self.grids = nn.ModuleList(conv_norm_act(hidden, hidden, 3, **linear) for _ in bins)
        self.strips = Strips(hidden, hidden, 3, norm_layer, device, dtype)
        self.near = conv_norm_act(hidden, hidden, 3, **active)
        self.far = conv_norm_act(hidden, hidden, 3, **active)
        self.expand = conv_norm_act(2 * hidden, channels, **linear)
        self.act = build_act(act_layer, device=device, dtype=dtype)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw the weights from PyTorch's default, as the authors do."""
        reset_layers(self)

    def forward(self, x: Tensor) -> Tensor:
        """Return ``x`` plus its near and far context, activated."""
        near, far = self.stem(x).chunk(2, dim=1)
        near = self.near(self.act(self._sum_grids(near)))
        far = self.far(self.act(self.strips(far)))
        return self.act(x + self.expand(torch.cat([near, far], dim=1)))

    def _sum_grids(self, x: Tensor) -> Tensor:
        total = self.local(x)
        for side, grid in zip(self.bins, self.grids, strict=True):
            pooled = pool_to(x, side)
            check_batch(pooled, getattr(grid, "norm", None), owner="mixed pooling")
            total = total + F.interpolate(
                grid(pooled), x.shape[2:], mode="bilinear", align_corners=self.align_corners
            )
        return total

    def extra_repr(self) -> str:
        """Name the resolved widths and grids."""
        return (
            f"channels={self.channels}, hidden_channels={self.hidden_channels}, bins={self.bins}, "
            f"align_corners={self.align_corners}"
        )


class StripPoolingHead(nn.Module):
    """The paper's segmentation head: mixed pooling modules between a reduction and a classifier.

    Args:
        in_channels: width of the backbone's last map; the authors' has stride 8.
        out_channels: number of classes.
        hidden_channels: width inside; half of ``in_channels`` in the paper.
        modules: how many mixed pooling modules follow each other; 2 in the paper.
        bins: sides of their grids.
        align_corners: of the bilinear upsampling of the grids.
        dropout: probability that a channel is dropped before the classifier.
        norm_layer: norm of every layer.
        act_layer: activation of every layer.
        device: where the parameters are made.
        dtype: type of the parameters.

    Shape:
        ``(N, in_channels, H, W) -> (N, out_channels, H, W)``: scores at the map's own resolution.

    Raises:
        ValueError: if a layer would have no channel.

    >>> StripPoolingHead(32, 5, bins=(4, 2))(torch.randn(2, 32, 7, 9)).shape
    torch.Size([2, 5, 7, 9])
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        hidden_channels: int | None = None,
        modules: int = 2,
        bins: tuple[int, ...] = (20, 12),
        align_corners: bool = True,
        dropout: float = 0.1,
        norm_layer: NormLayer | None = nn.BatchNorm2d,
        act_layer: ActLayer = nn.ReLU,
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        super().__init__()
        check_channels("out_channels", out_channels)
        check_natural({"modules": modules})
        check_fraction("dropout", dropout)
        hidden = hidden_width(in_channels, reduction=2, hidden_channels=hidden_channels, at_least=4)
        factory = {"device": device, "dtype": dtype}
        layers = {"norm_layer": norm_layer, "act_layer": act_layer, **factory}
        self.in_channels, self.out_channels, self.hidden_channels = (
            in_channels,
            out_channels,
            hidden,
        )
        self.reduce = conv_norm_act(in_channels, hidden, **layers)
        self.context = nn.Sequential(
            *(
                MixedPooling(hidden, bins=bins, align_corners=align_corners, **layers)
                for _ in range(modules)
            )
        )
        self.mix = conv_norm_act(hidden, hidden // 2, 3, **layers)
        self.dropout = nn.Dropout2d(dropout)
        self.classify = nn.Conv2d(hidden // 2, out_channels, 1, **factory)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw the weights from PyTorch's default, as the authors do."""
        reset_layers(self)

    def forward(self, x: Tensor) -> Tensor:
        """Return the score of each class at every position."""
        return self.classify(self.dropout(self.mix(self.context(self.reduce(x)))))

    def extra_repr(self) -> str:
        """Name the resolved widths."""
        return (
            f"in_channels={self.in_channels}, out_channels={self.out_channels}, "
            f"hidden_channels={self.hidden_channels}"
        )
