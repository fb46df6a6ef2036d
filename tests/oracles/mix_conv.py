"""Mixed convolution: recordings of timm, which repeats the authors' code, and of ultralytics."""

import torch
from torch import Tensor, nn

from tests.oracles import Golden
from tests.oracles.naive import normalize
from tests.oracles.windows import same_border, sum_windows, zero_pad
from torchplug.modules import MixConv

_YOLO = {"norm_layer": nn.BatchNorm2d, "act_layer": nn.SiLU, "wiring": "gcd"}

GOLDENS = (
    Golden("mixconv__timm__dw_357", "timm", (12,)),
    Golden("mixconv__timm__dw_357_dil2", "timm", (10,), {"dilation": 2}),
    Golden(
        "mixconv__timm__dw_35_same_s2",
        "timm",
        (9,),
        {"kernel_sizes": (3, 5), "stride": 2, "padding": "same"},
    ),
    Golden("mixconv__timm__dw_3_5_7_9_11", "timm", (11,), {"kernel_sizes": (3, 5, 7, 9, 11)}),
    Golden(
        "mixconv__timm__pw_1_1_grouped",
        "timm",
        (10, 7),
        {"kernel_sizes": (1, 1), "wiring": "split"},
    ),
    Golden(
        "mixconv__ultralytics_yolov3__equal_ch",
        "ultralytics",
        (8, 12),
        {**_YOLO, "split": "spread"},
    ),
    Golden(
        "mixconv__ultralytics_yolov3__equal_params",
        "ultralytics",
        (8, 16),
        {**_YOLO, "kernel_sizes": (3, 5), "stride": 2, "split": "parameters"},
    ),
)


def reference(module: MixConv, x: Tensor) -> Tensor:
    """Section 3.1 of the paper, one sample and one kernel size at a time."""
    return torch.stack([mix(module, sample) for sample in x])


def mix(module: MixConv, sample: Tensor) -> Tensor:
    first, maps = 0, []
    for conv in module.branches:
        part = sample
        if module.wiring in ("depthwise", "split"):
            part = sample[first : first + conv.in_channels]
            first += conv.in_channels
        mixed = sum_windows(
            zero_pad(part, *borders(module, conv, sample)),
            conv.weight,
            stride=module.stride,
            dilation=conv.dilation[0],
            groups=conv.groups,
        )
        maps.append(mixed if conv.bias is None else mixed + conv.bias[:, None, None])
    y = torch.cat(maps)
    y = y if module.norm is None else normalize(module.norm, y)
    return y / (1 + torch.exp(-y)) if isinstance(module.act, nn.SiLU) else y


def borders(module: MixConv, conv: nn.Conv2d, sample: Tensor) -> list[tuple[int, int]]:
    size, step = conv.kernel_size[0], conv.dilation[0]
    if conv.padding == (0, 0):
        return [same_border(side, size, module.stride, step) for side in sample.shape[1:]]
    return [(step * (size // 2),) * 2] * 2
