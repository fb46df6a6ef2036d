"""What single gates refuse, and training on one image."""

from functools import partial

import pytest
import torch
from torch import nn

import torchplug as tp


def test_bam_with_batch_norm_refuses_to_train_on_one_image_and_says_what_to_do() -> None:
    block = tp.BAM(32)
    with pytest.raises(ValueError, match=r"BAM .* needs 2 images in training.*norm_layer="):
        block(torch.randn(1, 32, 5, 5))
    assert block.eval()(torch.randn(1, 32, 5, 5)).isfinite().all()


def test_bam_with_a_norm_of_each_image_trains_on_one() -> None:
    block = tp.BAM(32, norm_layer=partial(nn.GroupNorm, 1))
    assert block(torch.randn(1, 32, 5, 5)).isfinite().all()


@pytest.mark.parametrize(
    ("build", "text"),
    [
        (lambda: tp.CBAM(32, kernel_size=4), "kernel_size must be odd: got kernel_size=4"),
        (lambda: tp.CBAM(32, pools=()), "a channel gate needs a pool"),
        (lambda: tp.CBAM(32, pools=("mean",)), "pools is one of"),
        (lambda: tp.BAM(32, combine="times"), "combine is one of 'product', 'sum'"),
        (lambda: tp.BAM(32, channel_layers=0), "BAM needs a channel layer"),
        (lambda: tp.ConcurrentSE(8, fusion="mean"), "fusion is one of 'max', 'add'"),
        (lambda: tp.GlobalContext(32, hidden_channels=1), "at least 2 hidden channels"),
        (lambda: tp.SqueezeExcite(8), r"reduction=16; pass hidden_channels=1 or reduction <= 8"),
        (lambda: tp.SqueezeExcite(0), "channels must be at least 1"),
        (lambda: tp.SqueezeExcite(8, reduction=0), "reduction must be at least 1"),
    ],
)
def test_impossible_options_are_refused(build: object, text: str) -> None:
    with pytest.raises(ValueError, match=text):
        build()


def test_cbam_starts_with_a_spatial_gate_of_one_half_as_the_authors_do() -> None:
    gate = tp.SpatialGate().find_gate(torch.randn(2, 8, 5, 7))
    assert torch.equal(gate, torch.full_like(gate, 0.5))
