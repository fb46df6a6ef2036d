"""Squeeze-and-Excitation: recordings of the official definition and of three libraries."""

import torch
from torch import Tensor, nn

from tests.oracles import Golden
from torchplug.modules import SqueezeExcite

GOLDENS = (
    Golden("se__caffe-hujie-frank__conv2_1_c256_r16", "official", (256,), strip="conv2_1_1x1_"),
    Golden("se__moskomule__r4_c20", "moskomule", (20,), {"reduction": 4, "bias": False}),
    Golden("se__timm__r9_div1_c36", "timm", (36,), {"reduction": 9}),
    Golden("se__torchvision__c24_s6", "torchvision", (24,), {"hidden_channels": 6}),
    Golden(
        "se__torchvision__hardsigmoid_c24_s8",
        "torchvision",
        (24,),
        {"hidden_channels": 8, "gate_layer": nn.Hardsigmoid},
    ),
)


def reference(module: SqueezeExcite, x: Tensor) -> Tensor:
    """Equations 2 to 4, one sample and one channel at a time."""
    samples = []
    for sample in x:
        squeezed = torch.stack([plane.sum() / plane.numel() for plane in sample])
        hidden = module.reduce.weight.flatten(1) @ squeezed
        if module.reduce.bias is not None:
            hidden = hidden + module.reduce.bias
        gate = module.expand.weight.flatten(1) @ hidden.clamp(min=0)
        if module.expand.bias is not None:
            gate = gate + module.expand.bias
        if isinstance(module.gate, nn.Hardsigmoid):
            gate = ((gate + 3) / 6).clamp(0, 1)
        else:
            gate = 1 / (1 + torch.exp(-gate))
        samples.append(torch.stack([s * plane for s, plane in zip(gate, sample, strict=True)]))
    return torch.stack(samples)
