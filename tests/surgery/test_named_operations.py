"""Operations that a user names as places: ``layer4.0!relu#1``."""

from pathlib import Path
from typing import Any

import pytest
import torch
import torchvision
from torch import Tensor, nn
from torchvision.models.resnet import Bottleneck

import torchplug as tp

EXAMPLE = (2, 3, 33, 33)


class Scale(nn.Module):
    """Multiplies each channel by two: a plug whose effect can be computed by hand."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.full((channels, 1, 1), 2.0))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.scale


def resnet() -> nn.Module:
    torch.manual_seed(0)
    model = torchvision.models.ResNet(Bottleneck, [1, 1, 1, 2], num_classes=5).eval()
    for norm in model.modules():
        if isinstance(norm, nn.BatchNorm2d):
            nn.init.uniform_(norm.bias, 0.1, 0.5)
    return model


def run_block(block: Any, x: Tensor, **scales: float) -> Tensor:
    """A bottleneck by hand, with some of its maps multiplied."""
    y = block.relu(block.bn1(block.conv1(x * scales.get("before", 1))))
    y = block.relu(block.bn2(block.conv2(y))) * scales.get("middle", 1)
    y = block.bn3(block.conv3(y))
    shortcut = x if block.downsample is None else block.downsample(x)
    return block.relu(y + shortcut * scales.get("shortcut", 1))


PLACES = {
    "layer4.?!relu#1": "middle",  # Strip Pooling, after the second call of the one ReLU
    "layer4.?!conv2d#0.0": "before",  # SE-PRE: the branch alone receives it
    "layer4.?!add#0.1": "shortcut",  # SE-Identity
    "layer4.?!iadd#0.1": "shortcut",  # the name that a trace of `+=` shows
}


@pytest.mark.parametrize("at", PLACES)
def test_a_named_operation_carries_the_plug(at: str, tmp_path: Path) -> None:
    model, x = resnet(), torch.randn(EXAMPLE)
    maps: dict[str, Tensor] = {}
    model.layer3.register_forward_hook(lambda *a: maps.update(into=a[2]))
    model.layer4.register_forward_hook(lambda *a: maps.update(out=a[2]))
    report = tp.plug(model, Scale, at, example=EXAMPLE, start="paper")
    anchors = [at.replace("?", str(block)).replace("iadd", "add") for block in (0, 1)]
    assert list(report.paths) == anchors == [path for path, _, _ in tp.find_plugs(model)]
    assert report.plan.plugs[1].stage == 4
    model(x)
    wanted = maps["into"]
    for block in resnet().layer4:
        wanted = run_block(block, wanted, **{PLACES[at]: 2})
    torch.testing.assert_close(maps["out"], wanted)

    loaded = resnet()
    factories = {report.plan.plugs[0].module: Scale}
    tp.load(loaded, tp.save(model, tmp_path / "x"), factories=factories)
    assert torch.equal(loaded(x), model(x))
    assert tp.unplug(model) == 2
    assert torch.equal(model(x), resnet()(x))


def test_strip_pooling_goes_where_its_authors_have_it() -> None:
    model, x = torchvision.models.resnet50().eval(), torch.randn(EXAMPLE)
    before = model(x)
    at = ["layer1.2!relu#1", "layer2.3!relu#1", "layer3.5!relu#1", "layer4.*!relu#1"]
    report = tp.plug(model, "strippool", at, example=EXAMPLE)
    assert len(report.paths) == 6
    assert [plug.channels for plug in report.plan.plugs] == [64, 128, 256, 512, 512, 512]
    assert torch.equal(model(x), before)
    plan = tp.Plan.from_json(report.plan.to_json())
    assert tp.plug(torchvision.models.resnet50(), plan, example=EXAMPLE).paths == report.paths


MISSPELT = {
    "layer4.0!relu#3": r"of 'layer4.0' .* got 'layer4.0!relu#3'; name one of !conv2d#0…3, "
    r"!batch_norm#0…3, !relu#0…2, !add#0$",
    "layer4.0!rleu#1": r"name one of !conv2d#0…3, !batch_norm#0…3, !relu#0…2, !add#0$",
    "layer4.0!conv2d#0.1": r"name one of !conv2d#0, !conv2d#0\.0$",
    "layer4.0.relu!relu#0": r"'layer4\.0\.relu', which runs 3 times; .* the module around it",
    "layr4.0!relu#0": r"got 'layr4\.0!relu#0'; did you mean 'layer4\.0'",
    "layer9.*!relu#0": r"got 'layer9\.\*!relu#0'; did you mean",
    "layer4.0!relu": r"got 'layer4\.0!relu', which matches none; count from 0",
    "!relu#99": r"of the model .* got '!relu#99'",
}


@pytest.mark.parametrize("at", MISSPELT)
def test_a_misspelt_operation_names_those_of_its_module(at: str) -> None:
    model = resnet()
    with pytest.raises(tp.PlugError, match=MISSPELT[at]):
        tp.plug(model, "se", at, example=EXAMPLE)
    assert not tp.find_plugs(model)


def test_no_module_stands_in_the_place_of_an_operation() -> None:
    with pytest.raises(tp.PlugError, match=r"another module: got the operation layer4\.0!relu#1;"):
        tp.plug(resnet(), "se", "layer4.0!relu#1", example=EXAMPLE, mode="replace")
