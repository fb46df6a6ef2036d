"""Modules in the place of a host's module: what is kept, and what is refused."""

import copy
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torchvision
from torch import nn
from torchvision.models.detection.backbone_utils import resnet_fpn_backbone

import torchplug as tp
from tests.surgery.replacing import (
    CONVS,
    EXAMPLE,
    HOSTS,
    draw,
    fingerprint,
    has_even_width,
    is_dense3x3,
    step,
    unet,
)


@pytest.mark.parametrize("host", sorted(HOSTS))
@pytest.mark.parametrize("key", CONVS)
def test_in_the_place_of_every_3x3_the_start_is_bit_equal_and_the_base_is_kept(
    key: str, host: str
) -> None:
    model = HOSTS[host]().eval()
    at = has_even_width if key == "splat" else is_dense3x3
    wanted = [path for path, module in model.named_modules() if at(path, module)]
    x, before, base = draw(), fingerprint(model), copy.deepcopy(model.state_dict())
    expected = model(x)

    report = tp.plug(model, key, at, example=EXAMPLE)

    assert list(report.paths) == wanted
    assert torch.equal(model(x), expected)
    assert (report.max_difference, report.max_relative_difference) == (0, 0)
    state = model.state_dict()
    assert all(torch.equal(state[name], value) for name, value in base.items())
    into_plugged = model.load_state_dict(base, strict=False)
    assert not into_plugged.unexpected_keys
    assert all(".torchplug." in name for name in into_plugged.missing_keys)
    into_base = HOSTS[host]().load_state_dict(state, strict=False)
    assert not into_base.missing_keys
    assert all(".torchplug." in name for name in into_base.unexpected_keys)

    assert tp.unplug(model) == len(wanted)
    assert fingerprint(model) == before
    assert torch.equal(model(x), expected)


@pytest.mark.parametrize("start", ["seeded", "paper"])
@pytest.mark.parametrize("key", CONVS)
def test_other_starts_tell_how_far_the_output_moved(key: str, start: str) -> None:
    model = torchvision.models.resnet18().eval()
    x, before = draw(), fingerprint(model)
    expected = model(x)
    report = tp.plug(model, key, "layer?.*.conv2", example=x, start=start)
    distance = (model(x) - expected).abs().max().detach()
    assert report.max_difference == distance
    assert report.max_relative_difference == pytest.approx(
        float(distance / expected.detach().abs().max())
    )
    if distance > 0:
        assert f"largest difference {distance:.3g}, " in str(report)
    tp.unplug(model)
    assert fingerprint(model) == before


def test_acnet_in_resnet18_has_the_published_count_and_cost() -> None:
    report = tp.plug(torchvision.models.resnet18(), "acnet", is_dense3x3, example=(1, 3, 224, 224))
    # the row and column kernels, two thirds of the 3x3 kernels, and the norms of both: the
    # host's own norm is the third of each block
    assert report.parameters == 19_028_520
    assert report.base_parameters == 11_689_512
    assert report.flops == (2 * 1_814_073_344, 2 * 2_931_593_216)
    assert report.idle_parameters == 0


class DenseMobileNet(nn.Sequential):
    """The network that MobileNet is compared with in its paper: 29.3 million parameters."""

    WIDTHS = (32, 64, 128, 128, 256, 256, 512, 512, 512, 512, 512, 512, 1024, 1024)
    HALVED = (0, 2, 4, 6, 12)

    def __init__(self) -> None:
        layers: list[nn.Module] = []
        width = 3
        for index, out in enumerate(self.WIDTHS):
            stride = 2 if index in self.HALVED else 1
            conv = nn.Conv2d(width, out, 3, stride=stride, padding=1, bias=False)
            layers += [conv, nn.BatchNorm2d(out), nn.ReLU()]
            width = out
        super().__init__(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, 1000))


def test_separable_convolutions_make_the_mobilenet_of_the_paper() -> None:
    model = DenseMobileNet()
    report = tp.plug(model, "dwconv", example=(1, 3, 64, 64), start="paper")
    assert round(report.base_parameters / 1e6, 1) == 29.3
    assert report.parameters - report.idle_parameters == 4_231_976  # as in Keras and timm
    assert report.skipped == (("0", "its paper keeps the first convolution"),)
    assert "skipped            1: 0" in str(report)
    assert "28,256,256 of the base kept at rest" in str(report)
    assert report.flops[1] < report.flops[0] / 7


