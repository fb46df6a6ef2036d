"""Every module behaves as PyTorch users expect a layer to."""

import copy
import inspect
import io
import pickle

import pytest
import torch
from safetensors.torch import load, save
from torch import nn
from torch.nn.utils import prune

from tests.contract.cases import CARDS, SAMPLES, build, draw_inputs, relative_error, sample_id
from torchplug.card import Card, Sample
from torchplug.kernels import eager

FORBIDDEN_NAMES = {"i", "f", "np", "type"}  # ultralytics writes these on every layer

each_sample = pytest.mark.parametrize(("card", "sample"), SAMPLES, ids=sample_id)
each_card = pytest.mark.parametrize("card", CARDS, ids=sample_id)


@each_card
def test_the_signature_is_channels_then_keywords_then_device_and_dtype(card: Card) -> None:
    parameters = list(inspect.signature(card.factory).parameters.values())
    positional = [p for p in parameters if p.kind is p.POSITIONAL_OR_KEYWORD]
    assert all("channels" in p.name for p in positional)
    assert positional[0].name in {"channels", "in_channels", "low_channels"}
    assert all(p.kind in {p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY} for p in parameters)
    assert [p.name for p in parameters[-2:]] == ["device", "dtype"]


@each_sample
def test_names_that_hosts_write_are_free(card: Card, sample: Sample) -> None:
    for module in card.factory(*sample.args, **sample.options, device="meta").modules():
        assert not FORBIDDEN_NAMES & set(vars(module)) - {"type"}
        assert not FORBIDDEN_NAMES & {*module._parameters, *module._modules, *module._buffers}


@each_sample
def test_batch_members_do_not_see_each_other_in_eval(card: Card, sample: Sample) -> None:
    module, inputs = build(card, sample), draw_inputs(sample)
    with torch.no_grad():
        members = zip(*(x.split(1) for x in inputs), strict=True)
        alone = torch.cat([module(*member) for member in members])
        assert relative_error(module(*inputs), alone) < 1e-12


@each_sample
def test_input_is_not_written_to(card: Card, sample: Sample) -> None:
    inputs = draw_inputs(sample)
    before = [x.clone() for x in inputs]
    build(card, sample).train()(*inputs)
    assert all(torch.equal(x, kept) for x, kept in zip(inputs, before, strict=True))


@each_sample
def test_nothing_is_printed(card: Card, sample: Sample, capsys: pytest.CaptureFixture) -> None:
    build(card, sample)(*draw_inputs(sample))
    assert capsys.readouterr() == ("", "")


@each_sample
def test_channels_last_is_kept(card: Card, sample: Sample) -> None:
    module, inputs = build(card, sample), draw_inputs(sample)
    output = module(*(x.to(memory_format=torch.channels_last) for x in inputs))
    assert output.is_contiguous(memory_format=torch.channels_last)
    assert relative_error(output, module(*inputs)) < 1e-12


@each_sample
def test_a_non_contiguous_input_is_accepted(card: Card, sample: Sample) -> None:
    module, inputs = build(card, sample), draw_inputs(sample)
    strided = [x.mT.contiguous().mT for x in inputs]
    assert relative_error(module(*strided), module(*inputs)) < 1e-12


@each_sample
def test_autocast_follows_full_precision(card: Card, sample: Sample) -> None:
    module = build(card, sample, dtype=torch.float32)
    inputs = draw_inputs(sample, dtype=torch.float32)
    expected = module(*inputs)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert relative_error(module(*inputs).float(), expected) < 0.05


@each_sample
@pytest.mark.parametrize("smallest", [eager.SMALLEST, 0], ids=["plain", "by pieces"])
def test_training_under_autocast_follows_full_precision(
    card: Card, sample: Sample, smallest: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(eager, "SMALLEST", smallest)
    module = build(card, sample, dtype=torch.float32)
    inputs = [x.requires_grad_() for x in draw_inputs(sample, dtype=torch.float32)]
    wanted = torch.autograd.grad(module(*inputs).square().sum(), inputs)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        output = module(*inputs)
    found = torch.autograd.grad(output.float().square().sum(), inputs)
    for ours, theirs in zip(found, wanted, strict=True):
        assert ours.dtype == torch.float32
        assert relative_error(ours, theirs) < 0.15


@each_sample
def test_bfloat16_follows_full_precision(card: Card, sample: Sample) -> None:
    module = build(card, sample, dtype=torch.float32)
    inputs = draw_inputs(sample, dtype=torch.float32)
    expected = module(*inputs)
    output = module.bfloat16()(*(x.bfloat16() for x in inputs))
    assert output.dtype == torch.bfloat16
    assert relative_error(output.float(), expected) < 0.1


@each_sample
def test_gradients_are_those_of_finite_differences(card: Card, sample: Sample) -> None:
    module = build(card, sample)
    drawn = draw_inputs(sample)
    inputs = tuple(x[:1, :, :4, :5].contiguous().requires_grad_() for x in drawn)
    assert torch.autograd.gradcheck(module, inputs, fast_mode=True)


@each_sample
def test_gradients_can_be_differentiated_again(card: Card, sample: Sample) -> None:
    if "Hardsigmoid" in repr(sample.options):
        pytest.skip("torch has no derivative of the gradient of a hard sigmoid")
    module = build(card, sample)
    inputs = [x[:1, :, :4, :5].contiguous().requires_grad_() for x in draw_inputs(sample)]
    ways = [torch.randn_like(x) for x in inputs]

    def slope(step: float, *, graph: bool = False) -> torch.Tensor:
        """The derivative along the ways, a step along them."""
        moved = [x + step * way for x, way in zip(inputs, ways, strict=True)]
        grads = torch.autograd.grad(module(*moved).square().sum(), moved, create_graph=graph)
        return sum((g * way).sum() for g, way in zip(grads, ways, strict=True))

    seconds = torch.autograd.grad(slope(0.0, graph=True), inputs)
    found = sum((s * way).sum() for s, way in zip(seconds, ways, strict=True))
    wanted = (slope(1e-6) - slope(-1e-6)) / 2e-6
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-4)


