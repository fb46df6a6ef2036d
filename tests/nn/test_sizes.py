"""Sizes that no layer can have are refused when it is made, with the rule and the way out."""

from collections.abc import Callable

import pytest

import torchplug as tp
from torchplug.modules.concurrent_se import SpatialExcite

REFUSED: dict[str, tuple[Callable[[], object], str]] = {
    "sk": (lambda: tp.SelectiveKernel(64, 64, stride=0), "stride must be .*stride=0"),
    "splat": (lambda: tp.SplitAttention(64, 64, dilation=0), "dilation must be .*dilation=0"),
    "splat padding": (lambda: tp.SplitAttention(64, 64, padding=-1), "padding=-1"),
    "acnet": (lambda: tp.AsymmetricConv(8, 8, stride=-1), "stride must be .*stride=-1"),
    "acnet padding": (lambda: tp.AsymmetricConv(8, 8, padding=-1), "padding must be 0 or more"),
    "acnet mode": (lambda: tp.AsymmetricConv(8, 8, padding_mode="zero"), "mean 'zeros'"),
    "acnet gammas": (lambda: tp.AsymmetricConv(8, 8, gammas=(1.0,)), "pass three numbers"),
    "dwconv": (lambda: tp.SeparableConv(8, 8, dilation=0), "dilation must be at least 1"),
    "dwconv padding": (lambda: tp.SeparableConv(8, 8, padding=-1), "padding=-1; pass 0"),
    "mixconv": (lambda: tp.MixConv(8, stride=0), "stride must be at least 1"),
    "bam": (lambda: tp.BAM(32, dilation=0), "dilation must be at least 1"),
    "spp": (lambda: tp.SpatialPyramidPooling(8, 8, reduction=0), "reduction=0; pass a divisor"),
    "ppm": (lambda: tp.PyramidPooling(8, 8, reduction=0), "reduction=0; pass a divisor"),
    "rfb": (lambda: tp.RFB(64, 64, reduction=0), "reduction=0; pass a divisor"),
    "aspp": (lambda: tp.ASPP(8, 8, dropout=2.0), "share from 0 to 1: got dropout=2.0"),
    "head": (lambda: tp.StripPoolingHead(64, 3, modules=-1), "modules must be 0 or more"),
    "sse": (lambda: SpatialExcite(0), "channels must be at least 1"),
}


@pytest.mark.parametrize("case", sorted(REFUSED))
def test_an_impossible_size_is_refused(case: str) -> None:
    make, text = REFUSED[case]
    with pytest.raises(ValueError, match=text):
        make()
