"""Powers of two against PyTorch's in double precision."""

import math

import torch

from torchplug.kernels.powers import exp2


def test_a_power_is_right_to_the_last_digits_everywhere() -> None:
    z = torch.cat([torch.linspace(-126, 126, 1_000_001), torch.arange(-126.0, 127.0)])
    wanted = z.double().exp2()
    assert ((exp2(z) - wanted) / wanted).abs().max() < 3e-7


def test_a_power_beyond_the_range_stays_at_its_ends() -> None:
    *ends, none = exp2(torch.tensor([-math.inf, -1e9, 1e9, math.inf, math.nan]))
    torch.testing.assert_close(torch.stack(ends), torch.tensor([2.0**-126] * 2 + [2.0**126] * 2))
    assert none.isnan()


def test_other_precisions_keep_their_own() -> None:
    for dtype in (torch.float64, torch.bfloat16):
        z = torch.linspace(-200, 200, 99, dtype=dtype)
        torch.testing.assert_close(exp2(z), z.exp2(), rtol=0, atol=0)
