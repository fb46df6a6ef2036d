"""ASPP: recordings of torchvision, of mmsegmentation's two heads, and of one copied branch."""

import torch
from torch import Tensor, nn

from tests.oracles import Golden
from tests.oracles.naive_layers import run
from torchplug.modules.aspp import ASPP, atrous_conv


def chain(in_channels: int, out_channels: int, *, rate: int, dtype: torch.dtype) -> nn.Sequential:
    """The copied branch: an atrous convolution without activation, then one that is not atrous."""
    return nn.Sequential(
        atrous_conv(
            in_channels, out_channels, rate, atrous="linear_separable", act_layer=None, dtype=dtype
        ),
        atrous_conv(out_channels, out_channels, 1, atrous="linear_separable", dtype=dtype),
    )


GOLDENS = (
    Golden("aspp__torchvision__r12_24_36", "torchvision", (12, 6), {"rates": (12, 24, 36)}),
    Golden("aspp__torchvision__r2_3", "torchvision", (7, 5), {"rates": (2, 3)}),
    Golden("aspp__mmseg__head_r6_12_18", "mmseg", (10, 6), {"kernel_size": 3}),
    Golden(
        "aspp__mmseg__head_r2_3_aligncorners",
        "mmseg",
        (10, 6),
        {"rates": (2, 3), "kernel_size": 3},
    ),
    Golden(
        "aspp__mmseg__separable_branches",
        "mmseg",
        (10, None),
        {"hidden_channels": 6, "atrous": "separable", "image_pooling": False},
    ),
    Golden("aspp__seed__branch_r6", "ebook", (7, 9), {"rate": 6}, factory=chain),
)


def reference(module: ASPP, x: Tensor) -> Tensor:
    """Figure 5 with every branch at full size, one sample at a time."""
    return torch.stack([look(module, sample) for sample in x])


def look(module: ASPP, sample: Tensor) -> Tensor:
    maps = [run(branch, sample) for branch in module.branches]
    if module.image is not None:
        mean = sample.flatten(1).sum(1)[:, None, None] / sample[0].numel()
        maps.insert(0, run(module.image, mean) * torch.ones_like(sample[:1]))
    return run(module.project or nn.Identity(), torch.cat(maps))
