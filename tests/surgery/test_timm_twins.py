"""A plugged plain network against timm's own network with the module built in.

timm writes the module into the block's source; ``plug`` finds the same place. With timm's weights
moved across, both must compute the same.
"""

import re
from typing import Any

import pytest
import timm
import torch
from timm.models.resnest import ResNestBottleneck
from timm.models.resnet import Bottleneck, ResNet
from timm.models.sknet import SelectiveKernelBottleneck
from torch import Tensor, nn

import torchplug as tp

EXAMPLE = (2, 3, 64, 64)


def randomize(model: nn.Module) -> None:
    """Give every tensor a value under which no branch vanishes."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
            if not tensor.is_floating_point():
                continue
            values = torch.randn(tensor.shape, generator=generator)
            if name.endswith("running_var"):
                values = values.abs() + 0.5
            elif tensor.ndim > 1:
                values = values / max(tensor[0].numel(), 1) ** 0.5
            else:
                values = 1 + 0.1 * values
            tensor.copy_(values)


def built_in(attention: Any) -> nn.Module:
    model = ResNet(Bottleneck, [2, 1, 1, 1], block_args={"attn_layer": attention}, num_classes=7)
    randomize(model)
    return model.eval()


def move(theirs: nn.Module, ours: nn.Module, slot: str, key: str, anchor: str) -> None:
    """Load timm's weights: those of the slot through the card, the rest by their own names."""
    state: dict[str, Tensor] = {}
    own: dict[str, dict[str, Tensor]] = {}
    for name, tensor in theirs.state_dict().items():
        block, inside, rest = name.partition(f".{slot}.")
        if inside:
            own.setdefault(block, {})[rest] = tensor
        else:
            state[name] = tensor
    for block, weights in own.items():
        converted = tp.convert_state_dict(weights, key, source="timm")
        prefix = f"{block}.{anchor}.torchplug.{key}."
        state |= {prefix + name: tensor for name, tensor in converted.items()}
    ours.load_state_dict(state)


CASES: dict[str, tuple[str, dict[str, Any], str]] = {
    "se": ("se", {}, "se"),
    "gc": ("gc", {"fusion": "scale", "reduction": 8, "eps": 1e-6}, "gc"),
    "gca": ("gc", {"reduction": 8, "eps": 1e-6}, "gca"),
    "cbam": ("cbam", {"bias": False}, "cbam"),
    "nl": (
        "nl",
        {"reduction": 8, "scale": "channels", "subsample": "none"},
        "nl",
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_a_plugged_resnet_computes_what_timms_own_does(name: str) -> None:
    key, options, attention = CASES[name]
    theirs = built_in(attention)
    ours = ResNet(Bottleneck, [2, 1, 1, 1], num_classes=7).eval()
    report = tp.plug(ours, key, "bottleneck", example=EXAMPLE, start="paper", every=1, **options)
    assert len(report.paths) == 5
    move(theirs, ours, "se", key, "bn3")
    image = torch.randn(EXAMPLE)
    with torch.no_grad():
        wanted, got = theirs(image), ours(image)
    assert wanted.std() > 0
    torch.testing.assert_close(got, wanted, rtol=1e-4, atol=1e-4 * float(wanted.abs().max()))


def test_the_published_seresnet50_takes_its_own_weights_when_plugged() -> None:
    theirs = timm.create_model("seresnet50", num_classes=10).eval()
    randomize(theirs)
    ours = timm.create_model("resnet50", num_classes=10).eval()
    tp.plug(ours, "se", example=EXAMPLE, start="paper")
    move(theirs, ours, "se", "se", "bn3")
    assert sum(p.numel() for p in ours.parameters()) == sum(p.numel() for p in theirs.parameters())
    image = torch.randn(EXAMPLE)
    with torch.no_grad():
        wanted, got = theirs(image), ours(image)
    torch.testing.assert_close(got, wanted, rtol=1e-4, atol=1e-4 * float(wanted.abs().max()))


def take_over(ours: nn.Module, theirs: nn.Module, key: str, paths: tuple[str, ...]) -> None:
    """Load timm's weights where ``conv2`` is a module that needs no norm behind it.

    The host's own norm stays and is set to the identity; its ReLU finds nothing below zero.
    """
    state = {  # timm may write a convolution and its norm as one layer
        re.sub(r"\.conv([13])\.bn\.", r".bn\1.", re.sub(r"\.conv([13])\.conv\.", r".conv\1.", k)): v
        for k, v in theirs.state_dict().items()
        if ".conv2." not in k
    }
    for path in paths:
        own = f"{path}."
        weights = {
            k.removeprefix(own): v for k, v in theirs.state_dict().items() if k.startswith(own)
        }
        converted = tp.convert_state_dict(weights, key, source="timm")
        state |= {f"{path}.torchplug.{key}.module.{k}": v for k, v in converted.items()}
    unused = ours.load_state_dict(state, strict=False).missing_keys
    assert all(".conv2.weight" in k or ".bn2." in k for k in unused), unused
    for name, module in ours.named_modules():
        if name.endswith(".bn2"):
            module.running_var.fill_(1 - module.eps)


SK = {"sk_kwargs": {"rd_ratio": 1 / 16, "rd_divisor": 32, "split_input": False}}
REPLACED: dict[str, tuple[type[nn.Module], dict[str, Any], dict[str, Any], dict[str, Any]]] = {
    "sk": (SelectiveKernelBottleneck, SK, {"cardinality": 32, "base_width": 4}, {"groups": 32}),
    "splat": (ResNestBottleneck, {"radix": 2}, {}, {}),
}


@pytest.mark.parametrize("key", REPLACED)
def test_a_resnet_with_replaced_convolutions_computes_what_timms_own_does(key: str) -> None:
    block, inner, shape, options = REPLACED[key]
    theirs = ResNet(block, [2, 1, 1, 1], **shape, block_args=inner, num_classes=7).eval()
    randomize(theirs)
    ours = ResNet(Bottleneck, [2, 1, 1, 1], **shape, num_classes=7).eval()
    report = tp.plug(ours, key, "layer?.?.conv2", example=EXAMPLE, start="paper", **options)
    assert len(report.paths) == 5
    take_over(ours, theirs, key, report.paths)
    image = torch.randn(EXAMPLE)
    with torch.no_grad():
        wanted, got = theirs(image), ours(image)
    assert wanted.std() > 0
    torch.testing.assert_close(got, wanted, rtol=1e-4, atol=1e-4 * float(wanted.abs().max()))