@each_card
def test_an_activation_that_learns_lives_where_its_module_does(card: Card) -> None:
    if "act_layer" not in inspect.signature(card.factory).parameters:
        pytest.skip(f"{card.key} has no activation to choose")
    sample = card.samples[0]
    options = {**sample.options, "act_layer": nn.PReLU, "dtype": torch.float64}
    made = card.factory(*sample.args, **options, device="meta")
    assert {(p.device.type, p.dtype) for p in made.parameters()} == {("meta", torch.float64)}
    moved = made.to_empty(device="cpu")
    for parameter in moved.parameters():
        nn.init.constant_(parameter, torch.nan)
    for module in moved.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.reset_running_stats()
    moved.reset_parameters()
    assert moved(*draw_inputs(sample)).isfinite().all()


@each_sample
def test_pruning_reaches_every_convolution(card: Card, sample: Sample) -> None:
    module, inputs = build(card, sample), draw_inputs(sample)
    convs = [m for m in module.modules() if isinstance(m, nn.Conv1d | nn.Conv2d)]
    for conv in convs:
        prune.l1_unstructured(conv, "weight", 0.5)
    for _ in range(2):  # its graph is made anew by each call
        module(*inputs).sum().backward()
    pruned = module(*inputs)
    for conv in convs:
        prune.remove(conv, "weight")
    assert relative_error(module(*inputs), pruned) < 1e-12


@each_sample
@pytest.mark.parametrize("size", [(1, 1), (2, 3), (11, 5)])
def test_small_and_odd_maps_work(card: Card, sample: Sample, size: tuple[int, int]) -> None:
    module = build(card, sample)
    assert module(*draw_inputs(sample, batch=2, size=size)).isfinite().all()


@each_sample
def test_meta_device_gives_the_shape(card: Card, sample: Sample) -> None:
    module = card.factory(*sample.args, **sample.options, device="meta").eval()
    inputs = draw_inputs(sample, dtype=torch.float32)
    output = module(*(x.to("meta") for x in inputs))
    assert output.shape == build(card, sample, dtype=torch.float32)(*inputs).shape


@each_sample
def test_reset_parameters_forgets_what_was_learned(card: Card, sample: Sample) -> None:
    fresh, trained = (card.factory(*sample.args, **sample.options) for _ in range(2))
    constant = {name for name, p in fresh.named_parameters() if p.numel() > 1 and p.std() == 0}
    constant |= {name for name, p in fresh.named_parameters() if p.numel() == 1 and p in (0, 1)}
    for parameter in trained.parameters():
        torch.nn.init.uniform_(parameter, 5, 6)
    for module in (fresh, trained):
        before = {name: p.clone() for name, p in module.named_parameters() if name in constant}
        torch.manual_seed(7)
        module.reset_parameters()
        if module is fresh:  # the constructor ends with it, so its constants are there already
            assert all(torch.equal(module.get_parameter(name), before[name]) for name in constant)
    for (name, expected), got in zip(fresh.named_parameters(), trained.parameters(), strict=True):
        assert torch.equal(got, expected), name


@each_sample
def test_copies_compute_the_same(card: Card, sample: Sample) -> None:
    module, inputs = build(card, sample), draw_inputs(sample)
    expected = module(*inputs)
    assert torch.equal(copy.deepcopy(module)(*inputs), expected)
    assert torch.equal(pickle.loads(pickle.dumps(module))(*inputs), expected)

    reloaded = card.factory(*sample.args, **sample.options, dtype=torch.float64).eval()
    reloaded.load_state_dict(load(save(module.state_dict())))
    assert torch.equal(reloaded(*inputs), expected)

    file = io.BytesIO()
    torch.save(module, file)
    file.seek(0)
    assert torch.equal(torch.load(file, weights_only=False)(*inputs), expected)


@each_sample
def test_repr_shows_the_resolved_widths(card: Card, sample: Sample) -> None:
    module = card.factory(*sample.args, **sample.options, device="meta")
    assert f"channels={sample.args[0]}" in module.extra_repr()


@each_card
def test_timm_can_build_it(card: Card) -> None:
    args = card.samples[0].args
    module = card.factory(*args, device=torch.device("cpu"), dtype=torch.float64)
    assert all(p.dtype == torch.float64 for p in module.parameters())
