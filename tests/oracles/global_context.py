"""Global Context: recordings of the authors' code, mmcv's and timm's."""

import torch
from torch import Tensor

from tests.oracles import Golden
from torchplug.modules import GlobalContext
from torchplug.modules.global_context import ContextTransform

GOLDENS = (
    Golden("gc__official__att_add_r4_c32", "official", (32,), {"reduction": 4}),
    Golden(
        "gc__official__avg_add_mul_r6_c36",
        "official",
        (36,),
        {"reduction": 6, "pooling": "average", "fusion": "scale_add"},
    ),
    Golden("gc__mmcv__att_add_mul_r16_c48", "mmcv", (48,), {"fusion": "scale_add"}),
    Golden("gc__timm__add_r4_c36", "timm", (36,), {"reduction": 4, "eps": 1e-6}),
    Golden(
        "gc__timm__default_mul_c40",
        "timm",
        (40,),
        {"reduction": 8, "fusion": "scale", "eps": 1e-6},
    ),
)


def reference(module: GlobalContext, x: Tensor) -> Tensor:
    """Section 3.3 of the paper, one sample and one position at a time."""
    samples = []
    for sample in x:
        positions = sample.flatten(1).T  # one row a position
        weights = torch.full((len(positions),), 1 / len(positions), dtype=x.dtype)
        if module.mask is not None:
            energies = [position @ module.mask.weight.flatten() for position in positions]
            shares = [torch.exp(energy) for energy in energies]
            weights = torch.stack(shares) / sum(shares)
        context = sum(w * position for w, position in zip(weights, positions, strict=True))
        refined = sample
        if module.scale is not None:
            gate = 1 / (1 + torch.exp(-transform(module.scale, context)))
            refined = refined * gate[:, None, None]
        if module.add is not None:
            refined = refined + transform(module.add, context)[:, None, None]
        samples.append(refined)
    return torch.stack(samples)


def transform(module: ContextTransform, context: Tensor) -> Tensor:
    """The bottleneck with its layer norm, if it has one, written out."""
    hidden = module.reduce.weight.flatten(1) @ context + module.reduce.bias
    if module.norm is not None:
        centered = hidden - hidden.mean()
        normed = centered / torch.sqrt(centered.square().mean() + module.norm.eps)
        hidden = normed * module.norm.weight.flatten() + module.norm.bias.flatten()
    return module.expand.weight.flatten(1) @ module.act(hidden) + module.expand.bias
