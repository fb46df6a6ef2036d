"""scSE: recordings of the authors' code, of its two branches, and of smp's variant."""

import torch
from torch import Tensor, nn

from tests.oracles import Golden
from torchplug.modules import ConcurrentSE, SpatialExcite, SqueezeExcite

GOLDENS = (
    Golden("scse__aimed__max_r2_c32", "official", (32,)),
    Golden("scse__aimed__max_r4_c36", "official", (36,), {"reduction": 4}),
    Golden("scse__smp__add_r3_c27", "smp", (27,), {"reduction": 3, "fusion": "add"}),
    Golden(
        "scse__aimed-cse__r2_c20",
        "official_channel",
        (20,),
        {"reduction": 2},
        factory=SqueezeExcite,
    ),
    Golden("scse__aimed-sse__c20", "official_spatial", (20,), factory=SpatialExcite),
)


def reference(module: ConcurrentSE, x: Tensor) -> Tensor:
    """Each element from its two gates."""
    reduce, expand, squeeze = module.channel.reduce, module.channel.expand, module.spatial.squeeze
    result = torch.empty_like(x)
    for n, sample in enumerate(x):
        averages = torch.stack([plane.mean() for plane in sample])
        hidden = activate(module.channel.act, weigh(reduce, averages))
        channel = squash(module.channel.gate, weigh(expand, hidden))
        for h in range(x.shape[2]):
            for w in range(x.shape[3]):
                position = squash(module.spatial.gate, weigh(squeeze, sample[:, h, w]))
                by_channel = channel * sample[:, h, w]
                by_position = position * sample[:, h, w]
                if module.fusion == "add":
                    result[n, :, h, w] = by_channel + by_position
                else:
                    result[n, :, h, w] = torch.where(
                        by_channel > by_position, by_channel, by_position
                    )
    return result


def weigh(layer: nn.Conv2d, vector: Tensor) -> Tensor:
    product = layer.weight.flatten(1) @ vector
    return product if layer.bias is None else product + layer.bias


def activate(act: nn.Module, hidden: Tensor) -> Tensor:
    if isinstance(act, nn.SiLU):
        return hidden / (1 + torch.exp(-hidden))
    return hidden.clamp(min=0)


def squash(gate: nn.Module, score: Tensor) -> Tensor:
    if isinstance(gate, nn.Hardsigmoid):
        return ((score + 3) / 6).clamp(0, 1)
    return 1 / (1 + torch.exp(-score))
