"""BlazeBlocks at every size, stride and padding, and the released network's size."""

from functools import partial
from itertools import pairwise

import pytest
import torch
from torch import nn

from tests.contract.cases import randomize, relative_error
from tests.oracles.blaze_block import reference
from torchplug import BlazeBlock


@pytest.mark.parametrize("hidden", [None, 3])
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("padding", ["same", "symmetric"])
@pytest.mark.parametrize("kernel_size", [3, 5])
def test_even_and_odd_maps_agree_with_the_reference(
    hidden: int | None, stride: int, padding: str, kernel_size: int
) -> None:
    block = BlazeBlock(
        4, 7, hidden_channels=hidden, stride=stride, padding=padding, kernel_size=kernel_size
    )
    block.double().eval()
    randomize(block, 0)
    for size in [(8, 10), (9, 13), (8, 5), (1, 2)]:
        x = torch.randn(2, 4, *size, dtype=torch.float64)
        assert block(x).shape[2:] == (-(-size[0] // stride), -(-size[1] // stride))
        assert relative_error(block(x), reference(block, x)) < 1e-12


def test_paddings_differ_at_stride_two_and_only_on_even_maps() -> None:
    same, symmetric = (BlazeBlock(4, 4, stride=2, padding=p).eval() for p in ("same", "symmetric"))
    symmetric.load_state_dict(same.state_dict())
    odd, even = torch.randn(1, 4, 9, 7), torch.randn(1, 4, 8, 6)
    torch.testing.assert_close(same(odd), symmetric(odd))
    assert not torch.allclose(same(even), symmetric(even))


def test_released_padding_is_on_the_right_and_at_the_bottom() -> None:
    """The port of the released network pads its strided 3x3 kernels by (0, 2, 0, 2)."""
    block = BlazeBlock(4, 6, kernel_size=3, stride=2, norm_layer=None).eval()
    x = torch.randn(1, 4, 8, 10)
    framed = nn.functional.pad(x, (0, 2, 0, 2))
    y = block.first.pointwise(block.first.depthwise(framed))
    y[:, :4] += nn.functional.max_pool2d(x, 2)
    torch.testing.assert_close(block(x), y.relu())


def test_the_released_front_network_has_its_number_of_parameters() -> None:
    block = partial(BlazeBlock, kernel_size=3, norm_layer=None, device="meta")
    near = [24, 24, 28, 32, 36, 42, 48, 56, 64, 72, 80, 88]
    far = [88, 96, 96, 96, 96, 96]
    layers: list[nn.Module] = [nn.Conv2d(3, 24, 5)]
    for widths in (near, far):
        layers += [block(a, b) for a, b in pairwise(widths)]
    layers += [nn.Conv2d(88, 2 + 32, 1), nn.Conv2d(96, 6 + 96, 1)]  # scores and boxes
    assert sum(p.numel() for layer in layers for p in layer.parameters()) == 101_390


@pytest.mark.parametrize(
    ("args", "options", "text"),
    [
        ((8, 4), {}, "got in_channels=8 and out_channels=4; pass out_channels=8 or more"),
        ((8, 8), {"stride": 3}, "the stride of a BlazeBlock is 1 or 2: got stride=3"),
        ((8, 8), {"kernel_size": 4}, "kernel_size must be odd"),
        ((8, 8), {"hidden_channels": 0}, "hidden_channels must be at least 1"),
        ((8, 8), {"padding": "sym"}, "did you mean 'same' or 'symmetric'"),
    ],
)
def test_impossible_options_are_refused(
    args: tuple[int, int], options: dict[str, object], text: str
) -> None:
    with pytest.raises(ValueError, match=text):
        BlazeBlock(*args, **options)
