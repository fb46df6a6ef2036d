"""Strip pooling: recordings of the authors' two modules and of their pyramid."""

import torch
from torch import Tensor, nn

from tests.oracles import Golden
from torchplug.modules import MixedPooling, PyramidPooling, StripPooling


class Gate(StripPooling):
    """What the authors' class returns: their blocks multiply by it."""

    def forward(self, x: Tensor) -> Tensor:
        return self.find_gate(x)


GOLDENS = (
    Golden("strippool__official__spm_c10", "official", (10,), factory=Gate),
    Golden("strippool__official__spm_c7_narrow", "official", (7,), factory=Gate),
    Golden(
        "strippool__official__mpm_20_12_small_map", "official_mixed", (12,), factory=MixedPooling
    ),
    Golden(
        "strippool__official__mpm_5_3_odd_c18",
        "official_mixed",
        (18,),
        {"bins": (5, 3)},
        factory=MixedPooling,
    ),
    Golden(
        "strippool__official__pyramidpooling",
        "official_pyramid",
        (16, None),
        factory=PyramidPooling,
    ),
)


def reference(module: StripPooling, x: Tensor) -> Tensor:
    """Section 3.1 of the paper, one image and one position at a time."""
    samples = []
    for image in x:
        _, height, width = image.shape
        rows = [image[:, i].sum(1) / width for i in range(height)]
        columns = [image[:, :, j].sum(1) / height for j in range(width)]
        h = convolve(module.strips.horizontal, rows)
        v = convolve(module.strips.vertical, columns)
        result = torch.empty_like(image)
        for i in range(height):
            for j in range(width):
                energy = module.expand.weight.flatten(1) @ activate(module.act, h[i] + v[j])
                gate = squash(module.gate, energy + module.expand.bias)
                result[:, i, j] = gate * image[:, i, j]
        samples.append(result)
    return torch.stack(samples)


def convolve(layers: nn.Sequential, strip: list[Tensor]) -> list[Tensor]:
    """Convolve and normalize a strip; beyond its ends are zeros."""
    taps = layers.conv.weight.flatten(2)
    reach, norm = taps.shape[2] // 2, layers.norm
    result = []
    for position in range(len(strip)):
        total = torch.zeros(len(taps), dtype=taps.dtype)
        for tap in range(taps.shape[2]):
            source = position + tap - reach
            if 0 <= source < len(strip):
                total = total + taps[:, :, tap] @ strip[source]
        centered = (total - norm.running_mean) / torch.sqrt(norm.running_var + norm.eps)
        result.append(centered * norm.weight + norm.bias)
    return result


def activate(act: nn.Module, vector: Tensor) -> Tensor:
    if isinstance(act, nn.SiLU):
        return vector / (1 + torch.exp(-vector))
    return vector.clamp(min=0)


def squash(gate: nn.Module, energy: Tensor) -> Tensor:
    if isinstance(gate, nn.Hardsigmoid):
        return ((energy + 3) / 6).clamp(0, 1)
    return 1 / (1 + torch.exp(-energy))
