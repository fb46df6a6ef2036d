"""The rows of an attention against the fused operator and the formula."""

import pytest
import torch

from torchplug.kernels import attend, attention


def draw(dtype: torch.dtype) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    shapes = ((2, 11, 6), (2, 7, 6), (2, 7, 4))
    rows = [torch.randn(shape, generator=generator, dtype=torch.float64) for shape in shapes]
    return [row.to(dtype).requires_grad_() for row in rows]


def formula(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
    return (0.3 * query @ key.mT).softmax(-1) @ value


@pytest.mark.parametrize("room", [0, 1 << 26], ids=["by blocks", "all pairs kept"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16], ids=str)
def test_every_way_computes_the_formula(
    dtype: torch.dtype, room: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(attention, "ROOM", room)
    monkeypatch.setattr(attention, "BLOCK", 2 * 7 * 3)  # three rows at a time
    tolerance = {"rtol": 1e-12, "atol": 1e-12}
    if dtype == torch.bfloat16:
        tolerance = {"rtol": 0.05, "atol": 0.05}
    inputs, exact = draw(dtype), draw(torch.float64)
    got, wanted = attend(*inputs, 0.3), formula(*exact)
    assert got.dtype == dtype
    torch.testing.assert_close(got.double(), wanted, **tolerance)
    with torch.no_grad():
        torch.testing.assert_close(attend(*inputs, 0.3), got.detach(), **tolerance)
    weight = torch.linspace(-1, 1, wanted.numel(), dtype=torch.float64).view_as(wanted)
    for ours, theirs in zip(
        torch.autograd.grad(got, inputs, weight.to(dtype)),
        torch.autograd.grad(wanted, exact, weight),
        strict=True,
    ):
        torch.testing.assert_close(ours.double(), theirs, **tolerance)


def test_blocks_keep_no_map_of_all_pairs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attention, "BLOCK", 64 * 8)
    rows = [torch.randn(1, 64, 4, dtype=torch.bfloat16, requires_grad=True) for _ in range(3)]
    kept: dict[bool, int] = {}
    for by_blocks in (False, True):
        monkeypatch.setattr(attention, "ROOM", 0 if by_blocks else 1 << 26)
        sizes: list[int] = []

        def pack(tensor: torch.Tensor, sizes: list[int] = sizes) -> torch.Tensor:
            sizes.append(tensor.numel())
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            attend(*rows, 1.0)
        kept[by_blocks] = max(sizes)
    assert kept[False] >= 64 * 64
    assert kept[True] < 64 * 64
