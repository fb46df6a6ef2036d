"""BlazeBlock: recordings of the port of the released networks and of one of the paper's blocks."""

import torch
from torch import Tensor, nn

from tests.oracles import Golden
from tests.oracles.naive import normalize
from tests.oracles.windows import same_border, sum_windows, zero_pad
from torchplug.modules import BlazeBlock

_PORT = {"padding": "symmetric"}

GOLDENS = (
    Golden(
        "blazeblock__mediapipe_port__k3_pad_8_11",
        "mediapipe",
        (8, 11),
        {"kernel_size": 3, "norm_layer": None},
    ),
    Golden(
        "blazeblock__tkat0__double_k3_s2",
        "tkat0",
        (8, 14),
        {**_PORT, "hidden_channels": 5, "stride": 2, "kernel_size": 3},
    ),
    Golden("blazeblock__tkat0__double_k5_12_5_12", "tkat0", (12, 12), {"hidden_channels": 5}),
    Golden(
        "blazeblock__tkat0__double_k5_s2_8_5_14",
        "tkat0",
        (8, 14),
        {**_PORT, "hidden_channels": 5, "stride": 2},
    ),
    Golden("blazeblock__tkat0__single_k5", "tkat0", (8, 8)),
    Golden("blazeblock__tkat0__single_k5_pad_9_12_odd", "tkat0", (9, 12)),
    Golden("blazeblock__tkat0__single_k5_s2_8_16", "tkat0", (8, 16), {**_PORT, "stride": 2}),
)


def reference(module: BlazeBlock, x: Tensor) -> Tensor:
    """Section 3.1 of the paper, one sample at a time."""
    samples = []
    for sample in x:
        y = run_half(module.first, sample)
        if module.second is not None:
            y = run_half(module.second, activate(module, y))
        y = y.clone()
        for channel, plane in enumerate(sample):
            y[channel] += shrink(plane) if module.stride == 2 else plane
        samples.append(activate(module, y))
    return torch.stack(samples)


def activate(module: BlazeBlock, y: Tensor) -> Tensor:
    return y / (1 + torch.exp(-y)) if isinstance(module.act, nn.SiLU) else y.clamp(min=0)


def shrink(plane: Tensor) -> Tensor:
    """The maximum of every 2x2 window, of what there is of it at the border."""
    height, width = plane.shape
    rows = [
        torch.stack([plane[h : h + 2, w : w + 2].max() for w in range(0, width, 2)])
        for h in range(0, height, 2)
    ]
    return torch.stack(rows)


def run_half(half: nn.Sequential, sample: Tensor) -> Tensor:
    conv, size, stride = half.depthwise, half.depthwise.kernel_size[0], half.depthwise.stride[0]
    borders = [(size // 2, size // 2)] * 2
    if conv.padding == (0, 0):
        borders = [same_border(side, size, stride, 1) for side in sample.shape[1:]]
    y = sum_windows(zero_pad(sample, *borders), conv.weight, stride=stride, groups=conv.in_channels)
    y = follow(y, conv, half, "depthwise_norm")
    mixed = torch.einsum("oc,chw->ohw", half.pointwise.weight.flatten(1), y)
    return follow(mixed, half.pointwise, half, "pointwise_norm")


def follow(y: Tensor, conv: nn.Conv2d, half: nn.Sequential, norm: str) -> Tensor:
    if conv.bias is not None:
        return y + conv.bias[:, None, None]
    return normalize(half.get_submodule(norm), y)
