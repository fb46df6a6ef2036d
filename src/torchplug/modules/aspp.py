"""Atrous spatial pyramid pooling: one map seen by 3x3 kernels of several rates and as a whole.

Equation (Chen et al. 2017, section 3.3 and figure 5), with x the map and r a rate::

    b_0 = relu(BN(W_0 x)),   b_r = relu(BN(W_r *_r x))         1x1, and 3x3 with dilation r
    g   = relu(BN(W_g mean_hw(x)))                              the image as a whole
    y   = relu(BN(W [g, b_0, b_6, b_12, b_18]))

g is the same at every position, so its part of W is a bias of each image: the concatenation holds
the branches only, with the same numbers and a fifth less work in W. Resizing g from one position
is a copy for either meaning of ``align_corners``.

Compared with torchvision 0.29.2, and with the heads of mmsegmentation 1.2.2, whose separable
branches are those of DeepLabv3+ (norm and activation after both halves, as in the authors' code).
The order of concatenation is that of the authors' first code: image, 1x1, rates.

Deviations:

- batch norm is PyTorch's default; the authors move its statistics 333 times more slowly
  (``norm_layer=partial(nn.BatchNorm2d, momentum=3e-4)``).
- the whole map is averaged, as in every later code; the authors' first code averages a window of
  the training crop's size.
"""

import re
from collections import OrderedDict
from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from torchplug.card import Card, CheckpointFormat, Paper, Place, Sample, State
from torchplug.errors import explain
from torchplug.nn import (
    ActLayer,
    ConvNormAct,
    NormLayer,
    check_batch,
    check_choice,
    check_fraction,
    check_odd,
    check_positive,
    check_several,
    conv_upsampled,
    rename_matches,
    reset_layers,
)

Atrous = Literal["dense", "separable", "linear_separable"]


def atrous_conv(
    in_channels: int,
    out_channels: int,
    rate: int,
    *,
    atrous: Atrous = "dense",
    norm_layer: NormLayer | None = nn.BatchNorm2d,
    act_layer: ActLayer | None = nn.ReLU,
    device: Any = None,
    dtype: Any = None,
) -> nn.Sequential:
    """Return one branch: a 3x3 convolution of dilation ``rate``, with norm and activation.

    Args:
        in_channels: width of the map.
        out_channels: width of the branch.
        rate: dilation; a rate as large as the map leaves 8 of 9 weights nothing to see.
        atrous: ``"dense"`` as in DeepLabv3; ``"separable"`` into a depthwise and a 1x1 convolution,
            each with norm and activation, as in DeepLabv3+; or ``"linear_separable"``, nothing
            between the two, as in several libraries.
        norm_layer: norm, or ``None``.
        act_layer: activation, or ``None``.
        device: where the parameters are made.
        dtype: type of the parameters.

    >>> atrous_conv(64, 32, 6)(torch.randn(2, 64, 9, 13)).shape
    torch.Size([2, 32, 9, 13])
    """
    check_choice("atrous", atrous, ("dense", "separable", "linear_separable"))
    factory: dict[str, Any] = {"device": device, "dtype": dtype}
    layers: dict[str, Any] = {"norm_layer": norm_layer, "act_layer": act_layer, **factory}
    if atrous == "dense":
        return ConvNormAct(in_channels, out_channels, 3, dilation=rate, **layers)
    spread: dict[str, Any] = {"dilation": rate, "groups": in_channels}
    depthwise: nn.Module
    if atrous == "separable":
        depthwise = ConvNormAct(in_channels, in_channels, 3, **spread, **layers)
    else:
        depthwise = nn.Conv2d(
            in_channels, in_channels, 3, padding=rate, bias=False, **spread, **factory
        )
    pointwise = ConvNormAct(in_channels, out_channels, **layers)
    return nn.Sequential(OrderedDict(depthwise=depthwise, pointwise=pointwise))


