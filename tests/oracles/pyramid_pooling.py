"""Pyramid pooling: recordings of the authors' code, mmsegmentation's and a popular copy's."""

import torch
from torch import Tensor, nn

from tests.oracles import Golden
from tests.oracles.naive_layers import average, pool, run, upsample
from torchplug.modules import PyramidPooling

GOLDENS = (
    Golden("ppm__official_semseg__b1_2_3_6", "official", (16, None)),
    Golden(
        "ppm__official_semseg__b1_3_5_odd",
        "official",
        (9, None),
        {"bins": (1, 3, 5), "hidden_channels": 4},
    ),
    Golden(
        "ppm__mmseg__b1_2_3_6_noalign",
        "mmseg",
        (16, None),
        {"hidden_channels": 5, "align_corners": False},
    ),
    Golden(
        "ppm__mmseg__psphead_bottleneck3x3",
        "mmseg",
        (8, 5),
        {"hidden_channels": 5, "align_corners": False},
    ),
    Golden(
        "ppm__seed__pspmodule",
        "lextal",
        (7, 9),
        {
            "hidden_channels": 7,
            "kernel_size": 1,
            "align_corners": False,
            "norm_layer": None,
            "branch_act_layer": None,
        },
    ),
)


def reference(module: PyramidPooling, x: Tensor) -> Tensor:
    """Figure 3: pool, convolve, upsample, concatenate, convolve; one sample at a time."""
    return torch.stack([pool_pyramid(module, sample) for sample in x])


def pool_pyramid(module: PyramidPooling, sample: Tensor) -> Tensor:
    parts = [sample]
    for bins, branch in zip(module.bins, module.branches, strict=True):
        pooled = average(sample, bins)
        if module.pool == "max":
            pooled = pool(sample, bins, lambda cell: cell.sort(1).values[:, -1])
        small = run(branch, pooled)
        parts.append(upsample(small, sample.shape[1:], align_corners=module.align_corners))
    return run(module.project or nn.Identity(), torch.cat(parts))
