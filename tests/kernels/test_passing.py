"""Who writes the gradient of a map that was handed on, in graphs that are used unusually."""

import gc
import weakref

import pytest
import torch
from torch import Tensor

from torchplug import get_card
from torchplug.kernels import apply_gate, eager, pool_positions


@pytest.fixture(autouse=True)
def by_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every map is worth it."""
    monkeypatch.setattr(eager, "SMALLEST", 0)
    monkeypatch.setattr(eager, "PIECE", 1)


def draw(*shape: int) -> Tensor:
    return torch.randn(shape, dtype=torch.float64).requires_grad_()


def plain(x: Tensor) -> tuple[Tensor, Tensor]:
    return x, x.mean((2, 3), keepdim=True)


def test_only_the_first_of_two_gates_leaves_its_gradient_to_the_pool() -> None:
    torch.manual_seed(0)
    x, a, b = draw(2, 3, 4, 5), draw(2, 3, 1, 1), draw(2, 3, 1, 1)

    def find_gradients(pool) -> tuple[Tensor, ...]:
        y, mean = pool(x)
        total = apply_gate(y, a) * 2 + apply_gate(y, b) * y + mean
        return torch.autograd.grad(total.square().sum(), (x, a, b))

    for ours, theirs in zip(find_gradients(pool_positions), find_gradients(plain), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("key", ["se", "scse", "cbam", "bam", "gc"])
def test_a_graph_can_be_used_in_parts_and_more_than_once(key: str) -> None:
    torch.manual_seed(0)
    module = get_card(key).factory(32, dtype=torch.float64).eval()
    x, inner = draw(2, 32, 6, 5), []
    layer = next(m for m in module.modules() if isinstance(m, torch.nn.Conv2d))
    layer.register_forward_hook(lambda _m, _i, out: inner.append(out))
    whole = (x, *(p for p in module.parameters() if p.requires_grad))
    expected = torch.autograd.grad(module(x).square().sum(), whole)
    loss = module(x).square().sum()
    early = torch.autograd.grad(inner[-1].sum(), x, retain_graph=True)[0]
    torch.autograd.grad(loss, whole[-1], retain_graph=True)  # the gate alone, not the map
    again = torch.autograd.grad(inner[-1].sum(), x, retain_graph=True)[0]
    torch.testing.assert_close(again, early, rtol=0, atol=0)
    for _ in range(2):
        found = torch.autograd.grad(loss, whole, retain_graph=True)
        for ours, theirs in zip(found, expected, strict=True):
            torch.testing.assert_close(ours, theirs, rtol=0, atol=0)
    with torch.autograd.set_detect_anomaly(True):
        module(x).square().sum().backward()
    torch.testing.assert_close(x.grad, expected[0], rtol=0, atol=0)


def test_what_was_not_written_is_not_kept() -> None:
    x = draw(1, 4, 3, 3)
    y, mean = pool_positions(x)
    node = y.grad_fn
    apply_gate(y, mean.sigmoid()).sum().backward()
    assert node is not None
    assert node.owed is None


def test_a_graph_that_was_used_in_part_is_freed() -> None:
    x = draw(1, 4, 3, 3)
    y, mean = pool_positions(x)
    gate = mean.sigmoid()
    scaled = apply_gate(y, gate)
    torch.autograd.grad(scaled.sum(), gate)
    seen = weakref.ref(gate)
    del y, mean, gate, scaled
    gc.collect()
    assert seen() is None


def test_what_is_owed_is_forgotten_with_its_backward_pass() -> None:
    """The map's later use may be left out of a pass in which another use is not."""
    x, gate = draw(1, 4, 3, 3), draw(1, 4, 1, 1)
    y, mean = pool_positions(x)
    scaled, other = apply_gate(y, gate * mean), y.square().sum()
    torch.autograd.grad(scaled.sum(), gate, retain_graph=True)
    (found,) = torch.autograd.grad(other, x)
    torch.testing.assert_close(found, 2 * x)
