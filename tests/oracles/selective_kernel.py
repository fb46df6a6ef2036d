"""Selective Kernel: recordings of the official definition, timm's and pytorchcv's code."""

import torch
from torch import Tensor, nn

from tests.oracles import Golden
from torchplug.modules import SelectiveKernel

GOLDENS = (
    Golden("sk__caffe-implus__sknet50_conv2_1_c128_g32", "official", (128, 128), strip="conv2_1/"),
    Golden(
        "sk__caffe-implus__sknet50_conv3_1_stride2_scaled_c24_g4_d10",
        "official",
        (24, 24),
        {"stride": 2, "groups": 4, "hidden_channels": 10},
        strip="conv3_1/",
    ),
    Golden(
        "sk__pytorchcv__m3_c24_g4_r2",
        "pytorchcv",
        (24, 24),
        {"branches": 3, "groups": 4, "reduction": 2, "min_hidden": 6},
    ),
    Golden(
        "sk__timm__k357_stride2_c18_o20_g2",
        "timm",
        (18, 20),
        {"branches": 3, "dilated": False, "stride": 2, "groups": 2, "hidden_channels": 8},
    ),
    Golden(
        "sk__timm__nosplit_k3x3d2_c24_g4",
        "timm",
        (24, 24),
        {"groups": 4, "hidden_channels": 10},
    ),
)


def reference(module: SelectiveKernel, x: Tensor) -> Tensor:
    """Equations 1 to 6, one image, one branch and one channel at a time."""
    samples = []
    for image in x:
        maps = []
        for branch, size in zip(module.branches, module.kernel_sizes, strict=True):
            convolved = convolve(branch.conv, image, size, module.stride)
            maps.append(activate(branch.act, normalize(branch.norm, convolved)))
        summed = sum(maps)
        s = torch.stack([plane.sum() / plane.numel() for plane in summed])
        hidden = normalize(module.norm, (module.reduce.weight.flatten(1) @ s)[:, None, None])
        z = activate(module.act, hidden).flatten()
        scores = module.select.weight.flatten(1) @ z
        result = torch.zeros_like(summed)
        for channel in range(module.out_channels):
            shares = torch.exp(scores[channel :: module.out_channels])
            for share, branch_map in zip(shares, maps, strict=True):
                result[channel] += share / sum(shares) * branch_map[channel]
        samples.append(result)
    return torch.stack(samples)


def convolve(conv: nn.Conv2d, image: Tensor, size: int, stride: int) -> Tensor:
    """A grouped convolution that sees ``size`` pixels, one output channel and tap at a time."""
    step, reach = (size - 1) // max(conv.kernel_size[0] - 1, 1), size // 2
    _, height, width = image.shape
    padded = nn.functional.pad(image, (reach,) * 4)
    inputs, outputs = conv.in_channels // conv.groups, conv.out_channels // conv.groups
    planes = []
    for channel in range(conv.out_channels):
        first = channel // outputs * inputs
        plane = image.new_zeros(height, width)
        for source in range(inputs):
            for row in range(conv.kernel_size[0]):
                for column in range(conv.kernel_size[1]):
                    top, left = row * step, column * step
                    window = padded[first + source, top : top + height, left : left + width]
                    plane = plane + conv.weight[channel, source, row, column] * window
        planes.append(plane[::stride, ::stride])
    return torch.stack(planes)


def normalize(norm: nn.BatchNorm2d, image: Tensor) -> Tensor:
    centered = image - norm.running_mean[:, None, None]
    scaled = centered / torch.sqrt(norm.running_var + norm.eps)[:, None, None]
    return scaled * norm.weight[:, None, None] + norm.bias[:, None, None]


def activate(act: nn.Module, image: Tensor) -> Tensor:
    if isinstance(act, nn.SiLU):
        return image / (1 + torch.exp(-image))
    return image.clamp(min=0)
