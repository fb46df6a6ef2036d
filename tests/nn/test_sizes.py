"""What no layer can have is refused when it is made, with the rule and the way out."""

import inspect
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from torch import nn

import torchplug as tp
from tests.contract.cases import CARDS, sample_id
from torchplug.card import Card
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


def list_wrong_types(card: Card) -> Iterator[tuple[dict[str, Any], str]]:
    """Every argument of a class with what people pass in the place of what it takes."""
    for parameter in inspect.signature(card.factory).parameters.values():
        name, default = parameter.name, parameter.default
        if name.endswith("_layer"):
            kind = name.removeprefix("branch_")
            yield from (({name: wrong}, f"{kind} is a class") for wrong in (nn.ReLU(), "bn"))
        elif default is parameter.empty and parameter.kind is parameter.POSITIONAL_OR_KEYWORD:
            wrongs = ("64", 64.0) if name == "high_channels" else ("64", 64.0, (64, 64))
            yield from (({name: wrong}, rf"{name}.* must be") for wrong in wrongs)
        elif name in ("hidden_channels", "min_hidden") or type(default) is int:
            yield from (
                ({name: wrong}, f"{name} must be a whole number") for wrong in ((3, 3), "8")
            )
        elif type(default) is float:
            yield {name: "big"}, f"{name} must be a number"
        elif type(default) is tuple:
            yield from (({name: wrong}, f"{name} must be a sequence") for wrong in (3, "avg"))


@pytest.mark.parametrize("card", CARDS, ids=sample_id)
def test_a_wrong_type_is_refused_by_its_name(card: Card) -> None:
    channels = [name for name in inspect.signature(card.factory).parameters if "channels" in name]
    given = dict.fromkeys([name for name in channels if name != "hidden_channels"], 64)
    cases = list(list_wrong_types(card))
    assert cases
    for wrong, text in cases:
        with pytest.raises(TypeError, match=rf"{text}.*: got .*; "):
            card.factory(**{**given, **wrong})
