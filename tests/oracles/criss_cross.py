"""Criss-Cross attention: recordings of the authors' code and of mmcv's."""

import torch
from torch import Tensor, nn

from tests.oracles import Golden
from torchplug.modules import CrissCross

GOLDENS = (
    Golden("cc__official__r2_c32", "official", (32,)),
    Golden("cc__official__r2_c40_wide", "official", (40,)),
    Golden("cc__mmcv__r1_c24", "mmcv", (24,), {"recurrence": 1}),
    Golden("cc__mmcv__r2_c24", "mmcv", (24,)),
)


def reference(module: CrissCross, x: Tensor) -> Tensor:
    """Section 3.2 of the paper, one image and one position at a time."""
    for _ in range(module.recurrence):
        x = torch.stack([image + module.gamma * gather(module, image) for image in x])
    return x


def gather(module: CrissCross, image: Tensor) -> Tensor:
    query, key, value = (project(conv, image) for conv in (module.query, module.key, module.value))
    _, height, width = image.shape
    result = torch.empty_like(image)
    for h in range(height):
        for w in range(width):
            cross = [(h, other) for other in range(width)]
            cross += [(other, w) for other in range(height) if other != h]
            shares = [torch.exp(query[:, h, w] @ key[:, a, b]) for a, b in cross]
            products = [s * value[:, a, b] for s, (a, b) in zip(shares, cross, strict=True)]
            result[:, h, w] = sum(products) / sum(shares)
    return result


def project(conv: nn.Conv2d, image: Tensor) -> Tensor:
    return torch.einsum("oc,chw->ohw", conv.weight[:, :, 0, 0], image) + conv.bias[:, None, None]
