"""SEB: recordings of two public re-implementations; the authors published no code."""

import torch
from torch import Tensor

from tests.oracles import Golden
from tests.oracles.naive_layers import run, upsample
from torchplug.modules import SemanticEmbedding

GOLDENS = (
    Golden("seb__fuse_seg__c16_7", "fuse_seg", (7, 16), inputs=("input0", "input1")),
    Golden("seb__fuse_seg__odd_c9_5", "fuse_seg", (5, 9), inputs=("input0", "input1")),
    Golden(
        "seb__exfuse_public__product_two_levels",
        "exfuse",
        (5, (12, 9)),
        {"align_corners": True},
        inputs=("input2", "input0", "input1"),
    ),
)


def reference(module: SemanticEmbedding, low: Tensor, *higher: Tensor) -> Tensor:
    """The product, one sample and one level at a time."""
    return torch.stack([multiply(module, *levels) for levels in zip(low, *higher, strict=True)])


def multiply(module: SemanticEmbedding, low: Tensor, *higher: Tensor) -> Tensor:
    product = low
    for embed, high in zip(module.embed, higher, strict=True):
        known = run(embed, high)
        product = product * upsample(known, low.shape[1:], align_corners=module.align_corners)
    return product