class ASPP(nn.Module):
    """Atrous spatial pyramid pooling of DeepLabv3 and v3+.

    Args:
        in_channels: width of the map.
        out_channels: width of the result, 256 in the paper. ``None`` stops at the concatenation.
        rates: dilations of the 3x3 branches: 6, 12, 18 where the backbone keeps a sixteenth of the
            resolution, twice these where it keeps an eighth.
        hidden_channels: width of each branch; ``out_channels`` if not given, as in the paper.
        atrous: form of the 3x3 branches, see :func:`atrous_conv`; DeepLabv3+ takes
            ``"separable"``.
        image_pooling: whether the image as a whole is a branch.
        kernel_size: of the last convolution; 1 in the paper, 3 in mmsegmentation.
        norm_layer: norm of every convolution, or ``None``: then they have a bias. Batch norm after
            the image's average cannot train on one image a device; a group norm can.
        act_layer: activation of the branches and of the result.
        dropout: share of the result that training sets to zero; 0.1 in the authors' code, 0.5 in
            torchvision.
        device: where the parameters are made.
        dtype: type of the parameters.

    Shape:
        ``(N, C_in, H, W) -> (N, C_out, H, W)`` for any ``H, W >= 1``.

    Raises:
        ValueError: if a width or rate is not positive, or a choice is unknown; in training, if
            batch norm sees one image.

    Source:
        Rethinking Atrous Convolution for Semantic Image Segmentation, arXiv 1706.05587;
        tensorflow/models.

    >>> ASPP(64, 32)(torch.randn(2, 64, 9, 13)).shape
    torch.Size([2, 32, 9, 13])
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int | None,
        *,
        rates: Sequence[int] = (6, 12, 18),
        hidden_channels: int | None = None,
        atrous: Atrous = "dense",
        image_pooling: bool = True,
        kernel_size: int = 1,
        norm_layer: NormLayer | None = nn.BatchNorm2d,
        act_layer: ActLayer = nn.ReLU,
        dropout: float = 0.1,
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        super().__init__()
        check_odd("kernel_size", kernel_size)
        hidden = _branch_width(out_channels, hidden_channels)
        check_positive({"in_channels": in_channels, "hidden_channels": hidden})
        check_fraction("dropout", dropout)
        check_several("rates", rates)
        check_positive({f"rates[{index}]": rate for index, rate in enumerate(rates)})
        self.in_channels, self.hidden_channels, self.rates = in_channels, hidden, tuple(rates)
        layers: dict[str, Any] = {
            "norm_layer": norm_layer,
            "act_layer": act_layer,
            "device": device,
            "dtype": dtype,
        }
        self.image = ConvNormAct(in_channels, hidden, **layers) if image_pooling else None
        self.branches = nn.ModuleList([ConvNormAct(in_channels, hidden, **layers)])
        for rate in rates:
            self.branches.append(atrous_conv(in_channels, hidden, rate, atrous=atrous, **layers))
        self.out_channels = (len(self.branches) + image_pooling) * hidden
        self.project: ConvNormAct | None = None
        if out_channels is not None:
            check_positive({"out_channels": out_channels})
            concatenated, self.out_channels = self.out_channels, out_channels
            self.project = ConvNormAct(concatenated, out_channels, kernel_size, **layers)
        self.dropout = nn.Dropout(dropout)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw the weights from PyTorch's default; the paper names no other."""
        reset_layers(self)

    def forward(self, x: Tensor) -> Tensor:
        """Return what the branches and the whole image say together."""
        maps = [branch(x) for branch in self.branches]
        image = None if self.image is None else self._see_image(x, self.image)
        if self.project is None or not self.project.is_bare():
            if image is not None:
                maps.insert(0, torch.zeros_like(maps[0]) + image)  # in the branches' layout
            y = torch.cat(maps, 1)
            return y if self.project is None else self.dropout(self.project(y))
        conv = self.project.conv
        weight = conv.weight.tensor_split([-len(maps) * self.hidden_channels], 1)
        padding = conv.kernel_size[0] // 2
        y = F.conv2d(torch.cat(maps, 1), weight[1], conv.bias, padding=padding)
        if image is not None and padding == 0:
            y = y + F.conv2d(image, weight[0])
        elif image is not None:  # a kernel that reaches over the border sees zeros there
            y = y + conv_upsampled([image], weight[0], x.shape[2:], align_corners=False)
        return self.dropout(self.project.finish(y))

    def _see_image(self, x: Tensor, layers: ConvNormAct) -> Tensor:
        pooled = x.mean((2, 3), keepdim=True)
        for layer in layers.children():
            check_batch(pooled, layer, owner="ASPP")
        return layers(pooled)

    def extra_repr(self) -> str:
        """Name the resolved widths and rates."""
        return (
            f"in_channels={self.in_channels}, out_channels={self.out_channels}, "
            f"hidden_channels={self.hidden_channels}, rates={self.rates}"
        )


