"""A network of separable convolutions has the size that was published, and what is refused."""

import pytest
import torch
from torch import nn

from torchplug import SeparableConv

MOBILENET = [(64, 1), (128, 2), (128, 1), (256, 2), (256, 1), (512, 2)] + 5 * [(512, 1)]
MOBILENET += [(1024, 2), (1024, 1)]


def count_mobilenet(*, separable: bool) -> int:
    width = 32
    layers: list[nn.Module] = [nn.Conv2d(3, width, 3, bias=False), nn.BatchNorm2d(width)]
    for following, stride in MOBILENET:
        if separable:
            layers.append(SeparableConv(width, following, stride=stride, device="meta"))
        else:
            layers.append(nn.Conv2d(width, following, 3, bias=False, device="meta"))
            layers.append(nn.BatchNorm2d(following))
        width = following
    layers.append(nn.Linear(width, 1000))
    return sum(p.numel() for layer in layers for p in layer.parameters())


def test_mobilenet_has_the_published_number_of_parameters() -> None:
    assert count_mobilenet(separable=True) == 4_231_976
    assert count_mobilenet(separable=False) == 29_294_088


@pytest.mark.parametrize("norm_after", ["both", "depthwise", "pointwise", "none"])
def test_a_convolution_has_a_bias_only_where_no_norm_follows(norm_after: str) -> None:
    block = SeparableConv(4, 6, norm_after=norm_after)
    assert (block.depthwise.bias is None) == (norm_after in ("both", "depthwise"))
    assert (block.pointwise.bias is None) == (norm_after in ("both", "pointwise"))
    plain = SeparableConv(4, 6, norm_after=norm_after, bias=False)
    assert plain.depthwise.bias is None
    assert plain.pointwise.bias is None


@pytest.mark.parametrize(
    ("named", "depthwise", "pointwise"),
    [
        ("both", True, True),
        ("depthwise", True, False),
        ("pointwise", False, True),
        ("none", False, False),
    ],
)
def test_norms_and_activations_follow_the_convolutions_that_are_named(
    named: str, depthwise: bool, pointwise: bool
) -> None:
    block = SeparableConv(4, 6, act_after=named, norm_after="none")
    assert isinstance(block.depthwise_act, nn.ReLU) == depthwise
    assert isinstance(block.pointwise_act, nn.ReLU) == pointwise
    block = SeparableConv(4, 6, norm_after=named, act_after="none")
    assert isinstance(block.depthwise_norm, nn.BatchNorm2d) == depthwise
    assert isinstance(block.pointwise_norm, nn.BatchNorm2d) == pointwise


def test_without_norms_activations_and_biases_it_is_one_dense_convolution() -> None:
    block = SeparableConv(4, 6, norm_after="none", act_after="none", bias=False).double()
    x = torch.randn(2, 4, 7, 8, dtype=torch.float64)
    mix, kernels = block.pointwise.weight, block.depthwise.weight
    dense = nn.functional.conv2d(x, mix * kernels.transpose(0, 1), padding=1)
    torch.testing.assert_close(block(x), dense)


@pytest.mark.parametrize(
    ("args", "options", "text"),
    [
        ((4, 4), {"kernel_size": 2}, "kernel_size must be odd"),
        ((4, 0), {}, "out_channels must be at least 1: got out_channels=0"),
        ((4, 4), {"multiplier": 0}, "multiplier must be at least 1"),
        ((4, 4), {"norm_after": "all"}, "norm_after is one of"),
        ((4, 4), {"act_after": "pointwse"}, "did you mean 'pointwise'"),
        ((4, 6), {"residual": True}, "got 4 to 6 channels, stride=1, padding=1; pass residual=F"),
        ((4, 4), {"residual": True, "stride": 2}, "a residual needs an output of the input's"),
        ((4, 4), {"residual": True, "padding": 0}, "a residual needs an output of the input's"),
    ],
)
def test_impossible_options_are_refused(
    args: tuple[int, int], options: dict[str, object], text: str
) -> None:
    with pytest.raises(ValueError, match=text):
        SeparableConv(*args, **options)
