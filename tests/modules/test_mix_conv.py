"""The shares of a mixed convolution, and merging it."""

import pytest
import torch
from torch import nn

from tests.contract.cases import randomize, relative_error
from tests.oracles.mix_conv import reference
from torchplug import MixConv, UsageError


@pytest.mark.parametrize("count", [2, 3, 4, 5])
def test_a_spread_is_that_of_ultralytics(count: int) -> None:
    """Its own line, for every width."""
    sizes = (3, 5, 7, 9, 11)[:count]
    for channels in range(count, 300):
        owners = torch.linspace(0, count - 1e-6, channels).floor()
        wanted = tuple(int((owners == owner).sum()) for owner in range(count))
        assert widths(channels, kernel_sizes=sizes, split="spread") == wanted


@pytest.mark.parametrize(("kernel_sizes", "stride"), [((1, 3), 2), ((3, 5), 4), ((3, 7), 3)])
def test_a_merge_is_exact_at_every_size_or_refused(kernel_sizes: object, stride: int) -> None:
    """TensorFlow's padding depends on the size, and pads a small kernel less than its frame."""
    block = MixConv(4, kernel_sizes=kernel_sizes, stride=stride, padding="same").double().eval()
    if min(block.kernel_sizes) < stride:
        with pytest.raises(ValueError, match=f"at least as large as a stride.*stride={stride}"):
            block.merge()
        return
    merged = block.merge()
    for side in range(5, 14):
        x = torch.randn(1, 4, side, side + 1, dtype=torch.float64)
        assert relative_error(merged(x), block(x)) < 1e-12


def widths(*args: int, **options: object) -> tuple[int, ...]:
    block = MixConv(*args, **options, device="meta")
    return tuple(branch.out_channels for branch in block.branches)


@pytest.mark.parametrize(
    ("args", "options", "expected"),
    [
        ((11,), {}, (5, 3, 3)),
        ((32,), {"split": "exponential", "kernel_sizes": (3, 5, 7, 9)}, (16, 8, 4, 4)),
        ((8, 16), {"split": "parameters", "kernel_sizes": (3, 5), "wiring": "gcd"}, (12, 4)),
        ((10, 20), {}, (8, 6, 6)),
        ((10, 20), {"wiring": "split"}, (8, 6, 6)),
        ((10, 7), {"wiring": "dense"}, (3, 2, 2)),
    ],
)
def test_shares_are_those_of_the_authors(
    args: tuple[int, ...], options: dict[str, object], expected: tuple[int, ...]
) -> None:
    assert widths(*args, **options) == expected


@pytest.mark.parametrize("split", ["equal", "parameters", "exponential"])
@pytest.mark.parametrize("kernel_sizes", [(3, 5, 7), (3, 5, 7, 9, 11)])
def test_shares_add_up_at_every_width_that_is_accepted(
    split: str, kernel_sizes: tuple[int, ...]
) -> None:
    options = {"split": split, "kernel_sizes": kernel_sizes, "wiring": "dense"}
    for width in range(40, 200, 7):  # every rest of 3 and of 5
        assert sum(widths(2, width, **options)) == width
        assert min(widths(2, width, **options)) >= 1


def test_shares_by_parameters_have_alike_parameters() -> None:
    block = MixConv(4, 498, split="parameters", wiring="dense", device="meta")
    counts = [branch.weight.numel() for branch in block.branches]
    assert max(counts) < 1.05 * min(counts)


def random_block(*args: int, **options: object) -> MixConv:
    block = MixConv(*args, **options).double().eval()
    randomize(block, 0)
    return block


