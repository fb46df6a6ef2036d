"""Merging an asymmetric convolution, and what its contract cannot reach."""

from functools import partial

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from tests.contract.cases import ROOT, randomize, relative_error
from tests.oracles import Golden
from tests.oracles.asymmetric_conv import GOLDENS, reference
from torchplug import AsymmetricConv, UsageError, convert_state_dict

DEPLOYED = [golden for golden in GOLDENS if "__official__" in golden.name]

# (kernel_size, dilation, padding, stride): the row's padding is above, at and below zero
GEOMETRIES = [(3, 2, 2, 1), (3, 3, 3, 2), (5, 2, 4, 1), (3, 2, 3, 1), (3, 2, 1, 1), (7, 1, 0, 2)]


def random_block(**options: object) -> AsymmetricConv:
    block = AsymmetricConv(4, 6, **options).double().eval()
    randomize(block, 0)
    return block


@pytest.mark.parametrize("golden", DEPLOYED, ids=lambda golden: golden.name)
def test_the_merged_kernel_is_the_one_the_authors_deploy(golden: Golden) -> None:
    tensors = load_file(ROOT / "tests" / "golden" / f"{golden.name}.safetensors")
    state = {name[6:]: value for name, value in tensors.items() if name.startswith("state/")}
    block = AsymmetricConv(*golden.args, **golden.options).double().eval()
    block.load_state_dict(convert_state_dict(state, "acnet", source="official"))
    merged = block.merge()
    assert relative_error(merged.weight, tensors["deploy/fused_conv.weight"]) < 1e-10
    assert relative_error(merged.bias, tensors["deploy/fused_conv.bias"]) < 1e-10
    assert relative_error(merged(tensors["input"]), tensors["deploy_output"]) < 1e-10


@pytest.mark.parametrize("geometry", GEOMETRIES)
@pytest.mark.parametrize("mode", ["zeros", "replicate"])
def test_dilation_and_any_padding_agree_with_the_reference_and_merge(
    geometry: tuple[int, ...], mode: str
) -> None:
    kernel_size, dilation, padding, stride = geometry
    block = random_block(
        kernel_size=kernel_size,
        dilation=dilation,
        padding=padding,
        stride=stride,
        groups=2,
        padding_mode=mode,
    )
    x = torch.randn(2, 4, 11, 14, dtype=torch.float64)
    assert relative_error(block(x), reference(block, x)) < 1e-12
    assert relative_error(block.merge()(x), block(x)) < 1e-12


@pytest.mark.parametrize("mode", ["reflect", "circular"])
def test_every_padding_mode_merges(mode: str) -> None:
    block = random_block(kernel_size=5, padding_mode=mode)
    x = torch.randn(2, 4, 9, 8, dtype=torch.float64)
    assert relative_error(block.merge()(x), block(x)) < 1e-12


def test_a_merged_block_leaves_the_block_and_the_random_numbers_alone() -> None:
    block, state = random_block(), torch.get_rng_state()
    before = {name: tensor.clone() for name, tensor in block.state_dict().items()}
    block.merge()
    assert all(torch.equal(tensor, before[name]) for name, tensor in block.state_dict().items())
    assert torch.equal(torch.get_rng_state(), state)


def test_a_norm_without_weights_merges() -> None:
    block = random_block(norm_layer=partial(nn.BatchNorm2d, affine=False))
    x = torch.randn(2, 4, 9, 8, dtype=torch.float64)
    assert relative_error(block.merge()(x), block(x)) < 1e-12


def test_gammas_of_one_zero_zero_start_as_the_plain_convolution() -> None:
    block = AsymmetricConv(4, 6, gammas=(1, 0, 0))
    x = torch.randn(2, 4, 9, 8)
    torch.testing.assert_close(block(x), block.square_norm(block.square(x)))


def test_resnet18_in_training_form_has_the_published_number_of_parameters() -> None:
    """The authors' builder makes 19,028,520 of 11,689,512; a block brings its own norms."""
    plain, asymmetric = 0, 0
    steps = [(64, 128), (128, 256), (256, 512)]
    inside = [(64, 64, 4), (128, 128, 3), (256, 256, 3), (512, 512, 3)]
    for before, after, count in [*inside, *((*step, 1) for step in steps)]:
        block = AsymmetricConv(before, after, device="meta")
        asymmetric += count * sum(p.numel() for p in block.parameters())
        plain += count * (9 * before * after + 2 * after)
    assert 11_689_512 - plain + asymmetric == 19_028_520


@pytest.mark.parametrize(
    ("block", "text"),
    [
        (AsymmetricConv(4, 4), "got BatchNorm2d in training mode; call .eval"),
        (AsymmetricConv(4, 4, norm_layer=partial(nn.GroupNorm, 1)).eval(), "got GroupNorm"),
    ],
)
def test_what_cannot_be_merged_is_refused(block: AsymmetricConv, text: str) -> None:
    with pytest.raises(UsageError, match=text):
        block.merge()


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"kernel_size": 4}, "kernel_size must be odd: got kernel_size=4; pass 3 or 5"),
        ({"kernel_size": 0}, "kernel_size must be odd: got kernel_size=0; pass 1 or 3"),
        ({"groups": 3}, "groups must divide in_channels"),
    ],
)
def test_impossible_options_are_refused(options: dict[str, int], text: str) -> None:
    with pytest.raises(ValueError, match=text):
        AsymmetricConv(4, 6, **options)
