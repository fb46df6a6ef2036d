"""The kernels in C++ against their formulas, where they are chosen, and what runs without them."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._inductor.codecache import CppPythonBindingsCodeCache

from torchplug import get_card
from torchplug.kernels import eager, native, projections

SHAPES = [  # samples, channels, positions; rows
    ((1, 1, 1), 2),
    ((2, 7, 15), 5),
    ((1, 33, 196), 4),
    ((3, 16, 192), 16),
    ((2, 20, 193), 1),
    ((2, 24, 899), 17),
    ((2, 9, 50), 33),
    ((1, 40, 3136), 8),
]
Form = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]


def contiguous(x: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
    return native.pool_project(x, weights)


def channels_last(x: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
    mean, y = native.pool_project_last(x.mT.contiguous(), weights)
    return mean, y.mT


each_form = pytest.mark.parametrize("form", [contiguous, channels_last])


def draw(shape: tuple[int, ...], rows: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(shape, generator=generator)
    return x, torch.randn(shape[1], rows, generator=generator)


def check_in_double_precision(form: Form, x: Tensor, weights: Tensor) -> None:
    mean, y = form(x, weights)
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
def any_size(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(eager, "SMALLEST", 0)
    monkeypatch.setattr(projections, "SMALLEST_WIDE", 0)


@pytest.fixture
def without_compiler(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    def fail(*_: object) -> None:
        raise RuntimeError("no compiler")

    monkeypatch.setattr(CppPythonBindingsCodeCache, "load_pybinding", fail)
    native._build.cache_clear()
    yield
    native._build.cache_clear()


@each_form
@pytest.mark.parametrize(("shape", "rows"), SHAPES)
@pytest.mark.usefixtures("threads")
def test_one_pass_gives_the_mean_and_the_product(
    shape: tuple[int, ...], rows: int, form: Form
) -> None:
    check_in_double_precision(form, *draw(shape, rows))
    assert native._build("pool_project") is not None
    assert native._build("pool_project_last") is not None


def test_a_view_is_read_in_its_own_order() -> None:
    x, weights = torch.randn(2, 30, 12), torch.randn(4, 12).T
    check_in_double_precision(contiguous, x.mT, weights)
    mean, _ = native.pool_project_last(x.mT, torch.randn(4, 30).T)
    torch.testing.assert_close(mean, x.mean(2))


@each_form
@pytest.mark.usefixtures("without_compiler")
def test_without_a_compiler_the_plain_form_gives_the_same(form: Form) -> None:
    check_in_double_precision(form, *draw((2, 24, 899), 17))
    assert native._build("pool_project") is None
    assert native._build("pool_project_last") is None


@pytest.mark.parametrize("operator", [native.pool_project, native.pool_project_last])
def test_the_operators_keep_the_rules_of_pytorch(operator: Callable[..., Any]) -> None:
    torch.library.opcheck(operator, (torch.randn(2, 7, 7), torch.randn(7, 5)))


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
@pytest.mark.parametrize("last", [False, True], ids=["contiguous", "channels_last"])
@pytest.mark.usefixtures("any_size")
def test_compiled_bam_takes_it_where_it_gains(
    learns: bool, options: dict[str, int], dtype: torch.dtype, chosen: bool, last: bool
) -> None:
    bam = get_card("bam").factory(32, **options, dtype=dtype).eval()
    layout = torch.channels_last if last else torch.contiguous_format
    x = torch.randn(2, 32, 9, 7, dtype=dtype).to(memory_format=layout)
    with torch.set_grad_enabled(learns):
        found = find_operators(bam, x)
    name = "pool_project_last" if last else "pool_project"
    assert any(name in operator for operator in found) == chosen


@pytest.mark.usefixtures("any_size")
def test_one_compiled_program_serves_every_batch_and_size() -> None:
    bam = get_card("bam").factory(32).eval()
    for layout in (torch.contiguous_format, torch.channels_last):
        torch._dynamo.reset()
        compiled = torch.compile(bam, fullgraph=True, backend="aot_eager", dynamic=True)
        with torch.no_grad():
            compiled(torch.randn(2, 32, 16, 13).to(memory_format=layout))
            with torch._dynamo.config.patch(error_on_recompile=True):
                for size in ((3, 32, 9, 8), (5, 32, 30, 31)):
                    x = torch.randn(size).to(memory_format=layout)
                    torch.testing.assert_close(compiled(x), bam(x), rtol=1e-5, atol=1e-5)


def test_a_small_map_is_left_to_pytorch() -> None:
    bam = get_card("bam").factory(32).eval()
    with torch.no_grad():
        found = find_operators(bam, torch.randn(2, 32, 80, 80))
    assert not any("pool_project" in name for name in found)


@pytest.mark.usefixtures("any_size")
def test_a_derivative_through_a_compiled_program_is_not_lost() -> None:
    bam = get_card("bam").factory(32).eval().requires_grad_(False)
    x = torch.randn(2, 3, 32, 6, 5)
    over = torch.func.vmap(bam)
    torch._dynamo.reset()
    with torch.no_grad():
        torch.testing.assert_close(torch.compile(over, backend="eager")(x), over(x))
    slope = torch.func.grad(lambda x: bam(x).square().sum())
    torch._dynamo.reset()
    torch.testing.assert_close(torch.compile(slope, backend="eager")(x[0]), slope(x[0]))
