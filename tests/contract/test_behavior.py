"""Every module behaves as PyTorch users expect a layer to."""

import copy
import inspect
import io
import pickle

import pytest
import torch
from safetensors.torch import load, save

from tests.contract.cases import CARDS, SAMPLES, build, draw_input, relative_error, sample_id
from torchplug.card import Card, Sample

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
    module, x = build(card, sample), draw_input(sample)
    with torch.no_grad():
        alone = torch.cat([module(row[None]) for row in x])
        assert relative_error(module(x), alone) < 1e-12


@each_sample
def test_input_is_not_written_to(card: Card, sample: Sample) -> None:
    x = draw_input(sample)
    before = x.clone()
    build(card, sample).train()(x)
    assert torch.equal(x, before)


@each_sample
def test_nothing_is_printed(card: Card, sample: Sample, capsys: pytest.CaptureFixture) -> None:
    build(card, sample)(draw_input(sample))
    assert capsys.readouterr() == ("", "")


@each_sample
def test_channels_last_is_kept(card: Card, sample: Sample) -> None:
    module, x = build(card, sample), draw_input(sample)
    output = module(x.to(memory_format=torch.channels_last))
    assert output.is_contiguous(memory_format=torch.channels_last)
    assert relative_error(output, module(x)) < 1e-12


@each_sample
def test_a_non_contiguous_input_is_accepted(card: Card, sample: Sample) -> None:
    module, x = build(card, sample), draw_input(sample)
    assert relative_error(module(x.mT.contiguous().mT), module(x)) < 1e-12


@each_sample
def test_autocast_follows_full_precision(card: Card, sample: Sample) -> None:
    module, x = build(card, sample, dtype=torch.float32), draw_input(sample, dtype=torch.float32)
    expected = module(x)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert relative_error(module(x).float(), expected) < 0.05


@each_sample
def test_bfloat16_follows_full_precision(card: Card, sample: Sample) -> None:
    module, x = build(card, sample, dtype=torch.float32), draw_input(sample, dtype=torch.float32)
    expected = module(x)
    output = module.bfloat16()(x.bfloat16())
    assert output.dtype == torch.bfloat16
    assert relative_error(output.float(), expected) < 0.1


@each_sample
def test_gradients_are_those_of_finite_differences(card: Card, sample: Sample) -> None:
    module = build(card, sample)
    x = draw_input(sample)[:1, :, :4, :5].contiguous().requires_grad_()
    assert torch.autograd.gradcheck(module, (x,), fast_mode=True)


@each_sample
@pytest.mark.parametrize("size", [(1, 1), (2, 3), (11, 5)])
def test_small_and_odd_maps_work(card: Card, sample: Sample, size: tuple[int, int]) -> None:
    module = build(card, sample)
    x = torch.randn(2, sample.shape[1], *size, dtype=torch.float64)
    assert module(x).isfinite().all()


@each_sample
def test_meta_device_gives_the_shape(card: Card, sample: Sample) -> None:
    module = card.factory(*sample.args, **sample.options, device="meta").eval()
    assert (
        module(torch.empty(sample.shape, device="meta")).shape
        == build(card, sample)(draw_input(sample)).shape
    )


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
    module, x = build(card, sample), draw_input(sample)
    expected = module(x)
    assert torch.equal(copy.deepcopy(module)(x), expected)
    assert torch.equal(pickle.loads(pickle.dumps(module))(x), expected)

    reloaded = card.factory(*sample.args, **sample.options, dtype=torch.float64).eval()
    reloaded.load_state_dict(load(save(module.state_dict())))
    assert torch.equal(reloaded(x), expected)

    file = io.BytesIO()
    torch.save(module, file)
    file.seek(0)
    assert torch.equal(torch.load(file, weights_only=False)(x), expected)


@each_sample
def test_repr_shows_the_resolved_widths(card: Card, sample: Sample) -> None:
    module = card.factory(*sample.args, **sample.options, device="meta")
    assert f"channels={sample.args[0]}" in module.extra_repr()


@each_card
def test_timm_can_build_it(card: Card) -> None:
    args = card.samples[0].args
    module = card.factory(*args, device=torch.device("cpu"), dtype=torch.float64)
    assert all(p.dtype == torch.float64 for p in module.parameters())