@pytest.mark.parametrize(
    ("conv", "key", "text"),
    [
        (nn.Conv2d(4, 4, 3, padding=2, dilation=2), "sk", "got dilation=2"),
        (nn.Conv2d(4, 4, 3, padding=0), "sk", "got padding=0 with kernel_size=3"),
        (nn.Conv2d(4, 4, 3, padding=1, padding_mode="reflect"), "sk", "padding_mode='reflect'"),
        (nn.Conv2d(4, 4, (1, 3), padding=(0, 1)), "acnet", r"got kernel_size=\(1, 3\)"),
        (nn.Conv2d(4, 4, 3, padding=1, stride=(1, 2)), "acnet", r"got stride=\(1, 2\)"),
        (nn.Conv2d(4, 4, 4, padding="same"), "acnet", "got padding='same' with kernel_size=4"),
        (nn.Conv2d(4, 4, 2), "acnet", "cannot be built for 0"),
        (nn.Conv2d(4, 4, 3, padding=1, groups=2), "dwconv", "got groups=2; choose dense"),
        (nn.Conv2d(4, 4, 3, padding=1, groups=2), "mixconv", "got groups=2 of 4 channels"),
        (nn.Conv2d(9, 6, 3, padding=1, groups=3), "splat", r"radix \* cardinality must divide"),
        (nn.BatchNorm2d(4), "acnet", "stands in the place of an nn.Conv2d: got BatchNorm2d"),
    ],
)
def test_a_property_that_cannot_be_expressed_is_named(conv: nn.Module, key: str, text: str) -> None:
    width = conv.in_channels if isinstance(conv, nn.Conv2d) else 4
    model = nn.Sequential(conv, nn.ReLU())
    before = fingerprint(model)
    with pytest.raises(tp.PlugError, match=text):
        tp.plug(model, key, "0", example=(2, width, 9, 9))
    assert fingerprint(model) == before


CASES: dict[str, tuple[Callable[[nn.Module], object], type[Exception], str]] = {
    "seeds of a block": (
        lambda m: tp.plug(m, "blazeblock", example=EXAMPLE, start="seeded"),
        tp.PlugError,
        "blazeblock in the place of BasicBlock at layer1.0",
    ),
    "seeds behind a module": (
        lambda m: tp.plug(m, "se", example=EXAMPLE, start="seeded"),
        tp.UsageError,
        "'identity' or 'paper'",
    ),
    "unknown mode": (
        lambda m: tp.plug(m, "se", example=EXAMPLE, mode="beside"),
        tp.UsageError,
        "'attach', 'replace' or 'merge'",
    ),
    "no place fits": (
        lambda m: tp.plug(m, "mixconv", example=EXAMPLE),
        tp.PlugError,
        "16 that it does not fit; layer1.0.conv1: its paper replaces depthwise",
    ),
    "half of a list": (
        lambda m: tp.plug(m, "acnet", ["layer1.0.conv1", "layer1.0.bn1"], example=EXAMPLE),
        tp.PlugError,
        "got BatchNorm2d",
    ),
    "no decoder": (
        lambda m: tp.plug(m, "seb", example=EXAMPLE),
        tp.PlugError,
        "this model has no decoder module",
    ),
    "a block that loses channels": (
        lambda m: tp.plug(m, "blazeblock", "layer1.0.conv1", example=EXAMPLE, stride=2),
        tp.PlugError,
        "must keep the map's shape",
    ),
    "nothing to merge": (tp.merge_plugs, tp.PlugError, "plug acnet in the place"),
}


@pytest.mark.parametrize("case", sorted(CASES))
def test_a_failing_replacement_says_why_and_changes_nothing(case: str) -> None:
    call, error, text = CASES[case]
    model = torchvision.models.resnet18()
    before = fingerprint(model)
    with pytest.raises(error, match=text):
        call(model)
    assert fingerprint(model) == before


def test_two_replacements_do_not_stand_in_one_place() -> None:
    model = torchvision.models.resnet18()
    tp.plug(model, "acnet", "layer1.0.conv1", example=EXAMPLE)
    before = fingerprint(model)
    with pytest.raises(tp.PlugError, match="one plug stands in the place of a module"):
        tp.plug(model, "sk", "layer1.*.conv1", example=EXAMPLE, start="paper")
    assert fingerprint(model) == before


def test_replacements_and_plugs_behind_live_together() -> None:
    model = torchvision.models.resnet18().eval()
    expected = model(draw())
    tp.plug(model, "sk", "layer1.0.conv1", example=EXAMPLE, start="paper")
    tp.plug(model, "se", "layer1.0.conv1", example=EXAMPLE, start="paper")
    tp.plug(model, "blazeblock", "layer1.0", example=EXAMPLE)
    both = model(draw())
    assert tp.unplug(model, "se") == 1
    assert not torch.equal(model(draw()), both)
    assert tp.unplug(model) == 2
    assert torch.equal(model(draw()), expected)


