"""A placebo sees nothing of what its module sees, and is its equal in all else."""

import copy
import pickle
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import torchplug as tp
from tests.contract.cases import SAMPLES, draw_inputs, randomize
from torchplug.analysis import count_flops, count_parameters
from torchplug.card import Card, Sample
from torchplug.controls.placebo.cut import cut_module, cut_plugs
from torchplug.errors import PlugError
from torchplug.hosts import build_model

GATES = ("se", "scse", "cbam", "bam", "strippool")
CONTEXTS = ("gc", "nl", "cc")
POINTS = ("aspp", "rfb", "ssh", "spp")
WEIGHTS = ("sk", "splat")
NONE = ("acnet", "dwconv", "mixconv", "blazeblock")


def samples_of(*keys: str) -> Any:
    found = [(card, sample) for card, sample in SAMPLES if card.key in keys]
    ids = [f"{card.key}-{index}" for index, (card, _) in enumerate(found)]
    return pytest.mark.parametrize(("card", "sample"), found, ids=ids)


def make_pair(card: Card, sample: Sample) -> tuple[nn.Module, nn.Module]:
    """A module with random weights, and its placebo with the same."""
    module = card.factory(*sample.args, **sample.options, dtype=torch.float64)
    randomize(module, 0)
    placebo = copy.deepcopy(module)
    cut_module(placebo)
    return module.eval(), placebo.eval()


def differentiate(
    module: nn.Module, inputs: tuple[Tensor, ...], element: tuple[int, ...]
) -> list[Tensor]:
    """The gradient of one element of the output with respect to every input."""
    leaves = [x.clone().requires_grad_() for x in inputs]
    gradients = torch.autograd.grad(module(*leaves)[element], leaves, allow_unused=True)
    return [
        torch.zeros_like(leaf) if gradient is None else gradient
        for leaf, gradient in zip(leaves, gradients, strict=True)
    ]


def test_every_module_of_the_catalogue_is_in_one_list() -> None:
    keys = {card.key for card, _ in SAMPLES}
    assert keys == {*GATES, *CONTEXTS, *POINTS, *WEIGHTS, *NONE, "ppm", "seb"}


@samples_of(*GATES, *CONTEXTS, *POINTS, *WEIGHTS, "ppm", "seb")
def test_parameters_names_and_work_are_those_of_the_module(card: Card, sample: Sample) -> None:
    module, placebo = make_pair(card, sample)
    assert {k: v.shape for k, v in module.state_dict().items()} == {
        k: v.shape for k, v in placebo.state_dict().items()
    }
    assert all(
        torch.equal(a, b) for a, b in zip(module.parameters(), placebo.parameters(), strict=False)
    )
    inputs = draw_inputs(sample)
    assert module(*inputs).shape == placebo(*inputs).shape
    ratio = count_flops(placebo, inputs) / max(count_flops(module, inputs), 1)
    assert 0.99 <= ratio <= 1.01 or count_flops(module, inputs) == 0
    assert isinstance(placebo, card.factory)


@samples_of(*GATES, *CONTEXTS)
def test_what_meets_the_map_is_the_same_for_every_image(card: Card, sample: Sample) -> None:
    module, placebo = make_pair(card, sample)
    (x,) = draw_inputs(sample)
    (other,) = draw_inputs(sample, seed=5)
    is_additive = card.key in {"nl", "cc"} or getattr(module, "fusion", "") == "add"
    if is_additive and card.key not in GATES:
        effects = [(m(x) - x, m(other) - other) for m in (placebo, module)]
    elif sample.options.get("fusion") == "scale_add":
        middle = (x + other) / 2  # an affine function of x that is the same everywhere
        effects = [(m(middle), (m(x) + m(other)) / 2) for m in (placebo, module)]
    else:
        effects = [(m(x) / x, m(other) / other) for m in (placebo, module)]
    (same, also), (one, another) = effects
    torch.testing.assert_close(same, also, rtol=1e-12, atol=1e-12)
    assert not torch.allclose(one, another, rtol=1e-9, atol=1e-9)  # the module does see


@samples_of(*GATES, *CONTEXTS)
def test_no_other_element_moves_the_output_and_the_map_passes(card: Card, sample: Sample) -> None:
    module, placebo = make_pair(card, sample)
    inputs, element = draw_inputs(sample), (0, 1, 2, 3)
    (gradient,) = differentiate(placebo, inputs, element)
    assert gradient[element] != 0 or placebo(*inputs)[element] == 0  # a hard gate may be shut
    (seen,) = differentiate(module, inputs, element)
    gradient[element] = 0
    seen[element] = 0
    assert not gradient.any()
    assert seen.any() or "gate_layer" in sample.options  # a hard gate has flat ends


@samples_of(*POINTS)
def test_a_position_depends_on_itself_alone(card: Card, sample: Sample) -> None:
    module, placebo = make_pair(card, sample)
    if card.key == "aspp" and sample.options.get("kernel_size", 1) > 1:
        pytest.skip("the last kernel of mmsegmentation's form keeps its own reach")
    inputs, stride = draw_inputs(sample, size=(24, 26)), sample.options.get("stride", 1)
    reached = 0
    for row, column in ((2, 3), (0, 0), (5, 4), (3, 6)):
        cut, whole = (find_seen(each, inputs[0], row, column) for each in (placebo, module))
        assert set(cut) <= {(row * stride, column * stride)}
        assert len(whole) > 1
        reached += len(cut)  # an activation may be shut at a position
    assert reached


def find_seen(module: nn.Module, x: Tensor, row: int, column: int) -> list[tuple[int, ...]]:
    """The positions of the input on which one position of the output depends."""
    leaf = x.clone().requires_grad_()
    module(leaf)[0, :, row, column].sum().backward()
    return [tuple(place) for place in leaf.grad.abs().sum((0, 1)).nonzero().tolist()]  # type: ignore[union-attr]


