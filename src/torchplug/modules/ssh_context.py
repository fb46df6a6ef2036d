"""SSH detection module: 3x3, 5x5 and 7x7 views of a map, side by side, made of 3x3 kernels.

Equation (Najibi et al., figures 3 and 4), with x the map and * a 3x3 convolution::

    d = W_3 * x                       half of the channels, a field of 3x3
    c = relu(W_c * x)                 the context module opens with a narrow map
    e = W_5 * c                       a quarter, a field of 5x5
    f = W_72 * relu(W_71 * c)         a quarter, a field of 7x7
    y = relu([d, e, f])

W_3 and W_c read the same map, and so do W_5 and W_71: each pair is one convolution here, three
instead of five, with the same numbers.

Compared with a port of the authors' Caffe definition (dechunwang/SSH-pytorch, commit eaea3d96, of
mahyarnajibi/SSH, commit 9389c2be) and with the batch-normed form that RetinaFace uses
(biubug6/Pytorch_Retinaface, commit b984b4b7). Deviations: none from the authors' definition.
"""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from torchplug.card import Card, CheckpointFormat, Paper, Place, Sample, State
from torchplug.errors import explain
from torchplug.nn import ActLayer, ConvNormAct, NormLayer, build_act, check_positive, reset_layers


class SSH(nn.Module):
    """Detection module of the single stage headless face detector, or its context part alone.

    Args:
        in_channels: width of the map.
        out_channels: width of the result, a multiple of 4: half of it sees 3x3 pixels, a quarter
            5x5 and a quarter 7x7. 512 in the paper, 256 on the finest map.
        context_only: leave the 3x3 half out; ``out_channels`` is then a multiple of 2.
        norm_layer: norm of every convolution, or ``None`` as the authors: then they have a bias.
            RetinaFace takes ``nn.BatchNorm2d``.
        act_layer: activation inside the context part; the result always ends in a ReLU. RetinaFace
            takes a leaky ReLU of 0.1 where ``out_channels`` is 64 or less.
        device: where the parameters are made.
        dtype: type of the parameters.

    Shape:
        ``(N, C_in, H, W) -> (N, C_out, H, W)`` for any ``H, W >= 1``.

    Raises:
        ValueError: if a width is not positive, or ``out_channels`` cannot be split.

    Source:
        SSH: Single Stage Headless Face Detector, arXiv 1708.03979; mahyarnajibi/SSH.

    >>> SSH(64, 32)(torch.randn(2, 64, 7, 9)).shape
    torch.Size([2, 32, 7, 9])
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        context_only: bool = False,
        norm_layer: NormLayer | None = None,
        act_layer: ActLayer = nn.ReLU,
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        super().__init__()
        check_positive({"in_channels": in_channels, "out_channels": out_channels})
        parts = 2 if context_only else 4
        if out_channels % parts:
            fix = f"pass {-(-out_channels // parts) * parts}"
            rule = f"out_channels must be a multiple of {parts}"
            raise ValueError(explain(rule, f"out_channels={out_channels}", fix))
        context = out_channels // parts
        self.in_channels, self.out_channels = in_channels, out_channels
        self.context_channels, self.detection_channels = context, out_channels - 2 * context
        layers: dict[str, Any] = {
            "norm_layer": norm_layer,
            "act_layer": None,
            "device": device,
            "dtype": dtype,
        }
        # each named after the field of what leaves the module there
        self.field3 = ConvNormAct(in_channels, self.detection_channels + context, 3, **layers)
        self.field5 = ConvNormAct(context, 2 * context, 3, **layers)
        self.field7 = ConvNormAct(context, context, 3, **layers)
        self.act = build_act(act_layer, device=device, dtype=dtype)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw weights from N(0, 0.01) and set biases to zero, as the authors do."""
        reset_layers(self)
        for layer in self.modules():
            if isinstance(layer, nn.Conv2d):
                nn.init.normal_(layer.weight, std=0.01)
                if layer.bias is not None:
                    nn.init.zeros_(layer.bias)

    def forward(self, x: Tensor) -> Tensor:
        """Return the three views of ``x``."""
        detection, context = self.field3(x).tensor_split([self.detection_channels], 1)
        near, far = self.field5(self.act(context)).chunk(2, 1)
        views = [near, self.field7(self.act(far))]
        if self.detection_channels:
            views.insert(0, detection)
        return torch.cat(views, 1).relu()

    def extra_repr(self) -> str:
        """Name the resolved widths."""
        return (
            f"in_channels={self.in_channels}, out_channels={self.out_channels}, "
            f"detection_channels={self.detection_channels}, "
            f"context_channels={self.context_channels}"
        )