MERGEABLE = [
    ((12,), {}),
    ((11,), {"kernel_sizes": (3, 5, 7, 9, 11), "bias": True}),
    ((9,), {"kernel_sizes": (7, 3), "stride": 2}),
    ((10, 20), {"stride": 2, "padding": "same"}),
    ((10,), {"dilation": 2, "stride": 2, "padding": "same", "act_layer": nn.SiLU}),
    ((12,), {"dilated": True}),
    ((12,), {"dilated": True, "dilation": 2, "norm_layer": nn.BatchNorm2d}),
    ((12, 6), {"wiring": "split", "bias": True, "norm_layer": nn.BatchNorm2d}),
    ((10, 7), {"wiring": "split"}),
    ((8, 20), {"wiring": "gcd", "norm_layer": nn.BatchNorm2d, "act_layer": nn.SiLU}),
    ((5, 9), {"wiring": "dense", "split": "parameters"}),
]


@pytest.mark.parametrize(("args", "options"), MERGEABLE)
@pytest.mark.parametrize("size", [(13, 17), (12, 14), (5, 4)])
def test_the_merged_form_computes_the_same(
    args: tuple[int, ...], options: dict[str, object], size: tuple[int, int]
) -> None:
    block = random_block(*args, **options)
    merged = block.merge()
    x = torch.randn(2, args[0], *size, dtype=torch.float64)
    assert relative_error(merged(x), block(x)) < 1e-12
    assert sum(isinstance(layer, nn.Conv2d) for layer in merged.modules()) == 1


@pytest.mark.parametrize(
    ("args", "options", "groups"),
    [
        ((12,), {}, 12),
        ((12, 24), {}, 12),
        ((12, 6), {"wiring": "split"}, 3),
        ((10, 7), {"wiring": "split"}, 1),
        ((8, 20), {"wiring": "gcd"}, 1),
    ],
)
def test_a_merged_kernel_has_no_more_zeros_than_it_needs(
    args: tuple[int, ...], options: dict[str, object], groups: int
) -> None:
    assert random_block(*args, **options).merge().groups == groups


def test_merging_leaves_the_random_numbers_alone() -> None:
    block, state = random_block(12), torch.get_rng_state()
    block.merge()
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("stride", [2, 3, 5])
def test_same_padding_is_that_of_tensorflow_with_any_stride(stride: int) -> None:
    block = random_block(6, kernel_sizes=(3, 5, 9), stride=stride, padding="same")
    for height, width in [(11, 12), (13, 14), (15, 16), (4, 5)]:
        x = torch.randn(1, 6, height, width, dtype=torch.float64)
        assert block(x).shape[2:] == (-(-height // stride), -(-width // stride))
        assert relative_error(block(x), reference(block, x)) < 1e-12


def test_the_first_kernels_have_the_spread_that_the_authors_give_them() -> None:
    block = MixConv(600)
    for branch in block.branches:
        spread = (2 / branch.kernel_size[0] ** 2) ** 0.5
        assert abs(float(branch.weight.detach().std()) / spread - 1) < 0.1


def test_a_norm_in_training_cannot_be_merged() -> None:
    with pytest.raises(UsageError, match="got BatchNorm2d in training mode"):
        MixConv(12, norm_layer=nn.BatchNorm2d).merge()


@pytest.mark.parametrize(
    ("args", "options", "text"),
    [
        ((2,), {}, "each kernel size needs a channel: got 2 channels in shares"),
        ((8,), {"kernel_sizes": ()}, "each kernel size needs a channel"),
        ((8,), {"kernel_sizes": (3, 4)}, r"kernel_sizes\[1\] must be odd"),
        ((8, 12), {}, "got in_channels=8 and out_channels=12; pass out_channels=8"),
        ((8, 0), {}, "got out_channels=0"),
        ((8,), {"wiring": "mixed"}, "wiring is one of"),
        ((8,), {"split": "eqal"}, "did you mean 'equal'"),
        ((8,), {"padding": "valid"}, "padding is one of"),
    ],
)
def test_impossible_options_are_refused(
    args: tuple[int, ...], options: dict[str, object], text: str
) -> None:
    with pytest.raises(ValueError, match=text):
        MixConv(*args, **options)