@samples_of("ppm")
def test_only_the_last_kernel_reaches_beyond_a_position(card: Card, sample: Sample) -> None:
    _, placebo = make_pair(card, sample)
    leaf = draw_inputs(sample)[0].requires_grad_()
    placebo(leaf)[0, :, 2, 3].sum().backward()
    reach = sample.options.get("kernel_size", 3) // 2 if placebo.project is not None else 0
    rows, columns = leaf.grad[0].abs().sum(0).nonzero().T  # type: ignore[index]
    assert (rows - 2).abs().max() <= reach
    assert (columns - 3).abs().max() <= reach
    other = draw_inputs(sample, seed=5)[0]
    pyramids = zip(placebo.find_pyramid(leaf), placebo.find_pyramid(other), strict=False)  # type: ignore[operator]
    assert all(torch.equal(one, another) for one, another in pyramids)


@samples_of(*WEIGHTS)
def test_branches_are_weighed_alike_for_every_image(card: Card, sample: Sample) -> None:
    module, placebo = make_pair(card, sample)
    x, other = draw_inputs(sample)[0], draw_inputs(sample, seed=5)[0]

    def weigh(each: Any, image: Tensor) -> Tensor:
        kept: list[Any] = []
        inner = each.find_weights
        each.find_weights = lambda means: kept.append(inner(means)) or kept[-1]
        each(image)
        del each.find_weights
        return torch.stack(list(kept[-1]))

    assert torch.equal(weigh(placebo, x), weigh(placebo, other))
    assert not torch.allclose(weigh(module, x), weigh(module, other))
    assert not torch.equal(placebo(x), placebo(other))  # the map itself passes


@samples_of("seb")
def test_the_coarser_maps_are_not_seen(card: Card, sample: Sample) -> None:
    module, placebo = make_pair(card, sample)
    inputs = draw_inputs(sample)
    low, *higher = differentiate(placebo, inputs, (0, 1, 2, 3))
    assert low[0, 1, 2, 3] != 0
    assert not any(gradient.any() for gradient in higher)
    assert any(g.any() for g in differentiate(module, inputs, (0, 1, 2, 3))[1:])


@samples_of(*NONE)
def test_a_convolution_has_no_honest_placebo(card: Card, sample: Sample) -> None:
    module = card.factory(*sample.args, **sample.options)
    with pytest.raises(PlugError, match="through which the map itself passes"):
        cut_module(module, is_attached=False)
    assert type(module) is card.factory


@samples_of(*GATES, *CONTEXTS, *POINTS, *WEIGHTS, "ppm", "seb")
def test_it_learns_also_from_one_image(card: Card, sample: Sample) -> None:
    _, placebo = make_pair(card, sample)
    placebo.train()
    one = tuple(x[:1] for x in draw_inputs(sample)) if card.key in GATES else draw_inputs(sample)
    placebo(*one).square().sum().backward()
    still = {
        name
        for name, p in placebo.named_parameters()
        if p.grad is None or float(p.grad.abs().max()) < 1e-12
    }
    # a constant is on or off for all images, and a norm behind it takes it out: some rest
    assert len(still) <= max(1, len(list(placebo.parameters())) // 2), still


def test_the_plugs_of_a_network() -> None:
    model = build_model("torchplug:resnet8")
    tp.plug(model, "cbam", example=(2, 3, 8, 8))
    tp.plug(model, "sk", "conv3x3", example=(2, 3, 8, 8), groups=1)
    x, before = torch.randn(2, 3, 8, 8), model.state_dict()
    wanted = model.eval()(x)
    told = cut_plugs(model)
    assert set(told) == {"CBAM", "SelectiveKernel"}
    assert torch.equal(model(x), wanted)  # the identity start holds
    assert list(model.state_dict()) == list(before)
    model.train()(x).sum().backward()


def test_one_plug_without_a_placebo_leaves_all_as_they_are() -> None:
    model = build_model("torchplug:resnet8")
    tp.plug(model, "se", example=(2, 3, 8, 8))
    tp.plug(model, "acnet", example=(2, 3, 8, 8))
    kinds = [type(module) for module in model.modules()]
    with pytest.raises(PlugError):
        cut_plugs(model)
    assert [type(module) for module in model.modules()] == kinds


class Own(nn.Module):
    """A module of the user's own, at the top of a file so that it can be pickled."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.mix = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return x * self.mix(x).sigmoid()


def test_a_module_of_ones_own_adds_what_it_would_to_a_fixed_map() -> None:
    module = Own(4)
    cut_module(module)
    x, other = torch.randn(2, 2, 4, 5, 5)
    torch.testing.assert_close(module(x) - x, module(other) - other)
    assert len({*(module(x) - x).flatten().tolist()}) > 50  # positions and channels differ
    module(x).sum().backward()
    assert module.mix.weight.grad is not None
    assert module.mix.weight.grad.all()
    again = pickle.loads(pickle.dumps(module))
    assert torch.equal(again(x), module(x))
    assert isinstance(again, Own)
    assert count_parameters(copy.deepcopy(module)) == count_parameters(Own(4))
    with pytest.raises(PlugError):
        cut_module(Own(4), is_attached=False)


def test_norms_on_the_cut_path_only_scale_and_shift() -> None:
    module = tp.BAM(16)
    cut_module(module)
    norms = [layer for layer in module.train().modules() if isinstance(layer, nn.BatchNorm2d)]
    before = [norm.running_mean.clone() for norm in norms if norm.running_mean is not None]
    module(torch.randn(3, 16, 5, 5))
    after = [norm.running_mean for norm in norms if norm.running_mean is not None]
    assert norms
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))