def _flops(module: SSH, shape: tuple[int, ...]) -> int:
    batch, _, height, width = shape
    fields = (module.field3, module.field5, module.field7)
    return 2 * batch * height * width * sum(field.conv.weight.numel() for field in fields)


def _merge(state: State, parts: Mapping[str, Sequence[str]]) -> State:
    """Stack the tensors of the layers that are one layer here, along their outputs."""
    merged: State = {}
    known = tuple(f"{prefix}." for prefixes in parts.values() for prefix in prefixes)
    if not all(name.startswith(known) for name in state):
        raise LookupError
    for field, prefixes in parts.items():
        first = f"{prefixes[0]}."
        for ending in [name.removeprefix(first) for name in state if name.startswith(first)]:
            tensors = [state[f"{prefix}.{ending}"] for prefix in prefixes]
            merged[f"{field}.{ending}"] = torch.cat(tensors) if tensors[0].ndim else tensors[0]
    return merged


_HEADS = {
    f"m{level}_ssh_{head}": None for level in (1, 2, 3) for head in ("cls_score", "bbox_pred")
}


def _read_official(state: State) -> State:
    """Merge the layers of one detection module, whichever map it is on."""
    level = next(iter(state)).split("_")[0]  # m1, m2 or m3
    parts = {"field3": ["3x3", "dimred"], "field5": ["5x5", "7x7_1"], "field7": ["7x7"]}
    return _merge(
        state, {field: [f"{level}_ssh_{name}" for name in names] for field, names in parts.items()}
    )


def _read_retinaface(state: State) -> State:
    parts = {
        "field3": ["conv3X3", "conv5X5_1"],
        "field5": ["conv5X5_2", "conv7X7_2"],
        "field7": ["conv7x7_3"],
    }
    return {_name_layers(name): tensor for name, tensor in _merge(state, parts).items()}


def _name_layers(name: str) -> str:
    field, index, ending = name.split(".")
    return f"{field}.{('conv', 'norm')[int(index)]}.{ending}"


def _read_ebook(state: State) -> State:
    """Take the convolutions' biases into the norms' means: a norm subtracts either."""
    parts = {
        "field3": ["stem"],
        "field5": ["branch1_conv3x3", "branch2_conv3x3_1"],
        "field7": ["branch2_conv3x3_2"],
    }
    merged = {
        name.replace(".conv3x3.", ".conv.").replace(".bn.", ".norm."): tensor
        for name, tensor in _merge(state, parts).items()
    }
    for field in parts:
        bias = merged.pop(f"{field}.conv.bias")
        merged[f"{field}.norm.running_mean"] = merged[f"{field}.norm.running_mean"] - bias
    return merged


def _count(width: int, context: int, *, detection: int, each: int = 1) -> int:
    """Count weights, and ``each`` further parameter of an output: a bias, or a norm's two."""
    kernels = width * (detection + context) + context * 2 * context + context * context
    return 9 * kernels + each * (detection + 4 * context)


CARD = Card(
    key="ssh",
    factory=SSH,
    title="SSH detection and context module",
    summary="Put views of 3x3, 5x5 and 7x7 pixels around each position side by side.",
    equation="y = relu([W_3 * x, W_5 * c, W_72 * relu(W_71 * c)]), c = relu(W_c * x)",
    paper=Paper(
        title="SSH: Single Stage Headless Face Detector",
        authors="Najibi, Samangouei, Chellappa, Davis",
        venue="ICCV",
        year=2017,
        arxiv="1708.03979",
        code="https://github.com/mahyarnajibi/SSH",
    ),
    kind="context",
    place=Place(
        role="pyramid",
        note="on each map that a detector predicts from, before its heads",
    ),
    identity_at_start=False,
    min_channels=1,
    flops=_flops,
    samples=(
        Sample(args=(10, 8), shape=(2, 10, 9, 7), parameters=_count(10, 2, detection=4)),
        Sample(
            args=(6, 12),
            options={"norm_layer": nn.BatchNorm2d, "act_layer": nn.LeakyReLU},
            shape=(2, 6, 5, 8),
            parameters=_count(6, 3, detection=6, each=2),
        ),
        Sample(
            args=(7, 6),
            options={"context_only": True},
            shape=(2, 7, 6, 5),
            parameters=_count(7, 3, detection=0),
        ),
    ),
    formats=(
        CheckpointFormat(source="official", rename=_HEADS, transform=_read_official),
        CheckpointFormat(
            source="retinaface",
            options={"norm_layer": nn.BatchNorm2d, "act_layer": partial(nn.LeakyReLU, 0.1)},
            rename={},
            transform=_read_retinaface,
        ),
        CheckpointFormat(
            source="ebook",
            options={"norm_layer": nn.BatchNorm2d, "context_only": True},
            rename={},
            transform=_read_ebook,
        ),
    ),
)
