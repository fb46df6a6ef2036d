"""Plugs in hosts that keep their channels last, as Swin does."""

from pathlib import Path

import pytest
import torch
import torchvision
from torch import Tensor, nn

import torchplug as tp

EXAMPLE = (1, 3, 224, 224)
STAGES = ["features.1", "features.3"]


def swin() -> nn.Module:
    torch.manual_seed(0)
    return torchvision.models.swin_t().eval()


def draw() -> Tensor:
    return torch.randn(1, 3, 224, 224, generator=torch.Generator().manual_seed(1))


def test_a_channels_last_host_takes_plugs_and_is_itself_again() -> None:
    model = swin()
    keys = list(model.state_dict())
    with torch.no_grad():
        expected = model(draw())
        for role in tp.sites(model, EXAMPLE).roles:
            report = tp.plug(model, "se", role, example=EXAMPLE)
            assert report.max_difference == 0
            assert torch.equal(model(draw()), expected)
            assert report.gate_parameters == len(report.paths)
            tp.unplug(model)
        assert torch.equal(model(draw()), expected)
    assert list(model.state_dict()) == keys


@pytest.mark.parametrize("key", ["se", "scse", "cbam"])
def test_a_module_works_on_the_channels_and_not_on_the_width(key: str) -> None:
    """The plugged stage must give what the module makes of the map with its axes in order."""
    model = swin()
    with torch.no_grad():
        before = model.features[0:2](draw())  # the first stage, (N, H, W, C)
        tp.plug(model, key, "features.1", example=EXAMPLE, start="paper")
        ((_, _, plug),) = tp.find_plugs(model)
        after = model.features[0:2](draw())
    module = next(m for m in plug.modules() if isinstance(m, tp.get_card(key).factory))
    assert module.channels == before.shape[-1] == 96
    with torch.no_grad():
        expected = torch.stack([module(x.movedim(-1, 0)[None])[0].movedim(0, -1) for x in before])
    torch.testing.assert_close(after, expected)
    assert not torch.allclose(after, before)


def test_a_factory_sees_the_usual_layout_and_every_plug_learns() -> None:
    model, shapes = swin(), []

    def make(site: tp.surgery.Site) -> nn.Module:
        shapes.append((site.layout, site.shape))
        return nn.Conv2d(site.channels, site.channels, 3, padding=1)

    tp.plug(model, make, STAGES, example=EXAMPLE, name="mix")
    assert shapes[0] == ("NCHW", (1, 96, 56, 56))
    assert tp.check(model, EXAMPLE).ok
    model(draw()).square().sum().backward()
    gains = [p for name, p in tp.named_plug_parameters(model) if name.endswith("gain")]
    assert len(gains) == len(STAGES)
    assert all(gain.grad is not None and gain.grad.abs().sum() > 0 for gain in gains)


def test_a_file_of_such_plugs_loads_without_a_run(tmp_path: Path) -> None:
    model, fresh = swin(), swin()
    report = tp.plug(model, "se", STAGES, example=EXAMPLE)
    for parameter in tp.plug_parameters(model):
        nn.init.normal_(parameter, std=0.3)
    assert {planned.layout for planned in report.plan.plugs} == {"NHWC"}
    assert tp.Plan.from_json(report.plan.to_json()) == report.plan
    tp.save(model, tmp_path / "x.safetensors")
    assert tp.load(fresh, tmp_path / "x.safetensors").max_difference is None
    with torch.no_grad():
        assert torch.equal(model(draw()), fresh(draw()))


def test_what_cannot_stand_in_the_place_of_such_a_block_says_so() -> None:
    with pytest.raises(tp.PlugError, match="in the place of a module works on maps"):
        tp.plug(swin(), "blazeblock", "features.1.0", example=EXAMPLE)
