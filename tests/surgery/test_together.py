"""Every module at its own place, through everything that a user does with a plugged model."""

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import segmentation_models_pytorch as smp
import torch
import torchvision
from torch import nn

import torchplug as tp

EXAMPLE = (1, 3, 64, 64)


def resnet() -> nn.Module:
    return torchvision.models.resnet18()


def unet() -> nn.Module:
    return smp.Unet("resnet18", encoder_weights=None)


def fpn() -> nn.Module:
    return smp.FPN("resnet18", encoder_weights=None)


def mobilenet() -> nn.Module:
    return torchvision.models.mobilenet_v2()


def densenet() -> nn.Module:
    return torchvision.models.densenet121()


SPECIAL: dict[str, Callable[[], nn.Module]] = {"seb": unet, "ssh": fpn, "mixconv": mobilenet}
CASES = [(key, SPECIAL.get(key, resnet)) for key in tp.cards()]
CASES += [("se", densenet), ("ppm", densenet), ("scse", unet)]


def build(make: Callable[[], nn.Module]) -> nn.Module:
    torch.manual_seed(0)
    return make().eval()


def run(model: nn.Module) -> Any:
    torch.manual_seed(1)
    with torch.no_grad():
        return model(torch.randn(2, 3, 64, 64))


def wake(model: nn.Module) -> None:
    """Give the plugs weights with which they change the output."""
    for parameter in tp.plug_parameters(model):
        nn.init.normal_(parameter, std=0.3)


@pytest.mark.parametrize(
    ("key", "make"), CASES, ids=lambda value: getattr(value, "__name__", value)
)
def test_a_module_at_its_own_place_lives_a_whole_life(
    key: str, make: Callable[[], nn.Module], tmp_path: Path
) -> None:
    model = build(make)
    at = "backbone_end" if make is densenet else None
    before = {name: value.clone() for name, value in model.state_dict().items()}
    classes = [type(module) for module in model.modules()]
    wanted = run(model)
    report = tp.plug(model, key, at, example=EXAMPLE)
    assert report.max_difference == 0
    assert torch.equal(run(model.eval()), wanted)
    assert tp.check(model, EXAMPLE).ok

    wake(model)
    changed = run(model)
    assert not torch.equal(changed, wanted)
    assert torch.equal(run(copy.deepcopy(model)), changed)
    with tp.disabled(model):
        assert torch.equal(run(model), wanted)
    assert key in tp.draw(model)

    path = tp.save(model, tmp_path / "plugs.safetensors")
    fresh = build(make)
    tp.load(fresh, path, example=EXAMPLE)
    assert torch.equal(run(fresh.eval()), changed)
    assert tp.check(fresh, EXAMPLE).planned == len(report.paths)

    for plugged in (model, fresh):
        tp.unplug(plugged)
        state = plugged.state_dict()
        assert state.keys() == before.keys()
        assert all(torch.equal(value, before[name]) for name, value in state.items())
        assert [type(module) for module in plugged.modules()] == classes
        assert torch.equal(run(plugged.eval()), wanted)


@pytest.mark.parametrize("start", ["identity", "paper"])
def test_a_plugged_model_shows_the_same_places_for_the_next_plug(start: str) -> None:
    model = build(resnet)
    bare = tp.sites(model, EXAMPLE)
    tp.plug(model, "dwconv", "layer?.*.conv2", example=EXAMPLE, start=start)
    tp.plug(model, "acnet", "layer?.*.conv1", example=EXAMPLE)
    tp.plug(model, "cbam", "stage", example=EXAMPLE)
    plugged = tp.sites(model, EXAMPLE)
    for role in ("bottleneck", "block", "stage", "backbone_end", "conv3x3"):
        paths = [[site.path for site in found.with_role(role)] for found in (bare, plugged)]
        assert paths[0] == paths[1], role
    assert len(tp.plug(model, "se", example=EXAMPLE).paths) == 8