def _branch_width(out_channels: int | None, hidden_channels: int | None) -> int:
    if out_channels is not None:
        check_positive({"out_channels": out_channels})
    width = out_channels if hidden_channels is None else hidden_channels
    if width is None:
        rule = "a concatenation needs the width of its branches"
        fix = "pass one of the two"
        raise ValueError(explain(rule, "out_channels=None and hidden_channels=None", fix))
    return width


def _flops(module: ASPP, shape: tuple[int, ...]) -> int:
    batch, channels, height, width = shape
    positions, hidden = height * width, module.hidden_channels
    convolutions = [layer for layer in module.branches.modules() if isinstance(layer, nn.Conv2d)]
    branches = positions * sum(conv.weight.numel() for conv in convolutions)
    image = channels * hidden if module.image is not None else 0
    if module.project is not None:
        out, kernel = module.out_channels, module.project.conv.kernel_size[0]
        taps = out * hidden * kernel**2
        branches += positions * len(module.branches) * taps
        if module.image is not None:
            image += taps
            if kernel > 1:
                image += out * height * kernel * (kernel + width)
    return 2 * batch * (branches + image)


def _read_torchvision(state: State) -> State:
    """Move the image branch, torchvision's last, to the front."""
    last = max(int(name.split(".")[1]) for name in state if name.startswith("convs."))
    state = rename_matches(
        {
            rf"^convs\.{last}\.1\.": "image.conv.",
            rf"^convs\.{last}\.2\.": "image.norm.",
            r"^convs\.(\d+)\.0\.": r"branches.\1.conv.",
            r"^convs\.(\d+)\.1\.": r"branches.\1.norm.",
            r"^project\.0\.": "project.conv.",
            r"^project\.1\.": "project.norm.",
        }
    )(state)
    weight, hidden = state["project.conv.weight"], state["image.conv.weight"].shape[0]
    state["project.conv.weight"] = torch.cat([weight[:, -hidden:], weight[:, :-hidden]], 1)
    return state


def _read_smp(state: State) -> State:
    """Read torchvision's names, and a depthwise convolution and its pointwise in a branch."""
    split = {name.split(".")[1] for name in state if re.match(r"convs\.\d+\.0\.1\.", name)}
    branch = rf"^convs\.({'|'.join(split)})"
    patterns = {
        rf"{branch}\.0\.0\.": r"branches.\1.depthwise.",
        rf"{branch}\.0\.1\.": r"branches.\1.pointwise.conv.",
        rf"{branch}\.1\.": r"branches.\1.pointwise.norm.",
    }
    return _read_torchvision(rename_matches(patterns)(state))


_OWN = r"image|project|branches\.\d+"
_MMSEG = {
    r"^image_pool\.1\.": "image.",
    r"^bottleneck\.": "project.",
    r"^(aspp_modules\.)?(\d+)\.": r"branches.\2.",
    rf"^({_OWN})(\.depthwise|\.pointwise)_conv\.": r"\1\2.",
    rf"^((?:{_OWN})(?:\.\w+)?)\.bn\.": r"\1.norm.",
}


