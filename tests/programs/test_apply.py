"""Plans of requests, as the driver hands them to a training script."""

import atexit
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import torchplug as tp
from torchplug.errors import PlugError, UsageError
from torchplug.hosts import build_model
from torchplug.programs.apply import guess_example
from torchplug.programs.request_plan import RequestPlan
from torchplug.surgery.request import Request

EXAMPLE = (1, 3, 32, 32)


def write_plan(path: Path, *texts: str, seed: int = 5) -> Path:
    plan = RequestPlan(requests=tuple(Request.parse(text) for text in texts), seed=seed)
    path.write_text(plan.to_json())
    return path


def test_an_empty_plan_leaves_the_model_and_the_generator_alone(tmp_path: Path) -> None:
    model = build_model("torchplug:resnet8")
    before = {name: value.clone() for name, value in model.state_dict().items()}
    torch.manual_seed(0)
    report = tp.apply_plan(model, write_plan(tmp_path / "plan.json"))
    drawn = torch.rand(3)
    torch.manual_seed(0)
    assert torch.equal(drawn, torch.rand(3))
    assert report.paths == ()
    assert report.module_parameters == 0
    assert "plugged nothing into ResNet8" in str(report)
    after = model.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_several_requests_equal_one_plug_after_the_other(tmp_path: Path) -> None:
    texts = ("se:reduction=4", "cbam@stage")
    model, other = build_model("torchplug:resnet8"), build_model("torchplug:resnet8")
    other.load_state_dict(model.state_dict())
    generator = torch.get_rng_state()
    report = tp.apply_plan(model, write_plan(tmp_path / "plan.json", *texts))
    assert torch.equal(generator, torch.get_rng_state())
    first = tp.plug(other, "se", example=EXAMPLE, seed=5, reduction=4)
    second = tp.plug(other, "cbam", "stage", example=EXAMPLE, seed=5)
    ours, theirs = model.state_dict(), other.state_dict()
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    assert report.paths == first.paths + second.paths
    assert report.module_parameters == first.module_parameters + second.module_parameters
    assert report.gate_parameters == first.gate_parameters + second.gate_parameters
    assert report.max_difference == 0


def test_a_request_that_fails_takes_the_earlier_ones_back(tmp_path: Path) -> None:
    model = build_model("torchplug:resnet8")
    names = list(model.state_dict())
    with pytest.raises(PlugError, match="layer9"):
        tp.apply_plan(model, write_plan(tmp_path / "plan.json", "se", "gc@layer9"), EXAMPLE)
    assert list(model.state_dict()) == names


def test_the_difference_is_that_of_all_plugs_together(tmp_path: Path) -> None:
    plan = RequestPlan(
        requests=(Request(module="se", start="paper"), Request(module="cbam", at="stage")), seed=1
    )
    model = build_model("torchplug:resnet8").eval()
    x = torch.randn(EXAMPLE, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        before = model(x)
        report = tp.apply_plan(model, plan, EXAMPLE)
        difference = (model(x) - before).abs().max()
    assert report.max_difference == pytest.approx(float(difference), rel=1e-6)
    assert report.max_difference > 0


class Fixed(nn.Module):
    """Takes images of one size only, of five channels."""

    def __init__(self, side: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(5, 8, 3, padding=1)
        self.head = nn.Linear(8 * side * side, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.conv(x).flatten(1))


def test_an_example_is_found_where_a_usual_image_fits() -> None:
    assert guess_example(Fixed(48)) == (1, 5, 48, 48)
    assert guess_example(build_model("timm:vit_tiny_patch16_384")) == (1, 3, 384, 384)
    for model in (Fixed(17), nn.Linear(3, 2)):
        with pytest.raises(UsageError, match="pass example="):
            guess_example(model)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ('{"format": 2, "requests": [], "seed": 0}', "only format 1"),
        ('{"format": 1, "requests": {}, "seed": 0}', "requests is a list"),
        ('{"format": 1, "requests": ["se"], "seed": 0}', "not an object"),
        ('{"format": 1, "requests": [{"module": 3}], "seed": 0}', "module of a request"),
        ('{"format": 1, "requests": [{"module": "se", "stages": "1"}], "seed": 0}', "stages of"),
        ('{"format": 1, "requests": [{"module": "se", "where": "1"}], "seed": 0}', "where"),
        ('{"format": 1, "requests": [{"at": "stage"}], "seed": 0}', "module"),
        ('{"format": 1, "requests": [], "seed": "x"}', "seed of the plan"),
    ],
)
def test_a_broken_plan_is_named(text: str, says: str, tmp_path: Path) -> None:
    (tmp_path / "plan.json").write_text(text)
    with pytest.raises(UsageError, match=says):
        tp.apply_plan(build_model("torchplug:resnet8"), tmp_path / "plan.json", EXAMPLE)


def test_a_receipt_says_what_was_applied_to_what(tmp_path: Path) -> None:
    base = build_model("torchplug:resnet8")
    receipts = []
    for name, texts in (("baseline", ()), ("plugged", ("se",))):
        model = build_model("torchplug:resnet8")
        model.load_state_dict(base.state_dict())
        plan = RequestPlan(
            requests=tuple(map(Request.parse, texts)),
            seed=1,
            receipt=True,
        )
        (tmp_path / f"{name}.json").write_text(plan.to_json())
        report = tp.apply_plan(model, tmp_path / f"{name}.json", EXAMPLE)
        receipts.append(json.loads((tmp_path / f"{name}.applied.json").read_text()))
        assert receipts[-1]["parameters"]["modules"] == report.module_parameters
    assert receipts[0]["base_weights"] == receipts[1]["base_weights"]
    assert len(receipts[1]["plan"]["plugs"]) == 3
    tp.apply_plan(build_model("torchplug:resnet8"), plan, EXAMPLE)  # no file, no receipt
    other = build_model("torchplug:resnet8")
    tp.apply_plan(other, tmp_path / "plugged.json", EXAMPLE)
    again = json.loads((tmp_path / "plugged.applied.json").read_text())
    assert again["base_weights"] != receipts[1]["base_weights"]
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "baseline.applied.json",
        "baseline.json",
        "plugged.applied.json",
        "plugged.json",
    ]


def test_at_the_end_the_receipt_says_whether_the_plugs_were_trained(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    at_end: list[Any] = []
    monkeypatch.setattr(atexit, "register", lambda *call: at_end.append(call))
    plan = RequestPlan(requests=(Request.parse("se"),), seed=1, receipt=True)
    (tmp_path / "plan.json").write_text(plan.to_json())
    model = build_model("torchplug:resnet8")
    tp.apply_plan(model, tmp_path / "plan.json", EXAMPLE)
    applied = tmp_path / "plan.applied.json"
    assert "trained" not in json.loads(applied.read_text())
    ((note, *arguments),) = at_end
    note(*arguments)
    assert json.loads(applied.read_text())["trained"] is False
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    model(torch.randn(2, 3, 32, 32)).sum().backward()
    optimizer.step()
    note(*arguments)
    assert json.loads(applied.read_text())["trained"] is True
    applied.unlink()
    note(*arguments)  # its folder may be gone: the process ends quietly
    plan = RequestPlan(requests=(), seed=1, receipt=True)
    (tmp_path / "plan.json").write_text(plan.to_json())
    tp.apply_plan(build_model("torchplug:resnet8"), tmp_path / "plan.json")
    assert len(at_end) == 1
