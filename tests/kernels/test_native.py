"""The kernels in C++ against their formulas, where they are chosen, and what runs without them."""

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor
from torch._inductor.codecache import CppPythonBindingsCodeCache

from torchplug import get_card
from torchplug.kernels import eager, native, projections

SHAPES = [
    ((1, 1, 1), 2),
    ((2, 7, 15), 5),
    ((1, 33, 196), 4),  # one position more than a block and a vector
    ((3, 16, 192), 16),
    ((2, 20, 193), 1),
    ((2, 24, 899), 17),
    ((1, 40, 3136), 8),
]


def make_mean_and_product(x: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
    sums, y = native.pool_project(x, weights)
    return sums.sum(1) / x.shape[2], y


def draw(shape: tuple[int, ...], rows: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return tuple(torch.randn(size, generator=generator) for size in (shape, (shape[1], rows)))


def check_by_loops(x: Tensor, weights: Tensor) -> None:
    mean, y = make_mean_and_product(x, weights)
    wanted = torch.einsum("ncp,ck->nkp", x.double(), weights.double())
    torch.testing.assert_close(y.double(), wanted, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(mean.double(), x.double().mean(2), rtol=1e-5, atol=1e-6)


@pytest.fixture(params=[1, 2])
def threads(request: pytest.FixtureRequest) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def without_compiler(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    def fail(*_: object) -> None:
        raise RuntimeError("no compiler")

    monkeypatch.setattr(CppPythonBindingsCodeCache, "load_pybinding", fail)
    native._build.cache_clear()
    yield
    native._build.cache_clear()


@pytest.mark.parametrize(("shape", "rows"), SHAPES)
@pytest.mark.usefixtures("threads")
def test_one_pass_gives_the_mean_and_the_product(shape: tuple[int, ...], rows: int) -> None:
    assert native._build() is not None
    check_by_loops(*draw(shape, rows))


def test_a_view_of_a_map_is_read_in_its_order() -> None:
    x, weights = torch.randn(2, 30, 12).mT, torch.randn(4, 12).T
    check_by_loops(x, weights)


@pytest.mark.usefixtures("without_compiler")
def test_without_a_compiler_the_plain_form_gives_the_same() -> None:
    check_by_loops(*draw((2, 24, 899), 17))
    assert native._build() is None


def test_the_operator_keeps_the_rules_of_pytorch() -> None:
    torch.library.opcheck(native.pool_project, draw((2, 7, 200), 5))


def find_operators(module: torch.nn.Module, x: Tensor) -> set[str]:
    """Compile ``module``, compare its output, and return the operators of its program."""
    found: set[str] = set()

    def keep(graph: torch.fx.GraphModule, _: object) -> object:
        found.update(str(node.target) for node in graph.graph.nodes)
        return graph

    torch._dynamo.reset()
    compiled = torch.compile(module, fullgraph=True, backend=keep)
    torch.testing.assert_close(compiled(x), module(x), rtol=1e-5, atol=1e-5)
    return found


@pytest.mark.parametrize(
    ("learns", "options", "dtype", "chosen"),
    [
        (False, {}, torch.float32, True),
        (True, {}, torch.float32, False),  # it has no gradient
        (False, {}, torch.float64, False),
        (False, {"hidden_channels": projections.FEW + 1}, torch.float32, False),
    ],
    ids=["eval", "learning", "float64", "wide"],
)
def test_compiled_bam_takes_it_where_it_gains(
    learns: bool,
    options: dict[str, int],
    dtype: torch.dtype,
    chosen: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(eager, "SMALLEST", 0)
    monkeypatch.setattr(projections, "SMALLEST_WIDE", 0)
    bam = get_card("bam").factory(32, **options, dtype=dtype).eval()
    x = torch.randn(2, 32, 9, 7, dtype=dtype)
    with torch.set_grad_enabled(learns):
        found = find_operators(bam, x)
    assert any("pool_project" in name for name in found) == chosen


def test_a_small_map_is_left_to_pytorch() -> None:
    bam = get_card("bam").factory(32).eval()
    with torch.no_grad():
        found = find_operators(bam, torch.randn(2, 32, 80, 80))
    assert not any("pool_project" in name for name in found)


def test_a_derivative_through_a_compiled_program_is_not_lost(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(eager, "SMALLEST", 0)
    monkeypatch.setattr(projections, "SMALLEST_WIDE", 0)
    bam = get_card("bam").factory(32).eval().requires_grad_(False)
    x = torch.randn(2, 3, 32, 6, 5)
    over = torch.func.vmap(bam)
    torch._dynamo.reset()
    with torch.no_grad():
        torch.testing.assert_close(torch.compile(over, backend="eager")(x), over(x))
    slope = torch.func.grad(lambda x: bam(x).square().sum())
    torch._dynamo.reset()
    torch.testing.assert_close(torch.compile(slope, backend="eager")(x[0]), slope(x[0]))