def _count(
    width: int, out: int, *, hidden: int, rates: int = 3, separable: bool = False, taps: int = 1
) -> int:
    atrous = 9 * width * hidden + 2 * hidden
    if separable:
        atrous = 9 * width + 2 * width + width * hidden + 2 * hidden
    pointwise = width * hidden + 2 * hidden  # the 1x1 branch, and the image's
    return 2 * pointwise + rates * atrous + taps * (2 + rates) * hidden * out + 2 * out


CARD = Card(
    key="aspp",
    factory=ASPP,
    title="Atrous Spatial Pyramid Pooling",
    summary="See one map by kernels of several dilations and as a whole, and mix what they find.",
    equation="y = relu(BN(W [g, b_0, b_6, b_12, b_18])), b_r = relu(BN(W_r *_r x))",
    paper=Paper(
        title="Rethinking Atrous Convolution for Semantic Image Segmentation",
        authors="Chen, Papandreou, Schroff, Adam",
        venue="arXiv",
        year=2017,
        arxiv="1706.05587",
        code="https://github.com/tensorflow/models/tree/master/research/deeplab",
    ),
    kind="context",
    place=Place(
        role="backbone_end",
        note="on the last map of a backbone that keeps a sixteenth or an eighth of the resolution",
    ),
    identity_at_start=False,
    min_channels=1,
    flops=_flops,
    samples=(
        Sample(args=(12, 6), shape=(2, 12, 9, 13), parameters=_count(12, 6, hidden=6)),
        Sample(
            args=(10, 7),
            options={"rates": (1, 2), "hidden_channels": 5, "atrous": "separable"},
            shape=(2, 10, 6, 9),
            parameters=_count(10, 7, hidden=5, rates=2, separable=True),
        ),
        Sample(
            args=(8, 5),
            options={"rates": (2,), "kernel_size": 3, "act_layer": nn.SiLU, "dropout": 0.0},
            shape=(2, 8, 7, 5),
            parameters=_count(8, 5, hidden=5, rates=1, taps=9),
        ),
        Sample(
            args=(6, None),
            options={"rates": (3,), "hidden_channels": 4, "atrous": "linear_separable"},
            shape=(2, 6, 7, 8),
            parameters=2 * (6 * 4 + 8) + 9 * 6 + 6 * 4 + 8,
        ),
        Sample(
            args=(7, 4),
            options={"image_pooling": False, "norm_layer": None},
            shape=(2, 7, 8, 6),
            parameters=7 * 4 + 4 + 3 * (9 * 7 * 4 + 4) + 4 * 4 * 4 + 4,
        ),
    ),
    formats=(
        CheckpointFormat(source="torchvision", rename={}, transform=_read_torchvision),
        CheckpointFormat(
            source="smp",
            options={"atrous": "linear_separable"},
            rename={},
            transform=_read_smp,
        ),
        CheckpointFormat(
            source="mmseg",
            options={"kernel_size": 3},
            rename={"conv_seg": None},
            transform=rename_matches(_MMSEG),
        ),
        CheckpointFormat(
            source="ebook",  # one branch, as two of our separable ones: atrous, then not
            rename={
                "atrous_convolution.conv1": "0.depthwise",
                "atrous_convolution.pointwise": "0.pointwise.conv",
                "bn": "0.pointwise.norm",
                "conv1.conv1": "1.depthwise",
                "conv1.pointwise": "1.pointwise.conv",
                "bn1": "1.pointwise.norm",
            },
        ),
    ),
    deviations=(
        "batch norm is PyTorch's default; the authors' statistics move 333 times more slowly.",
        "the whole map is averaged; the authors' first code averages a window of the training "
        "crop's size.",
    ),
)
