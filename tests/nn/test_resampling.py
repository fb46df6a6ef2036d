"""Pooling and upsampling as matrix products are the operators that they stand for."""

import pytest
import torch
from torch import Tensor, nn
from torch.export import Dim
from torch.nn import functional as F

from torchplug.nn import conv_upsampled, pool_to

SIZES = [(9, 13), (1, 1), (2, 3), (60, 4), (1, 7)]


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("kernel", [1, 3, 5])
@pytest.mark.parametrize("align_corners", [True, False])
def test_a_small_grid_is_convolved_as_if_it_had_been_upsampled(
    size: tuple[int, int], kernel: int, align_corners: bool
) -> None:
    maps = [torch.randn(2, 3, cells, cells + 1, dtype=torch.float64) for cells in (1, 2, 6)]
    weight = torch.randn(5, 9, kernel, kernel, dtype=torch.float64)
    plain = [
        F.interpolate(small, size, mode="bilinear", align_corners=align_corners) for small in maps
    ]
    expected = F.conv2d(torch.cat(plain, 1), weight, padding=kernel // 2)
    got = conv_upsampled(maps, weight, size, align_corners=align_corners)
    torch.testing.assert_close(got, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("bins", [1, 2, 3, 5, 6])
@pytest.mark.parametrize("maximum", [False, True])
def test_an_exported_pool_is_exact_at_every_size(bins: int, maximum: bool) -> None:
    plain = F.adaptive_max_pool2d if maximum else F.adaptive_avg_pool2d

    class Pool(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return pool_to(x, bins, maximum=maximum)

    sides = {2: Dim("height", min=4, max=512), 3: Dim("width", min=4, max=512)}
    example = torch.randn(2, 3, 9, 13, dtype=torch.float64)
    exported = torch.export.export(Pool(), (example,), dynamic_shapes=(sides,)).module()
    for size in [(9, 13), (4, 5), (13, 20), (60, 7)]:
        x = torch.randn(2, 3, *size, dtype=torch.float64)
        expected = plain(x, bins)
        torch.testing.assert_close(exported(x), expected, rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(pool_to(x, bins, maximum=maximum), expected, rtol=0, atol=0)
