"""Every module computes what its paper's code computes, and what a naive reading computes."""

import pytest
import torch
from safetensors.torch import load_file

from tests.contract.cases import (
    CARDS,
    ROOT,
    SAMPLES,
    build,
    draw_inputs,
    oracle,
    relative_error,
    sample_id,
)
from tests.oracles import Golden, weights_of
from torchplug.card import Card, Sample

GOLDENS = [(card, golden) for card in CARDS for golden in oracle(card).GOLDENS]


@pytest.mark.parametrize(("card", "golden"), GOLDENS, ids=lambda v: getattr(v, "name", None))
def test_output_and_input_gradient_equal_the_recording(card: Card, golden: Golden) -> None:
    tensors = load_file(ROOT / "tests" / "golden" / f"{golden.name}.safetensors")
    state = weights_of(golden, tensors)
    factory = golden.factory or card.factory
    module = factory(*golden.args, **golden.options, dtype=torch.float64).eval()
    if golden.prepare is not None:
        golden.prepare(module)
    module.load_state_dict(card.convert(state, golden.source), strict=True)

    inputs = [tensors[name].requires_grad_() for name in golden.inputs]
    output = module(*inputs)
    gradients = torch.autograd.grad((output * tensors["cotangent"]).sum(), inputs)

    assert relative_error(output, tensors["output"]) < 1e-10
    for name, gradient in zip(golden.inputs, gradients, strict=True):
        assert relative_error(gradient, tensors[f"grad_{name}"]) < 1e-10


@pytest.mark.parametrize(("card", "sample"), SAMPLES, ids=sample_id)
def test_output_equals_the_naive_reference(card: Card, sample: Sample) -> None:
    module, inputs = build(card, sample), draw_inputs(sample)
    with torch.no_grad():
        assert relative_error(module(*inputs), oracle(card).reference(module, *inputs)) < 1e-10


@pytest.mark.parametrize("card", CARDS, ids=sample_id)
def test_every_recording_is_used(card: Card) -> None:
    recorded = {
        path.stem for path in (ROOT / "tests" / "golden").glob(f"{card.key}__*.safetensors")
    }
    assert {golden.name for golden in oracle(card).GOLDENS} == recorded
    assert recorded, "a card needs at least one recording of code that is not ours"
