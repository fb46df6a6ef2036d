"""What split attention selects, how it shrinks maps and what it refuses."""

from functools import partial

import pytest
import torch
from torch import nn
from torch.export import Dim

from torchplug import SplitAttention


@pytest.mark.parametrize("radix", [1, 2, 4])
def test_splits_share_a_channel_and_a_single_split_is_gated(radix: int) -> None:
    block = SplitAttention(16, 12, radix=radix)
    weights = torch.stack(block.find_weights(torch.randn(3, radix * 12, 1, 1)))
    assert weights.shape == (radix, 3, 12, 1, 1)
    if radix > 1:
        torch.testing.assert_close(weights.sum(0), torch.ones(3, 12, 1, 1))
    else:
        assert 0 < weights.min() < weights.max() < 1


@pytest.mark.parametrize("size", [(1, 1), (7, 8), (9, 6)])
@pytest.mark.parametrize("downsample", ["conv", "pool_before", "pool_after"])
def test_every_way_to_shrink_gives_the_same_size(downsample: str, size: tuple[int, int]) -> None:
    block = SplitAttention(8, 8, stride=2, downsample=downsample)
    height, width = size
    y = block(torch.randn(2, 8, *size))
    assert y.shape == (2, 8, (height + 1) // 2, (width + 1) // 2)


def test_without_a_stride_there_is_no_pool() -> None:
    assert SplitAttention(8, 8, downsample="pool_after").pool is None


def test_batch_norm_refuses_to_train_on_one_image_and_says_what_to_do() -> None:
    block = SplitAttention(8, 8)
    with pytest.raises(ValueError, match=r"SplitAttention .* needs 2 images .*norm_layer="):
        block(torch.randn(1, 8, 5, 5))
    assert block.eval()(torch.randn(1, 8, 5, 5)).isfinite().all()


def test_a_norm_of_each_image_trains_on_one() -> None:
    block = SplitAttention(8, 8, norm_layer=partial(nn.GroupNorm, 1))
    assert block(torch.randn(1, 8, 5, 5)).isfinite().all()


def test_training_compiles_and_exports_with_every_size_dynamic() -> None:
    torch._dynamo.reset()
    block = SplitAttention(16, 16, stride=2, downsample="pool_after").train()
    x = torch.randn(2, 16, 9, 7)
    torch.compile(block, fullgraph=True, backend="aot_eager")(x)
    height, width = Dim("height", min=4, max=512), Dim("width", min=4, max=512)
    sizes = {0: Dim("batch", max=64), 2: height, 3: width}
    program = torch.export.export(block, (x,), dynamic_shapes=(sizes,))
    assert program.module()(torch.randn(5, 16, 11, 6)).shape == (5, 16, 6, 3)


@pytest.mark.parametrize(
    ("args", "options", "text"),
    [
        ((15, 16), {}, r"radix \* cardinality must divide in_channels: got in_channels=15"),
        ((24, 16), {"cardinality": 3}, "must divide out_channels: got out_channels=16 and card"),
        ((24, 24), {"cardinality": 3}, "must divide hidden_channels: got hidden_channels=32"),
        ((16, 16), {"kernel_size": 4}, "kernel_size must be odd: got kernel_size=4"),
        ((16, 16), {"downsample": "pool"}, "downsample is one of .*: got 'pool'"),
        ((16, 16), {"radix": 0}, "radix must be at least 1"),
    ],
)
def test_impossible_options_are_refused(
    args: tuple[int, int], options: dict[str, object], text: str
) -> None:
    with pytest.raises(ValueError, match=text):
        SplitAttention(*args, **options)


def test_an_even_kernel_works_with_a_padding_of_its_own() -> None:
    block = SplitAttention(8, 8, kernel_size=2, padding=0)
    assert block(torch.randn(2, 8, 6, 5)).shape == (2, 8, 5, 4)
