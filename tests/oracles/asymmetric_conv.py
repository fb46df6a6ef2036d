"""Asymmetric convolution: recordings of the authors' code, and of an older copy of it."""

import torch
from torch import Tensor

from tests.oracles import Golden
from tests.oracles.naive import normalize
from tests.oracles.windows import sum_windows, zero_pad
from torchplug.modules import AsymmetricConv

GOLDENS = (
    Golden("acnet__official__k3p0_crop", "official", (5, 7), {"padding": 0}),
    Golden("acnet__official__k3p1_depthwise", "official", (8, 8), {"groups": 8}),
    Golden("acnet__official__k3p1_reflect", "official", (5, 7), {"padding_mode": "reflect"}),
    Golden("acnet__official__k3p2_overpad", "official", (5, 7), {"padding": 2}),
    Golden(
        "acnet__official__k5p1s2_crop",
        "official",
        (5, 7),
        {"kernel_size": 5, "stride": 2, "padding": 1},
    ),
    Golden("acnet__official__k5p2", "official", (5, 7), {"kernel_size": 5}),
    Golden("acnet__seed__k3s1p1", "official", (6, 8)),
)


def reference(module: AsymmetricConv, x: Tensor) -> Tensor:
    """Pad once; the row and the column read the middle of what the square kernel reads."""
    square = module.square
    border, step = square.padding[0], square.dilation[0]
    middle = step * (module.kernel_size // 2)
    settings = {"stride": square.stride[0], "dilation": step, "groups": square.groups}
    samples = []
    for sample in x:
        framed = frame(sample, border, square.padding_mode)
        height, width = framed.shape[1:]
        rows = framed[:, middle : height - middle]
        columns = framed[:, :, middle : width - middle]
        samples.append(
            normalize(module.square_norm, sum_windows(framed, square.weight, **settings))
            + normalize(
                module.horizontal_norm, sum_windows(rows, module.horizontal.weight, **settings)
            )
            + normalize(
                module.vertical_norm, sum_windows(columns, module.vertical.weight, **settings)
            )
        )
    return torch.stack(samples)


def frame(sample: Tensor, border: int, mode: str) -> Tensor:
    if mode == "zeros":
        return zero_pad(sample, (border, border), (border, border))
    height, width = sample.shape[1:]
    rows = torch.arange(-border, height + border).clamp(0, height - 1)
    columns = torch.arange(-border, width + border).clamp(0, width - 1)
    return sample[:, rows][:, :, columns]
