"""BAM: recordings of the authors' code, pytorchcv's and External-Attention's (the sum)."""

import torch
from torch import Tensor, nn

from tests.oracles import Golden
from torchplug.modules import BAM

GOLDENS = (
    Golden("bam__official__square_c32", "official", (32,)),
    Golden("bam__official__square_c80", "official", (80,)),
    Golden("bam__official-poolfix__c32", "official", (32,)),
    Golden("bam__pytorchcv__c48", "pytorchcv", (48,)),
    Golden(
        "bam__xmu-sum__r4_c32",
        "xmu",
        (32,),
        {
            "reduction": 4,
            "channel_layers": 3,
            "spatial_layers": 3,
            "dilation": 1,
            "combine": "sum",
        },
    ),
)


def reference(module: BAM, x: Tensor) -> Tensor:
    """Equations 1 to 4, one sample at a time, every convolution as a loop over its taps."""
    samples = []
    for sample in x:
        average = sample.flatten(1).sum(1)[:, None, None] / sample[0].numel()
        channel, spatial = run(module.channel, average), run(module.spatial, sample)
        energy = combine(module.combine, channel, spatial)
        samples.append(sample * (1 + 1 / (1 + torch.exp(-energy))))
    return torch.stack(samples)


def combine(how: str, channel: Tensor, spatial: Tensor) -> Tensor:
    if how == "max":
        return torch.where(channel > spatial, channel, spatial)
    return channel * spatial if how == "product" else channel + spatial


def run(branch: nn.Sequential, sample: Tensor) -> Tensor:
    for layer in branch:
        if isinstance(layer, nn.Conv2d):
            sample = convolve(layer, sample)
        else:
            conv, norm, _ = layer
            sample = convolve(conv, sample) - norm.running_mean[:, None, None]
            sample = sample / torch.sqrt(norm.running_var + norm.eps)[:, None, None]
            sample = sample * norm.weight[:, None, None] + norm.bias[:, None, None]
            sample = sample.clamp(min=0)
    return sample


def convolve(conv: nn.Conv2d, sample: Tensor) -> Tensor:
    channels, height, width = sample.shape
    reach, step, size = conv.padding[0], conv.dilation[0], conv.kernel_size[0]
    padded = torch.zeros(channels, height + 2 * reach, width + 2 * reach, dtype=sample.dtype)
    padded[:, reach : reach + height, reach : reach + width] = sample
    result = torch.zeros(conv.out_channels, height, width, dtype=sample.dtype)
    for row in range(size):
        for column in range(size):
            top, left = row * step, column * step
            window = padded[:, top : top + height, left : left + width]
            result = result + torch.einsum("oc,chw->ohw", conv.weight[:, :, row, column], window)
    return result + conv.bias[:, None, None]
