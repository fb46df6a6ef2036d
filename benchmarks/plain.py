"""The plain form of each module: what its paper's formula says, operator by operator.

Each wraps a module of the catalogue and uses its layers, so both compute the same with the same
weights; the benchmark checks that they do before it measures.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

Forward = Callable[..., Tensor]


class Plain(nn.Module):
    """The layers of ``module`` under another forward."""

    def __init__(self, module: nn.Module, forward: Forward) -> None:
        super().__init__()
        self.module, self._forward = module, forward

    def forward(self, *inputs: Tensor) -> Tensor:
        return self._forward(self.module, *inputs)


def se(m: nn.Module, x: Tensor) -> Tensor:
    pooled = F.adaptive_avg_pool2d(x, 1)
    return x * m.gate(m.expand(m.act(m.reduce(pooled))))


def scse(m: nn.Module, x: Tensor) -> Tensor:
    channel = se(m.channel, x)
    spatial = x * m.spatial.gate(m.spatial.squeeze(x))
    return torch.max(channel, spatial) if m.fusion == "max" else channel + spatial


def cbam(m: nn.Module, x: Tensor) -> Tensor:
    c, s = m.channel, m.spatial
    scores = [c.expand(c.act(c.reduce(pool(x, 1)))) for pool in (F.adaptive_avg_pool2d, _max_pool)]
    x = x * torch.sigmoid(scores[0] + scores[1])
    statistics = torch.cat([x.max(1, keepdim=True)[0], x.mean(1, keepdim=True)], 1)
    return x * torch.sigmoid(s.norm(s.conv(statistics)))


def _max_pool(x: Tensor, size: int) -> Tensor:
    return F.adaptive_max_pool2d(x, size)


def bam(m: nn.Module, x: Tensor) -> Tensor:
    channel = m.channel(F.adaptive_avg_pool2d(x, 1)).expand_as(x)
    spatial = m.spatial(x).expand_as(x)
    mixed = channel * spatial if m.combine == "product" else channel + spatial
    return (1 + torch.sigmoid(mixed)) * x


def gc(m: nn.Module, x: Tensor) -> Tensor:
    batch, channels, height, width = x.shape
    rows = x.view(batch, 1, channels, height * width)
    mask = m.mask(x).view(batch, 1, height * width).softmax(2).unsqueeze(-1)
    context = torch.matmul(rows, mask).view(batch, channels, 1, 1)
    return x + m.add(context)


def non_local(m: nn.Module, x: Tensor) -> Tensor:
    source = F.max_pool2d(x, 2) if m.subsample == "before" else x
    query, key, value = m.query(x).flatten(2), m.key(source).flatten(2), m.value(source).flatten(2)
    attention = (query.transpose(1, 2) @ key * m.scale).softmax(-1)
    y = (attention @ value.transpose(1, 2)).transpose(1, 2)
    z = m.expand(y.reshape(*y.shape[:2], *x.shape[2:]))
    return x + (z if m.norm is None else m.norm(z))


def criss_cross(m: nn.Module, x: Tensor) -> Tensor:
    """Both directions by einsum, concatenated, as mmcv writes it."""
    for _ in range(m.recurrence):
        query, key, value = m.query(x), m.key(x), m.value(x)
        height = x.shape[2]
        down = torch.einsum("nchw,nciw->nwhi", query, key)
        own = torch.eye(height, dtype=torch.bool, device=x.device)
        down = down.masked_fill(own, -torch.inf).transpose(1, 2)
        along = torch.einsum("nchw,nchj->nhwj", query, key)
        weights = torch.cat([down, along], -1).softmax(-1)
        y = torch.einsum("nciw,nhwi->nchw", value, weights[..., :height])
        y = y + torch.einsum("nchj,nhwj->nchw", value, weights[..., height:])
        x = x + m.gamma * y
    return x


def dense_attention(m: nn.Module, x: Tensor) -> Tensor:
    """Every position looks at every position: what criss-cross attention avoids."""
    query, key, value = (layer(x).flatten(2) for layer in (m.query, m.key, m.value))
    attention = (query.transpose(1, 2) @ key).softmax(-1)
    return x + m.gamma * (value @ attention.transpose(1, 2)).view_as(x)


def selective_kernel(m: nn.Module, x: Tensor) -> Tensor:
    maps = torch.stack([branch(x) for branch in m.branches], 1)
    pooled = F.adaptive_avg_pool2d(maps.sum(1), 1)
    scores = m.select(m.act(m.norm(m.reduce(pooled))))
    weights = scores.view(len(x), len(m.branches), -1, 1, 1).softmax(1)
    return (maps * weights).sum(1)


def split_attention(m: nn.Module, x: Tensor) -> Tensor:
    maps = m.act(m.norm(m.conv(x)))
    splits = maps.chunk(m.radix, 1)
    pooled = F.adaptive_avg_pool2d(sum(splits), 1)
    scores = m.select(m.act(m.hidden_norm(m.reduce(pooled))))
    weights = scores.view(len(x), m.cardinality, m.radix, -1).transpose(1, 2).softmax(1)
    weights = weights.reshape(len(x), -1, 1, 1).chunk(m.radix, 1)
    return sum(weight * split for weight, split in zip(weights, splits, strict=True))


def acnet(m: nn.Module, x: Tensor) -> Tensor:
    return (
        m.square_norm(m.square(x))
        + m.horizontal_norm(m.horizontal(x))
        + m.vertical_norm(m.vertical(x))
    )


def mix_conv(m: nn.Module, x: Tensor) -> Tensor:
    parts = x.split(m.in_shares, 1)
    return torch.cat([conv(part) for conv, part in zip(m.branches, parts, strict=True)], 1)


def separable(m: nn.Module, x: Tensor) -> Tensor:
    y = F.relu(m.depthwise_norm(m.depthwise(x)))
    return F.relu(m.pointwise_norm(m.pointwise(y)))


def blaze(m: nn.Module, x: Tensor) -> Tensor:
    y, shortcut = m.first(x), m.shortcut(x)
    extra = m.out_channels - m.in_channels
    shortcut = F.pad(shortcut, (0, 0, 0, 0, 0, extra)) if extra else shortcut
    return F.relu(y + shortcut)


def aspp(m: nn.Module, x: Tensor) -> Tensor:
    image = m.image(F.adaptive_avg_pool2d(x, 1))
    image = F.interpolate(image, x.shape[2:], mode="bilinear", align_corners=False)
    return m.dropout(m.project(torch.cat([image, *(branch(x) for branch in m.branches)], 1)))


def spp(m: nn.Module, x: Tensor) -> Tensor:
    x = x if m.reduce is None else m.reduce(x)
    pools = [F.max_pool2d(x, size, 1, size // 2) for size in m.kernel_sizes]
    y = torch.cat([x, *pools], 1)
    return y if m.project is None else m.project(y)


def ppm(m: nn.Module, x: Tensor) -> Tensor:
    maps = [x]
    for bins, branch in zip(m.bins, m.branches, strict=True):
        pooled = branch(F.adaptive_avg_pool2d(x, bins))
        maps.append(
            F.interpolate(pooled, x.shape[2:], mode="bilinear", align_corners=m.align_corners)
        )
    return m.dropout(m.project(torch.cat(maps, 1)))


def seb(m: nn.Module, low: Tensor, high: Tensor) -> Tensor:
    gate = F.interpolate(m.embed[0](high), low.shape[2:], mode="bilinear", align_corners=False)
    return low * gate


def strip_pooling(m: nn.Module, x: Tensor) -> Tensor:
    size, s = x.shape[2:], m.strips
    down = s.horizontal(F.adaptive_avg_pool2d(x, (None, 1)))
    along = s.vertical(F.adaptive_avg_pool2d(x, (1, None)))
    both = F.interpolate(down, size) + F.interpolate(along, size)
    return x * m.gate(m.expand(m.act(both)))


def ssh(m: nn.Module, x: Tensor) -> Tensor:
    """Five convolutions, as the authors draw it, where the module has three."""

    def part(layer: nn.Module, y: Tensor, channels: slice) -> Tensor:
        return F.conv2d(y, layer.conv.weight[channels], layer.conv.bias[channels], padding=1)

    cut = m.detection_channels
    detection = part(m.field3, x, slice(0, cut))
    context = F.relu(part(m.field3, x, slice(cut, None)))
    near = part(m.field5, context, slice(0, m.context_channels))
    far = F.relu(part(m.field5, context, slice(m.context_channels, None)))
    return F.relu(torch.cat([detection, near, m.field7(far)], 1))


def rfb(m: nn.Module, x: Tensor) -> Tensor:
    found = m.project(torch.cat([branch(x) for branch in m.branches], 1))
    return F.relu(found * m.scale + m.shortcut(x))


PLAIN: dict[str, Forward] = {
    "se": se,
    "scse": scse,
    "cbam": cbam,
    "bam": bam,
    "gc": gc,
    "nl": non_local,
    "cc": criss_cross,
    "sk": selective_kernel,
    "splat": split_attention,
    "acnet": acnet,
    "mixconv": mix_conv,
    "dwconv": separable,
    "blazeblock": blaze,
    "aspp": aspp,
    "spp": spp,
    "ppm": ppm,
    "rfb": rfb,
    "ssh": ssh,
    "seb": seb,
    "strippool": strip_pooling,
}
