"""CBAM: recordings of the authors' code, pytorchcv's and timm's."""

import torch
from torch import Tensor, nn

from tests.oracles import Golden
from torchplug.modules import CBAM

GOLDENS = (
    Golden("cbam__official__r16_c32", "official", (32,)),
    Golden("cbam__official__r4_c36", "official", (36,), {"reduction": 4}),
    Golden(
        "cbam__official__allpools_r4_c24",
        "official",
        (24,),
        {"reduction": 4, "pools": ("avg", "max", "lp", "lse")},
    ),
    Golden("cbam__pytorchcv__r8_c40", "pytorchcv", (40,), {"reduction": 8}),
    Golden("cbam__timm__default_c32", "timm", (32,), {"bias": False}),
)


def reference(module: CBAM, x: Tensor) -> Tensor:
    """Section 3 of the paper, one sample, one channel and one position at a time."""
    if module.order == "spatial_first":
        return torch.stack([channel_gate(module, spatial_gate(module, sample)) for sample in x])
    return torch.stack([spatial_gate(module, channel_gate(module, sample)) for sample in x])


def channel_gate(module: CBAM, sample: Tensor) -> Tensor:
    gate = module.channel
    scores = torch.zeros(len(sample), dtype=sample.dtype)
    pools = {
        "avg": lambda plane: plane.sum() / plane.numel(),
        "max": lambda plane: max(plane.flatten()),
        "lp": lambda plane: plane.flatten().norm(2),
        "lse": lambda plane: torch.log(torch.exp(plane).sum()),
    }
    for pool in gate.pools:
        hidden = gate.reduce.weight.flatten(1) @ torch.stack([pools[pool](p) for p in sample])
        if gate.reduce.bias is not None:
            hidden = hidden + gate.reduce.bias
        scores = scores + gate.expand.weight.flatten(1) @ hidden.clamp(min=0)
        if gate.expand.bias is not None:
            scores = scores + gate.expand.bias
    return sample * squash(gate.gate, scores)[:, None, None]


def spatial_gate(module: CBAM, sample: Tensor) -> Tensor:
    if module.spatial is None:
        return sample
    kernel, norm = module.spatial.conv.weight[0], module.spatial.norm
    reach = kernel.shape[-1] // 2
    height, width = sample.shape[1:]
    planes = torch.zeros(2, height + 2 * reach, width + 2 * reach, dtype=sample.dtype)
    for h in range(height):
        for w in range(width):
            planes[0, h + reach, w + reach] = max(sample[:, h, w])
            planes[1, h + reach, w + reach] = sum(sample[:, h, w]) / len(sample)
    result = torch.empty_like(sample)
    for h in range(height):
        for w in range(width):
            window = planes[:, h : h + 2 * reach + 1, w : w + 2 * reach + 1]
            score = (window * kernel).sum()
            if isinstance(norm, nn.BatchNorm2d):
                centered = (score - norm.running_mean) / torch.sqrt(norm.running_var + norm.eps)
                score = (centered * norm.weight + norm.bias).squeeze()
            result[:, h, w] = sample[:, h, w] * squash(module.spatial.gate, score)
    return result


def squash(gate: nn.Module, score: Tensor) -> Tensor:
    if isinstance(gate, nn.Hardsigmoid):
        return ((score + 3) / 6).clamp(0, 1)
    return 1 / (1 + torch.exp(-score))
