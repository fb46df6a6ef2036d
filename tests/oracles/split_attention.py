"""Split-Attention: recordings of the authors' code and of timm's."""

import torch
from torch import Tensor, nn

from tests.oracles import Golden
from torchplug.modules import SplitAttention

GOLDENS = (
    Golden("splat__official__r2_g1_bn_c24", "official", (24, 24)),
    Golden("splat__official__r1_g2_bn_c20", "official", (20, 20), {"radix": 1, "cardinality": 2}),
    Golden("splat__official__r2_g2_bn_c16_o24", "official", (16, 24), {"cardinality": 2}),
    Golden("splat__official__r4_g1_stride2_c32", "official", (32, 32), {"radix": 4, "stride": 2}),
    Golden("splat__timm__r1_g1_c20_rd6", "timm", (20, 20), {"radix": 1, "hidden_channels": 6}),
)


def reference(module: SplitAttention, x: Tensor) -> Tensor:
    """Section 3.1 of the paper, one image, one cardinal group and one channel at a time."""
    return torch.stack([attend(module, image) for image in x])


def attend(module: SplitAttention, image: Tensor) -> Tensor:
    before, after = module.downsample == "pool_before", module.downsample == "pool_after"
    if module.pool is not None and before:
        image = pool(image, module.pool.stride)
    maps = activate(module.act, normalize(module.norm, convolve(module.conv, image)))
    radix, width = module.radix, module.out_channels
    s = torch.stack([sum(maps[r * width + c].mean() for r in range(radix)) for c in range(width)])
    hidden = normalize(module.hidden_norm, weigh(module.reduce, s)[:, None, None])
    scores = weigh(module.select, activate(module.act, hidden).flatten())
    result = torch.zeros_like(maps[:width])
    group_width = width // module.cardinality
    for channel in range(width):
        # the scores lie group by group, split by split; the maps only split by split
        group, place = divmod(channel, group_width)
        own = [scores[(group * radix + r) * group_width + place] for r in range(radix)]
        shares = [torch.exp(score) for score in own]
        total = sum(shares) if radix > 1 else 1 + shares[0]
        for r, share in enumerate(shares):
            result[channel] += share / total * maps[r * width + channel]
    return pool(result, module.pool.stride) if module.pool is not None and after else result


def pool(image: Tensor, stride: int) -> Tensor:
    """The mean of 3x3 windows, zeros outside the map."""
    _, height, width = image.shape
    padded = nn.functional.pad(image, (1, 1, 1, 1))
    rows = [
        [
            padded[:, top : top + 3, left : left + 3].sum((1, 2)) / 9
            for left in range(0, width, stride)
        ]
        for top in range(0, height, stride)
    ]
    return torch.stack([torch.stack(row, -1) for row in rows], 1)


def weigh(conv: nn.Conv2d, vector: Tensor) -> Tensor:
    """A grouped 1x1 convolution of a vector."""
    matrices, parts = conv.weight.flatten(1).chunk(conv.groups), vector.chunk(conv.groups)
    products = [matrix @ part for matrix, part in zip(matrices, parts, strict=True)]
    return torch.cat(products) + conv.bias


def convolve(conv: nn.Conv2d, image: Tensor) -> Tensor:
    """A grouped, strided, dilated convolution, one output position at a time."""
    padded = nn.functional.pad(image, (conv.padding[0],) * 4)
    (stride, _), (step, _), (size, _) = conv.stride, conv.dilation, conv.kernel_size
    reach = step * (size - 1) + 1
    rows = range(0, padded.shape[1] - reach + 1, stride)
    columns = range(0, padded.shape[2] - reach + 1, stride)
    result = image.new_empty(conv.out_channels, len(rows), len(columns))
    kernels = conv.weight.chunk(conv.groups)
    for h, top in enumerate(rows):
        for w, left in enumerate(columns):
            window = padded[:, top : top + reach : step, left : left + reach : step]
            parts = window.chunk(conv.groups)
            values = [
                torch.stack([(kernel * part).sum() for kernel in group])
                for group, part in zip(kernels, parts, strict=True)
            ]
            result[:, h, w] = torch.cat(values)
    return result


def normalize(norm: nn.BatchNorm2d, image: Tensor) -> Tensor:
    centered = image - norm.running_mean[:, None, None]
    scaled = centered / torch.sqrt(norm.running_var + norm.eps)[:, None, None]
    return scaled * norm.weight[:, None, None] + norm.bias[:, None, None]


def activate(act: nn.Module, image: Tensor) -> Tensor:
    if isinstance(act, nn.SiLU):
        return image / (1 + torch.exp(-image))
    return image.clamp(min=0)
