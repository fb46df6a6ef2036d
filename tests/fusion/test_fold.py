"""Folding gives the function of both layers, and refuses what it would change."""

import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch import nn

from tests.contract.cases import randomize, relative_error
from torchplug.fusion import fold_conv_bn

RECORDINGS = sorted((Path(__file__).parents[1] / "golden").glob("fuseconvbn__*.safetensors"))


def test_the_recordings_are_there() -> None:
    assert len(RECORDINGS) == 9


@pytest.mark.parametrize("path", RECORDINGS, ids=lambda path: path.stem)
def test_weights_output_and_gradient_equal_the_recording(path: Path) -> None:
    with safe_open(path, "pt") as file:
        made = json.loads(file.metadata()["kwargs"])
    conv = getattr(nn, made["conv"])(**made["conv_kwargs"]).double().eval()
    bn = getattr(nn, made["bn"])(conv.out_channels, **made["bn_kwargs"]).double().eval()
    tensors = load_file(path)
    pair = nn.ModuleDict({"conv": conv, "bn": bn})
    pair.load_state_dict(
        {name[6:]: tensor for name, tensor in tensors.items() if name.startswith("state/")}
    )

    folded = fold_conv_bn(conv, bn)
    x = tensors["input"].requires_grad_()
    output = folded(x)
    (gradient,) = torch.autograd.grad((output * tensors["cotangent"]).sum(), x)

    assert type(folded) is type(conv)
    assert relative_error(folded.weight, tensors["fused/weight"]) < 1e-10
    assert relative_error(folded.bias, tensors["fused/bias"]) < 1e-10
    assert relative_error(output, tensors["output"]) < 1e-10
    assert relative_error(gradient, tensors["grad_input"]) < 1e-10


def random_pair(conv: nn.Module, bn: nn.Module) -> tuple[nn.Module, nn.Module]:
    for seed, layer in enumerate((conv, bn)):
        layer.double().eval()
        randomize(layer, seed)
    return conv, bn


@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("dimension", [1, 2, 3])
@pytest.mark.parametrize("groups", [1, 2, 6])
@pytest.mark.parametrize("bias", [False, True])
def test_every_kind_of_convolution_folds(
    transposed: bool, dimension: int, groups: int, bias: bool
) -> None:
    kind = getattr(nn, f"Conv{'Transpose' * transposed}{dimension}d")
    conv, bn = random_pair(
        kind(6, 12, 3, stride=2, groups=groups, bias=bias),
        getattr(nn, f"BatchNorm{dimension}d")(12, eps=1e-2),
    )
    x = torch.randn(2, 6, *(5, 7, 6)[:dimension], dtype=torch.float64)
    assert relative_error(fold_conv_bn(conv, bn)(x), bn(conv(x))) < 1e-12


def test_a_norm_without_weights_folds() -> None:
    conv, bn = random_pair(nn.Conv2d(3, 5, 3), nn.BatchNorm2d(5, affine=False))
    x = torch.randn(2, 3, 6, 7, dtype=torch.float64)
    assert relative_error(fold_conv_bn(conv, bn)(x), bn(conv(x))) < 1e-12


def test_a_norm_over_several_devices_folds() -> None:
    conv, bn = random_pair(nn.Conv2d(3, 5, 3), nn.BatchNorm2d(5))
    x = torch.randn(2, 3, 6, 7, dtype=torch.float64)
    expected = bn(conv(x))
    folded = fold_conv_bn(conv, nn.SyncBatchNorm.convert_sync_batchnorm(bn))
    assert relative_error(folded(x), expected) < 1e-12


def test_the_layers_themselves_and_the_random_numbers_are_left_alone() -> None:
    conv, bn = random_pair(nn.Conv2d(3, 5, 3), nn.BatchNorm2d(5))
    before = [tensor.clone() for tensor in (*conv.state_dict().values(), *bn.state_dict().values())]
    state = torch.get_rng_state()
    fold_conv_bn(conv, bn)
    after = (*conv.state_dict().values(), *bn.state_dict().values())
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))
    assert torch.equal(torch.get_rng_state(), state)


def test_half_precision_rounds_once() -> None:
    conv, bn = random_pair(nn.Conv2d(3, 5, 3), nn.BatchNorm2d(5))
    conv, bn = conv.half(), bn.half()
    folded, exact = fold_conv_bn(conv, bn), fold_conv_bn(conv.float(), bn.float())
    assert folded.weight.dtype == folded.bias.dtype == torch.float16
    assert torch.equal(folded.weight, exact.weight.half())


def test_a_frozen_convolution_stays_frozen() -> None:
    conv, bn = random_pair(nn.Conv2d(3, 5, 3), nn.BatchNorm2d(5))
    folded = fold_conv_bn(conv.requires_grad_(False), bn)
    assert not folded.weight.requires_grad
    assert not folded.bias.requires_grad


class Standardized(nn.Conv2d):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self._conv_forward(x, self.weight - self.weight.mean(), self.bias)


class ActivatedNorm(nn.BatchNorm2d):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x).relu()


def with_hook(layer: nn.Module) -> nn.Module:
    layer.register_forward_hook(lambda *seen: 2 * seen[-1])
    return layer


@pytest.mark.parametrize(
    ("conv", "bn", "text"),
    [
        (nn.Conv2d(3, 5, 3), nn.BatchNorm2d(5), "got BatchNorm2d in training mode; call .eval"),
        (nn.Conv2d(3, 5, 3), nn.BatchNorm2d(5, track_running_stats=False).eval(), "running stat"),
        (nn.Conv2d(3, 5, 3), nn.BatchNorm2d(6).eval(), "got 5 output channels and a norm of 6"),
        (nn.Conv2d(3, 5, 3), nn.GroupNorm(1, 5).eval(), "got GroupNorm;"),
        (nn.Conv2d(3, 5, 3), ActivatedNorm(5).eval(), "ActivatedNorm with a forward of its own"),
        (nn.Conv2d(3, 5, 3), with_hook(nn.BatchNorm2d(5)).eval(), "BatchNorm2d with hooks"),
        (nn.Linear(3, 5), nn.BatchNorm1d(5).eval(), "only a plain convolution .* got Linear"),
        (Standardized(3, 5, 3), nn.BatchNorm2d(5).eval(), "Standardized with a forward of its own"),
        (with_hook(nn.Conv2d(3, 5, 3)), nn.BatchNorm2d(5).eval(), "Conv2d with forward hooks"),
        (
            nn.utils.parametrizations.weight_norm(nn.Conv2d(3, 5, 3)),
            nn.BatchNorm2d(5).eval(),
            "with a parametrized weight",
        ),
    ],
)
def test_what_is_more_than_a_convolution_and_its_norm_is_refused(
    conv: nn.Module, bn: nn.Module, text: str
) -> None:
    with pytest.raises(ValueError, match=text):
        fold_conv_bn(conv, bn)
