"""The same systems in the libraries that have them.

A twin of our module takes the weights of a library's by the card's checkpoint formats; that both
compute the same is checked before anything is measured.
"""

import copy
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Literal

import torch
from torch import nn
from torch.nn import functional as F

from benchmarks.plain import PLAIN, Plain, dense_attention
from benchmarks.rows import Row
from torchplug import convert_state_dict

Kind = Literal["same", "near", "other", "ours"]


@dataclass(frozen=True)
class Peer:
    """Another way to compute a row."""

    name: str
    module: nn.Module
    twin: nn.Module | None = None
    """Our module with the same weights, which must give the same output."""

    kind: Kind = "same"
    """``"same"`` function, ``"near"`` (a bias or an epsilon apart: comparable in time), ``"other"``
    function (shown, not compared) or ``"ours"`` (another form of our module, shown)."""


def find_peers(row: Row, ours: nn.Module) -> Iterator[Peer]:
    """Yield every peer of ``row`` whose library is installed, ``ours`` gives the sizes."""
    for name, source, build, kind in LIBRARIES.get(row.name, ()):
        if find_spec(name.split()[0]) is None:
            print(f"{row.name}: {name} is not installed, left out")
            continue
        theirs = build()
        twin = copy.deepcopy(ours)
        if kind == "same":
            state = convert_state_dict(theirs.state_dict(), row.key, source=source)
            twin.load_state_dict({**twin.state_dict(), **state})
        yield Peer(name, theirs, twin if kind == "same" else None, kind)
    yield Peer("plain", Plain(copy.deepcopy(ours), PLAIN[row.key]), ours)
    if row.name == "cc r1":
        yield Peer("dense", Plain(copy.deepcopy(ours), dense_attention), kind="near")
    if row.key == "rfb":
        yield Peer("stems merged", _MergedStems(copy.deepcopy(ours)), ours, "ours")
    if row.key in ("acnet", "mixconv"):
        yield Peer("merged", _Merged(copy.deepcopy(ours)), ours, "ours")


class _MergedStems(nn.Module):
    """RFB with its first 1x1 convolutions and its shortcut in one: what that would gain."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, x):
        m = self.module
        stems = [*(branch[0] for branch in m.branches), m.shortcut]
        widths = [stem.conv.out_channels for stem in stems]
        maps = F.conv2d(x, torch.cat([stem.conv.weight for stem in stems])).split(widths, 1)
        found = []
        for stem, branch, own in zip(stems, m.branches, maps, strict=False):
            rest = nn.Sequential(*list(branch)[1:])
            found.append(rest(stem.finish(own)))
        total = m.project(torch.cat(found, 1))
        return m.act(torch.add(m.shortcut.finish(maps[-1]), total, alpha=m.scale))


class _Merged(nn.Module):
    """The one convolution that a module merges into; it has no training form."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.conv = module.eval().merge()

    def forward(self, x):
        return self.conv(x)


def _timm_se() -> nn.Module:
    from timm.layers import SqueezeExcite

    return SqueezeExcite(256, rd_divisor=1)


def _torchvision_se() -> nn.Module:
    from torchvision.ops import SqueezeExcitation

    return SqueezeExcitation(256, 16)


def _smp_scse() -> nn.Module:
    from segmentation_models_pytorch.base.modules import SCSEModule

    return SCSEModule(256)


def _timm_gc() -> nn.Module:
    from timm.layers import GlobalContext

    return GlobalContext(256, fuse_add=True, fuse_scale=False, rd_ratio=1 / 16, rd_divisor=1)


def _timm_cbam() -> nn.Module:
    from timm.layers.cbam import CbamModule

    return CbamModule(256, rd_divisor=1)


def _timm_nl() -> nn.Module:
    from timm.layers import NonLocalAttn

    return NonLocalAttn(256, rd_ratio=0.5)


def _timm_sk() -> nn.Module:
    from timm.layers import SelectiveKernel

    return SelectiveKernel(128, 128, groups=32, split_input=False, rd_channels=32)


def _timm_splat() -> nn.Module:
    from timm.layers import SplitAttn

    return SplitAttn(64, 64, kernel_size=3, norm_layer=nn.BatchNorm2d)


def _timm_mixconv() -> nn.Module:
    from timm.layers import MixedConv2d

    return MixedConv2d(120, 120, kernel_size=[3, 5, 7], depthwise=True, bias=False)


def _timm_separable() -> nn.Module:
    from timm.models._efficientnet_blocks import DepthwiseSeparableConv

    return DepthwiseSeparableConv(128, 128, noskip=True, pw_act=True)


def _torchvision_aspp() -> nn.Module:
    from torchvision.models.segmentation.deeplabv3 import ASPP

    return ASPP(512, [6, 12, 18], 256)


def _smp_aspp() -> nn.Module:
    from segmentation_models_pytorch.decoders.deeplabv3.decoder import ASPP

    return ASPP(512, 256, (6, 12, 18), separable=True, dropout=0.1)


def _ultralytics_spp() -> nn.Module:
    from ultralytics.nn.modules import SPP

    return SPP(512, 512)


def _ultralytics_sppf() -> nn.Module:
    from ultralytics.nn.modules import SPPF

    return SPPF(512, 512)


def _smp_psp() -> nn.Module:
    from segmentation_models_pytorch.decoders.pspnet.decoder import PSPDecoder

    class Decoder(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.decoder = PSPDecoder([512], out_channels=128)

        def forward(self, x):
            return self.decoder([x])

    return Decoder()


Library = tuple[str, str, Callable[[], nn.Module], Kind]
LIBRARIES: dict[str, tuple[Library, ...]] = {
    "se": (
        ("timm", "timm", _timm_se, "same"),
        ("torchvision", "torchvision", _torchvision_se, "same"),
    ),
    "scse add r16": (("segmentation_models_pytorch", "smp", _smp_scse, "same"),),
    "gc": (("timm", "", _timm_gc, "near"),),
    "cbam": (("timm", "", _timm_cbam, "near"),),
    "nl without pooling": (("timm", "", _timm_nl, "near"),),
    "sk": (("timm", "timm", _timm_sk, "same"),),
    "splat": (("timm", "timm", _timm_splat, "same"),),
    "mixconv": (("timm", "timm", _timm_mixconv, "same"),),
    "dwconv": (("timm", "timm", _timm_separable, "same"),),
    "aspp": (("torchvision", "torchvision", _torchvision_aspp, "same"),),
    "aspp separable": (("segmentation_models_pytorch", "", _smp_aspp, "other"),),
    "spp": (
        ("ultralytics SPP", "ultralytics", _ultralytics_spp, "same"),
        ("ultralytics SPPF", "", _ultralytics_sppf, "other"),
    ),
    "ppm small": (("segmentation_models_pytorch", "", _smp_psp, "other"),),
}
