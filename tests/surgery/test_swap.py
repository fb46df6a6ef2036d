"""One attention in the place of another: what users call a swap."""

from pathlib import Path
from typing import Any

import pytest
import timm
import torch
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
