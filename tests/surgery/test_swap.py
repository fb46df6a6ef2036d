"""One attention in the place of another: what users call a swap."""

from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import torchvision
from torch import nn

import torchplug as tp

EXAMPLE = (2, 3, 64, 64)


class Gate(nn.Module):
    """An attention of the user's own."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * self.conv(x).sigmoid()


@pytest.mark.parametrize("what", ["cbam", Gate])
def test_one_attention_takes_the_place_of_another(what: Any, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = timm.create_model("seresnet18", num_classes=2).eval()
    x = torch.randn(2, 3, 64, 64)
    before = model(x)
    report = tp.plug(model, what, "layer?.*.se", example=EXAMPLE, mode="replace", name="new")
    assert len(report.paths) == 8
    assert torch.equal(model(x), before)
    assert tp.unplug(model) == 8
    report = tp.plug(
        model, what, "layer?.*.se", example=EXAMPLE, mode="replace", name="new", start="paper"
    )
    at_rest = sum(p.numel() for name, p in model.named_parameters() if ".se.fc" in name)
    assert report.idle_parameters == at_rest
    factories = {} if what == "cbam" else {report.plan.plugs[0].module: what}
    fresh = timm.create_model("seresnet18", num_classes=2).eval()
    fresh.load_state_dict(model.state_dict(), strict=False)
    tp.load(fresh, tp.save(model, tmp_path / "x"), factories=factories)
    torch.testing.assert_close(fresh(x), model(x))
    with pytest.raises(tp.PlugError, match=r"which turns \(2, 64, 16, 16\) into \(2, 128, 8, 8\)"):
        tp.plug(model, what, "layer2.0.conv1", example=EXAMPLE, mode="replace")


def fcn() -> nn.Module:
    return torchvision.models.segmentation.fcn_resnet50(weights=None, weights_backbone=None).eval()


class Small(nn.Sequential):
    """A head in small: its first layer turns 8 channels into 4."""

    def __init__(self, stride: int = 1) -> None:
        super().__init__(nn.Conv2d(3, 8, 3), nn.Conv2d(8, 4, 1, stride=stride), nn.Conv2d(4, 2, 1))


@pytest.mark.parametrize("start", ["identity", "paper"])
@pytest.mark.parametrize("key", ["aspp", "ppm", "rfb", "ssh", "spp"])
def test_a_context_module_takes_the_place_of_a_layer_that_changes_the_width(
    key: str, start: Any, tmp_path: Path
) -> None:
    model = Small().eval()
    x = torch.randn(2, 3, 12, 12)
    before, options = model(x), {"rfb": {"reduction": 4}}.get(key, {})
    tp.plug(model, key, "1", mode="replace", start=start, example=x, **options)
    [(_, _, plug)] = tp.find_plugs(model)
    got: Any = plug.module
    assert (got.in_channels, got.out_channels) == (8, 4)
    assert torch.equal(model(x), before) == (start == "identity")
    if start == "identity":
        nn.init.ones_(plug.gain)  # only the new module counts
    torch.testing.assert_close(model(x), model[2](got(model[0](x))))
    fresh = Small().eval()
    fresh.load_state_dict(model.state_dict(), strict=False)
    tp.load(fresh, tp.save(model, tmp_path / "x"))
    torch.testing.assert_close(fresh(x), model(x))


def test_a_context_module_must_give_the_size_of_the_layer_it_replaces() -> None:
    model, example = Small(stride=2), (2, 3, 13, 13)
    with pytest.raises(tp.PlugError, match=r"shape \(2, 4, 6, 6\): got \(2, 4, 11, 11\) from aspp"):
        tp.plug(model, "aspp", "1", mode="replace", start="paper", example=example)


def test_an_fcn_becomes_a_deeplab_by_a_head_with_its_own_widths() -> None:
    model = fcn()
    tp.plug(model, "aspp", "classifier.0", mode="replace", start="paper", example=(2, 3, 33, 33))
    assert model(torch.randn(1, 3, 33, 33))["out"].shape == (1, 21, 33, 33)
    assert tp.unplug(model) == 1

    def head(site: Any) -> nn.Module:
        last = [nn.BatchNorm2d(256), nn.ReLU(), nn.Conv2d(256, site.channels, 1)]
        inner = nn.Conv2d(256, 256, 3, padding=1, bias=False)
        return nn.Sequential(tp.ASPP(2048, 256, rates=(12, 24, 36)), inner, *last)

    tp.plug(model, head, "classifier", mode="replace", start="paper", example=(2, 3, 33, 33))
    theirs = torchvision.models.segmentation.deeplabv3_resnet50(weights=None, weights_backbone=None)
    learning = sum(p.numel() for p in model.parameters() if p.requires_grad)
    assert learning == sum(p.numel() for p in theirs.parameters()) == 39_638_869


@pytest.mark.parametrize("option", ["in_channels", "out_channels"])
def test_widths_are_not_options(option: str) -> None:
    with pytest.raises(tp.UsageError, match=f"decides the widths of aspp: got '{option}'; leave"):
        tp.plug(Small(), "aspp", "1", example=(2, 3, 12, 12), **{option: 4})


class Halve(nn.Module):
    """A module of the user's own without a constructor."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x / 2


@pytest.mark.parametrize("what", [tp.SpatialGate, Halve, nn.Sigmoid, nn.Identity])
@pytest.mark.parametrize("mode", ["attach", "replace"])
def test_a_class_that_takes_no_channels_is_built_without_them(
    what: Any, mode: Any, tmp_path: Path
) -> None:
    model = timm.create_model("resnet18", num_classes=2).eval()
    x = torch.randn(EXAMPLE)
    before, options = model(x), {"kernel_size": 5} if what is tp.SpatialGate else {}
    at, named = "layer?.0.bn1", {"mode": mode, "name": "own"}
    tp.plug(model, what, at, example=EXAMPLE, **named, **options)
    assert torch.equal(model(x), before)
    tp.unplug(model)
    report = tp.plug(model, what, at, example=EXAMPLE, start="paper", **named, **options)
    assert len(report.paths) == 4
    for _, _, plug in tp.find_plugs(model):
        module = plug.module if mode == "replace" else plug
        assert type(module) is what
        assert all(w.shape == (1, 2, 5, 5) for w in module.parameters() if w.ndim == 4)
    fresh = timm.create_model("resnet18", num_classes=2).eval()
    fresh.load_state_dict(model.state_dict(), strict=False)
    factories = {report.plan.plugs[0].module: what}
    tp.load(fresh, tp.save(model, tmp_path / "x"), factories=factories)
    assert torch.equal(fresh(x), model(x))