def test_a_plan_repeats_replacements_on_a_fresh_model() -> None:
    model = torchvision.models.resnet18().eval()
    plans = [
        tp.plug(model, "sk", "layer?.0.conv1", example=EXAMPLE, start="paper").plan,
        tp.plug(model, "blazeblock", example=EXAMPLE, start="paper").plan,
    ]
    other = torchvision.models.resnet18().eval()
    assert {plug.mode for plan in plans for plug in plan.plugs} == {"replace"}
    for plan in plans:
        again = tp.Plan.from_json(plan.to_json())
        assert again == plan
        assert tp.plug(other, again, example=EXAMPLE).plan == plan
    other.load_state_dict(model.state_dict())
    assert torch.equal(other(draw()), model(draw()))


def test_a_plan_of_a_merge_repeats_on_a_fresh_model() -> None:
    model = unet().eval()
    plan = tp.plug(model, "seb", example=EXAMPLE, start="paper").plan
    other = unet().eval()
    tp.plug(other, tp.Plan.from_json(plan.to_json()), example=EXAMPLE)
    other.load_state_dict(model.state_dict())
    assert torch.equal(other(draw()), model(draw()))


class Wider(nn.Module):
    """A convolution of the user's own."""

    def __init__(self, in_channels: int, out_channels: int, *, stride: int = 1) -> None:
        super().__init__()
        self.conv = nn.Conv2d(in_channels, out_channels, 5, stride=stride, padding=2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.conv(x)


def test_a_convolution_of_ones_own_takes_the_place() -> None:
    model = torchvision.models.resnet18().eval()
    report = tp.plug(model, Wider, "layer?.0.conv1", example=EXAMPLE, mode="replace")
    assert report.max_difference == 0
    assert model.layer2[0].conv1.torchplug.wider.module.conv.stride == (2, 2)
    grouped = nn.Sequential(nn.Conv2d(4, 4, 3, padding=1, groups=2), nn.ReLU())
    with pytest.raises(tp.PlugError, match="got groups=2"):
        tp.plug(grouped, Wider, "0", example=(1, 4, 8, 8), mode="replace")


def fpn() -> nn.Module:
    return resnet_fpn_backbone(backbone_name="resnet18", weights=None, trainable_layers=5)


# the default place of each, or, where the model cannot tell it by itself, that place by name
PLACES: dict[str, tuple[Callable[[], nn.Module], Any]] = {
    **dict.fromkeys(
        ["acnet", "aspp", "bam", "blazeblock", "cbam", "cc", "dwconv", "gc", "nl", "ppm", "rfb"],
        (torchvision.models.resnet18, None),
    ),
    **dict.fromkeys(["scse", "se", "sk", "spp", "splat"], (torchvision.models.resnet18, None)),
    "mixconv": (torchvision.models.mobilenet_v2, None),
    "seb": (unet, None),
    "ssh": (fpn, "fpn.layer_blocks.*"),
    "strippool": (torchvision.models.resnet18, "layer4.*.bn1"),
}


@pytest.mark.parametrize("key", sorted(tp.cards()))
def test_every_module_goes_to_its_place_starts_as_the_identity_and_trains(key: str) -> None:
    make, at = PLACES[key]
    model = make().eval()
    x, before = draw(), fingerprint(model)
    expected = model(x)
    report = tp.plug(model, key, at, example=EXAMPLE)
    got = model(x)
    pairs = zip(got.values(), expected.values(), strict=True) if isinstance(got, dict) else None
    assert all(torch.equal(a, b) for a, b in pairs or [(got, expected)])
    assert report.max_difference == 0
    copied = copy.deepcopy(model)
    moved = step(copied.train())
    assert any(".torchplug." in name for name in moved)
    tp.unplug(model)
    assert fingerprint(model) == before


def test_the_report_tells_cost_and_change() -> None:
    model = torchvision.models.resnet18()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        report = tp.plug(model, "dwconv", example=(1, 3, 64, 64), start="seeded")
    before, after = report.flops
    text = str(report)
    assert f"{before:,} before, {after:,} after (-8" in text
    assert f"{report.idle_parameters:,} of the base kept at rest" in text
    assert "of the largest value" in text
    assert report.parameters == sum(p.numel() for p in model.parameters())
