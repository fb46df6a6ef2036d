"""The operators by pieces against their plain twins, and against finite differences."""

from collections.abc import Callable
from functools import partial

import pytest
import torch
from torch import Tensor, nn
from torch.autograd import gradcheck, gradgradcheck
from torch.utils.flop_counter import FlopCounterMode

from torchplug import get_card
from torchplug.kernels import (
    add_context,
    add_strips,
    apply_gate,
    apply_gates,
    eager,
    pool_and_project,
    pool_positions,
    pool_strips,
    pool_weighted,
    project,
    projections,
    scale_in_turn,
    see_around,
)
from torchplug.kernels.pools import pool_channels

RULES = ("product", "sum", "max", "residual_product", "residual_sum", "residual_max")
LAYOUTS = (torch.contiguous_format, torch.channels_last)
SHAPES = ((3, 16, 8, 5), (2, 3, 7, 9), (2, 2, 9, 7), (1, 5, 1, 1))
Operator = Callable[..., tuple[Tensor, ...]]


@pytest.fixture
def by_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every map is worth it, and every sample is a piece, or several."""
    monkeypatch.setattr(eager, "SMALLEST", 0)
    monkeypatch.setattr(eager, "PIECE", 1)
    monkeypatch.setattr(eager, "FINE", 100)


def pass_on(x: Tensor, *results: Tensor) -> tuple[Tensor, ...]:
    """Use the map that was handed on as a module does: scale it last."""
    return (apply_gate(x, torch.full_like(x[:, :, :1, :1], 2.0)), *results)


def weigh(x: Tensor, scores: Tensor) -> tuple[Tensor, ...]:
    return pass_on(*pool_weighted(x, scores.flatten(2)))


def mix(x: Tensor, weight: Tensor) -> tuple[Tensor, ...]:
    return pass_on(*project(with_weight(weight), x))


def pool_and_mix(x: Tensor, weight: Tensor) -> tuple[Tensor, ...]:
    return pass_on(*pool_and_project(with_weight(weight, bias=True), x))


def with_weight(weight: Tensor, *, bias: bool = False) -> nn.Conv2d:
    conv = nn.Conv2d(weight.shape[1], len(weight), 1, bias=bias, dtype=weight.dtype)
    del conv.weight, conv.bias
    conv.weight = weight  # a tensor that gradcheck can follow
    conv.bias = weight.sum((1, 2, 3)) if bias else None
    return conv


OPERATORS: dict[str, Operator] = {
    "pool mean": lambda x, c, s: pass_on(*pool_positions(x)),
    "pool mean and maximum": lambda x, c, s: pass_on(*pool_positions(x, maximum=True)),
    "pool channels": lambda x, c, s: pass_on(*pool_channels(x, c)),
    "scale in turn": lambda x, c, s: (scale_in_turn(x, c, lambda found: s + sum(found)),),
    "pool by weights": lambda x, c, s: weigh(x, s),
    "project to one": lambda x, c, s: mix(x, c[:1]),
    "pool and project": lambda x, c, s: pool_and_mix(x, torch.cat([c[:1], 2 * c[:1].flip(1)])),
    "strips": lambda x, c, s: pass_on(x, *pool_strips(x)),
    "add strips": lambda x, c, s: (add_strips(x[..., :1], x[..., :1, :]),),
    "scale channels": lambda x, c, s: (apply_gate(x, c),),
    "scale positions": lambda x, c, s: (apply_gate(x, s),),
    "add": lambda x, c, s: (add_context(x, c),),
    **{rule: (lambda x, c, s, rule=rule: (apply_gates(x, c, s, rule),)) for rule in RULES},
}


def draw(
    shape: tuple[int, ...], layout: torch.memory_format, dtype: torch.dtype = torch.float64
) -> tuple[Tensor, Tensor, Tensor]:
    torch.manual_seed(0)
    n, c, h, w = shape
    x = torch.randn(shape, dtype=torch.float64).to(dtype).to(memory_format=layout)
    gates = torch.randn(n, c, 1, 1).to(dtype), torch.randn(n, 1, h, w).to(dtype)
    return x.requires_grad_(), gates[0].requires_grad_(), gates[1].requires_grad_()


def run(operator: Operator, inputs: tuple[Tensor, ...]) -> list[Tensor]:
    outputs = operator(*inputs)
    cotangents = [torch.linspace(-1, 1, y.numel(), dtype=y.dtype).view(y.shape) for y in outputs]
    grads = torch.autograd.grad(outputs, inputs, cotangents, allow_unused=True)
    return [*outputs, *(g for g in grads if g is not None)]


@pytest.mark.parametrize("layout", LAYOUTS, ids=["contiguous", "channels_last"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("name", OPERATORS)
def test_pieces_and_the_plain_form_agree(
    name: str, shape: tuple[int, ...], layout: torch.memory_format, monkeypatch: pytest.MonkeyPatch
) -> None:
    inputs = draw(shape, layout)
    plain = run(OPERATORS[name], inputs)
    monkeypatch.setattr(eager, "SMALLEST", 0)
    monkeypatch.setattr(eager, "PIECE", 2 * inputs[0][0].numel() * 8)
    monkeypatch.setattr(eager, "FINE", 0.4 * inputs[0][0].numel() * 8)
    pieces = run(OPERATORS[name], inputs)
    if "strips" not in name:  # they have another form in one layout only
        assert type(plain[0].grad_fn) is not type(pieces[0].grad_fn), "the pieces were not used"
    for ours, theirs in zip(pieces, plain, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("name", OPERATORS)
def test_first_and_second_derivatives_match_finite_differences(name: str, by_pieces: None) -> None:
    inputs = draw((2, 4, 3, 3), torch.contiguous_format)
    assert gradcheck(OPERATORS[name], inputs)
    assert gradgradcheck(OPERATORS[name], inputs)


@pytest.mark.parametrize("name", OPERATORS)
def test_without_gradients_the_result_is_the_same(name: str, by_pieces: None) -> None:
    inputs = draw((3, 16, 8, 5), torch.contiguous_format)
    learned = OPERATORS[name](*inputs)
    with torch.no_grad():
        for ours, theirs in zip(OPERATORS[name](*inputs), learned, strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("learning", [0, 1, 2], ids=["map", "channels", "positions"])
def test_gates_in_turn_learn_where_only_one_part_does(learning: int, by_pieces: None) -> None:
    parts = [part.detach() for part in draw((2, 6, 4, 5), torch.contiguous_format)]
    parts[learning].requires_grad_()
    kept = [part.detach().clone() for part in parts]
    (ours,) = OPERATORS["scale in turn"](*parts)
    x, c, s = parts
    plain = x * c * (s + (x * c).amax(1, keepdim=True) + (x * c).mean(1, keepdim=True))
    torch.testing.assert_close(ours, plain, rtol=1e-12, atol=1e-12)
    gradients = (torch.autograd.grad(y.square().sum(), parts[learning]) for y in (ours, plain))
    torch.testing.assert_close(*(g[0] for g in gradients), rtol=1e-10, atol=1e-10)
    assert all(map(torch.equal, parts, kept)), "an input was written to"


@pytest.mark.parametrize("rule", RULES)
def test_low_precision_keeps_its_type_and_stays_near(rule: str, by_pieces: None) -> None:
    inputs = draw((2, 8, 6, 7), torch.contiguous_format, torch.bfloat16)
    exact = tuple(t.detach().double().requires_grad_() for t in inputs)
    for ours, theirs in zip(run(OPERATORS[rule], inputs), run(OPERATORS[rule], exact), strict=True):
        assert ours.dtype == torch.bfloat16
        error = (ours.double() - theirs).norm() / theirs.norm()
        assert error < 0.03


def test_a_maximum_that_is_there_twice_gives_its_gradient_once(by_pieces: None) -> None:
    x = torch.zeros(1, 4, 8, 3, dtype=torch.float64, requires_grad=True)
    pool_positions(x, maximum=True)[2].sum().backward()
    assert x.grad is not None
    assert x.grad.sum((2, 3)).tolist() == [[1.0, 1.0, 1.0, 1.0]]
    # rows (0, 5) and (3, 2) of a square of channels tie: their maxima alone would point elsewhere
    x = torch.zeros(1, 16, 1, 1, dtype=torch.float64)
    x[0, 1 * 4 + 3] = x[0, 2 * 4 + 1] = 5
    x.requires_grad_()
    pool_channels(x, torch.ones(1, 16, 1, 1, dtype=torch.float64))[1].sum().backward()
    assert x.grad is not None
    assert x.grad.flatten()[7] == 1
    assert x.grad.sum() == 1


GATES = {
    "se": {},
    "scse": {},
    "scse add": {"fusion": "add"},
    "cbam": {},
    "bam": {},
    "bam sum": {"combine": "sum"},
    "gc": {},
    "gc both": {"fusion": "scale_add"},
    "gc average": {"pooling": "average"},
    "sk": {},
    "splat": {},
    "strippool": {},
}


@pytest.mark.parametrize("layout", LAYOUTS, ids=["contiguous", "channels_last"])
@pytest.mark.parametrize("name", GATES)
def test_modules_compute_and_learn_the_same_by_pieces(
    name: str, layout: torch.memory_format, monkeypatch: pytest.MonkeyPatch
) -> None:
    card = get_card(name.split()[0])
    torch.manual_seed(1)
    widths = (64, 64) if card.kind == "conv" else (64,)
    module = card.factory(*widths, **GATES[name], dtype=torch.float64).to(memory_format=layout)
    for parameter in module.parameters():
        nn.init.normal_(parameter, std=0.3)
    x = torch.randn(3, 64, 8, 7, dtype=torch.float64).to(memory_format=layout)
    inputs = (x.requires_grad_(), *module.parameters())

    def compute() -> list[Tensor]:
        y = module(x)
        weight = torch.linspace(-1, 1, y.numel(), dtype=y.dtype).view(y.shape)
        return [y, *torch.autograd.grad(y, inputs, weight)]

    plain = compute()
    monkeypatch.setattr(eager, "SMALLEST", 0)
    monkeypatch.setattr(eager, "PIECE", 1)
    monkeypatch.setattr(eager, "FINE", 1000)
    for ours, theirs in zip(compute(), plain, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-9)
    with torch.no_grad():
        torch.testing.assert_close(module.eval()(x), module(x), rtol=0, atol=0)


def test_hooks_replaced_layers_and_transforms_see_what_they_always_saw(by_pieces: None) -> None:
    module = get_card("scse").factory(8, dtype=torch.float64)
    x = torch.randn(2, 8, 5, 5, dtype=torch.float64, requires_grad=True)
    seen = []
    handle = module.spatial.squeeze.register_forward_hook(lambda *_: seen.append(1))
    before = module(x)
    handle.remove()
    assert seen == [1]
    torch.testing.assert_close(before, module(x))
    per_sample = torch.func.vmap(lambda one: module(one[None])[0])(x)
    torch.testing.assert_close(per_sample, module(x))
    _, tangent = torch.func.jvp(module, (x.detach(),), (torch.ones_like(x),))
    step = 1e-6
    ahead, behind = (module(x.detach() + sign * step) for sign in (1, -1))
    torch.testing.assert_close(tangent, (ahead - behind) / (2 * step), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("layout", LAYOUTS, ids=["contiguous", "channels_last"])
@pytest.mark.parametrize("key", ["scse", "gc", "cbam", "bam"])
def test_compiled_modules_compute_the_same(
    key: str, layout: torch.memory_format, by_pieces: None
) -> None:
    torch._dynamo.reset()
    module = get_card(key).factory(32).double()
    for parameter in module.parameters():
        nn.init.normal_(parameter, std=0.3)
    x = torch.randn(2, 32, 6, 5, dtype=torch.float64).to(memory_format=layout).requires_grad_()
    compiled = torch.compile(module, fullgraph=True, backend="aot_eager")
    for ours, theirs in zip(
        (compiled(x), *torch.autograd.grad(compiled(x).square().sum(), x)),
        (module(x), *torch.autograd.grad(module(x).square().sum(), x)),
        strict=True,
    ):
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-9)
    with torch.no_grad():
        torch.testing.assert_close(compiled(x), module(x), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("layout", LAYOUTS, ids=["contiguous", "channels_last"])
@pytest.mark.parametrize("key", ["se", "scse", "gc", "cbam", "bam"])
def test_one_compiled_program_serves_every_batch_and_size(
    key: str, layout: torch.memory_format, by_pieces: None
) -> None:
    torch._dynamo.reset()
    module = get_card(key).factory(32).double().eval()
    for parameter in module.parameters():
        nn.init.normal_(parameter, std=0.3)
    compiled = torch.compile(module, fullgraph=True, backend="aot_eager", dynamic=True)
    with torch.no_grad():
        compiled(torch.randn(2, 32, 6, 5, dtype=torch.float64).to(memory_format=layout))
        with torch._dynamo.config.patch(error_on_recompile=True):
            for shape in ((3, 32, 6, 5), (5, 32, 9, 4)):
                x = torch.randn(shape, dtype=torch.float64).to(memory_format=layout)
                torch.testing.assert_close(compiled(x), module(x), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("key", ["se", "scse", "gc", "cbam", "bam"])
def test_the_flops_of_pieces_are_counted_as_declared(key: str, by_pieces: None) -> None:
    card = get_card(key)
    for channels in (32, 512):  # BAM's narrow map is made in another way from 16 channels on
        module, x = card.factory(channels).eval(), torch.randn(3, channels, 5, 4)
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            module(x)
        assert counter.get_total_flops() == card.flops(module, tuple(x.shape))


@pytest.mark.parametrize("piece", [1, 1 << 20], ids=["channels", "samples"])
@pytest.mark.parametrize("width", [3, 20])
def test_a_narrow_map_is_made_alike_in_every_way(
    width: int, piece: int, by_pieces: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(eager, "PIECE", piece)
    monkeypatch.setattr(projections, "PIECE", piece)
    x, conv = torch.randn(3, 24, 5, 4, dtype=torch.float64), nn.Conv2d(24, width, 1).double()
    with torch.no_grad():
        same, mean, y = pool_and_project(conv, x)
        torch.testing.assert_close(y, conv(x), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(mean, x.mean((2, 3), keepdim=True), rtol=1e-12, atol=1e-12)
    assert same is x
    assert y.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("layout", LAYOUTS, ids=["contiguous", "channels_last"])
@pytest.mark.parametrize("channels", [32, 24, 7])
def test_channels_are_reduced_in_groups_to_the_same(
    channels: int, layout: torch.memory_format
) -> None:
    x = torch.randn(2, channels, 3, 5, dtype=torch.float64).to(memory_format=layout)
    for reduce in (torch.sum, torch.amax):
        ours, wanted = eager.reduce_channels(x, reduce), reduce(x, 1, keepdim=True)
        torch.testing.assert_close(ours, wanted, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("scale", [1.0, 1e3])
@pytest.mark.parametrize("rule", ["residual_product", "residual_sum", "residual_max"])
def test_a_compiled_gate_is_right_for_logits_of_any_size(
    rule: str, scale: float, by_pieces: None
) -> None:
    torch._dynamo.reset()
    x, c, s = (t.detach() for t in draw((2, 4, 3, 3), torch.contiguous_format, torch.float32))
    compiled = torch.compile(apply_gates, fullgraph=True, backend="aot_eager")
    ours = compiled(x, scale * c, scale * s, rule)
    assert ours.isfinite().all()
    torch.testing.assert_close(ours, apply_gates(x, scale * c, scale * s, rule))


def test_samples_in_the_place_of_channels_give_the_same_convolution(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    maps = [torch.randn(3, 1, 9, 8, dtype=torch.float64) for _ in range(2)]
    conv = nn.Conv2d(2, 1, (5, 3), 2, (2, 1), bias=False, dtype=torch.float64)
    with torch.no_grad():
        plain = see_around(conv, maps)
        monkeypatch.setattr(projections, "SMALLEST_NARROW", 0)
        conv.forward = None  # type: ignore[assignment]
        with pytest.raises(TypeError, match="NoneType"):
            see_around(conv, maps)
        del conv.forward
        monkeypatch.setattr(nn.Conv2d, "forward", None)  # not called
        torch.testing.assert_close(see_around(conv, maps), plain, rtol=1e-12, atol=1e-12)


def test_inputs_and_gradients_of_others_are_not_written_to(by_pieces: None) -> None:
    for key in ("se", "scse", "cbam", "bam", "gc"):
        module = get_card(key).factory(32)
        x = torch.randn(2, 32, 6, 6, requires_grad=True)
        doubled = x * 2
        doubled.retain_grad()
        y = module(doubled)
        copy, gradient = doubled.detach().clone(), torch.randn_like(y)
        kept = gradient.clone()
        (y + doubled).backward(gradient)
        assert torch.equal(gradient, kept), key
        assert torch.equal(doubled, copy), key
        assert x.grad is not None
        assert doubled.grad is not None
        torch.testing.assert_close(x.grad, 2 * doubled.grad)


def test_maps_laid_out_in_any_order_have_gradients(by_pieces: None) -> None:
    x = torch.randn(2, 4, 6, 8, dtype=torch.float64).mT.requires_grad_()
    for pool in (pool_positions, partial(pool_positions, maximum=True)):
        results = pass_on(*pool(x))
        found = torch.autograd.grad([r.square().sum() for r in results], x)[0]
        copy = x.detach().contiguous().requires_grad_()
        results = pass_on(*pool(copy))
        wanted = torch.autograd.grad([r.square().sum() for r in results], copy)[0]
        torch.testing.assert_close(found, wanted, rtol=1e-12, atol=1e-12)
