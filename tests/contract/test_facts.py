"""Every fact on a card holds."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from tests.contract.cases import CARDS, SAMPLES, build, draw_inputs, input_shapes, sample_id
from torchplug.card import Card, Sample


@pytest.mark.parametrize(("card", "sample"), SAMPLES, ids=sample_id)
def test_parameters_are_as_counted_by_hand(card: Card, sample: Sample) -> None:
    module = card.factory(*sample.args, **sample.options, device="meta")
    assert sum(p.numel() for p in module.parameters()) == sample.parameters


@pytest.mark.parametrize(("card", "sample"), SAMPLES, ids=sample_id)
def test_flops_are_what_torch_counts(card: Card, sample: Sample) -> None:
    module = build(card, sample)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        module(*draw_inputs(sample))
    assert card.flops(module, *input_shapes(sample)) == counter.get_total_flops()


@pytest.mark.parametrize("card", CARDS, ids=sample_id)
def test_identity_at_start_is_as_declared(card: Card) -> None:
    sample = card.samples[0]
    module = card.factory(*sample.args).double()
    inputs = draw_inputs(sample)
    output = module(*inputs)
    if output.shape != inputs[0].shape:
        assert not card.identity_at_start
        return
    assert bool((output == inputs[0]).all()) == card.identity_at_start


@pytest.mark.parametrize(("card", "sample"), SAMPLES, ids=sample_id)
def test_a_module_knows_whether_it_starts_as_the_identity(card: Card, sample: Sample) -> None:
    module = card.factory(*sample.args, **sample.options).double()
    inputs = draw_inputs(sample)
    output = module(*inputs)
    measured = output.shape == inputs[0].shape and bool((output == inputs[0]).all())
    assert getattr(module, "identity_at_start", False) == measured


@pytest.mark.parametrize(("card", "sample"), SAMPLES, ids=sample_id)
def test_a_gradient_reaches_every_parameter_that_is_not_inert(card: Card, sample: Sample) -> None:
    module = build(card, sample)
    output = module(*draw_inputs(sample))
    (output * torch.randn_like(output)).sum().backward()
    scale = max(float(p.grad.abs().max()) for p in module.parameters() if p.grad is not None)
    for name, parameter in module.named_parameters():
        assert parameter.grad is not None, name
        reached = float(parameter.grad.abs().max()) > 1e-9 * scale
        assert reached != (name in card.inert and name not in sample.learned), name


@pytest.mark.parametrize("card", CARDS, ids=sample_id)
def test_min_channels_is_the_smallest_width_that_the_defaults_accept(card: Card) -> None:
    others = card.samples[0].args[1:]
    card.factory(card.min_channels, *others)
    with pytest.raises(ValueError, match=r": got .*; "):
        card.factory(card.min_channels - 1, *others)


@pytest.mark.parametrize("card", CARDS, ids=sample_id)
def test_the_first_sample_is_the_default_construction(card: Card) -> None:
    assert not card.samples[0].options


@pytest.mark.parametrize("card", CARDS, ids=sample_id)
def test_an_unknown_checkpoint_source_is_refused(card: Card) -> None:
    with pytest.raises(ValueError, match=r"source='nowhere'; (did you mean|choose from)"):
        card.convert({}, "nowhere")
