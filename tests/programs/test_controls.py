"""Controls that a script makes of its own model, as its plan says."""

import atexit
import copy
import json
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import torchplug as tp
from torchplug.analysis import count_parameters
from torchplug.controls import cut_plugs
from torchplug.errors import PlugError, UsageError
from torchplug.hosts import build_model
from torchplug.programs import ProgramControl, RequestPlan, receipt_path
from torchplug.surgery.request import Request

EXAMPLE = (1, 3, 16, 16)


def write_plan(
    path: Path, *texts: str, control: ProgramControl | None = None, seed: int = 5
) -> Path:
    requests = tuple(map(Request.parse, texts))
    plan = RequestPlan(requests=requests, seed=seed, receipt=True, control=control)
    path.write_text(plan.to_json())
    return path


def make_resnet(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return build_model("torchplug:resnet8")


def apply(
    path: Path, *texts: str, model: nn.Module | None = None, **more: Any
) -> tuple[nn.Module, dict[str, Any], tp.PlugReport]:
    model = make_resnet() if model is None else model
    plan = write_plan(path / "plan.json", *texts, **more)
    report = tp.apply_plan(model, plan, EXAMPLE)
    return model, json.loads(receipt_path(plan).read_text()), report


def test_a_placebo_has_the_plugs_and_their_information_is_cut(tmp_path: Path) -> None:
    model, receipt, report = apply(
        tmp_path, "se:reduction=4", "gc@stage:reduction=4", control="placebo"
    )
    other = make_resnet()
    for name, at in (("se", None), ("gc", "stage")):
        tp.plug(other, name, at, example=EXAMPLE, seed=5, reduction=4)
    told = cut_plugs(other)
    assert [type(m) for m in model.modules()] == [type(m) for m in other.modules()]
    ours, theirs = model.state_dict(), other.state_dict()
    assert list(ours) == list(theirs)
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    wanted = "; ".join(f"{name}: {what}" for name, what in told.items())
    assert receipt["details"] == {"told": wanted}
    assert "gate is computed from ones" in wanted
    assert wanted in report.notes
    assert receipt["parameters"]["modules"] == report.module_parameters > 0
    assert receipt["control"] == "placebo"


def test_a_widened_base_has_the_parameters_and_starts_as_the_base_does(tmp_path: Path) -> None:
    base, plain, _ = apply(tmp_path)
    plugged, _, _ = apply(tmp_path, "se", "cbam@stage")
    model, receipt, report = apply(tmp_path, "se", "cbam@stage", control="parameters")
    wanted, got = count_parameters(plugged), count_parameters(model)
    assert abs(got / wanted - 1) < 0.005
    assert tp.find_plugs(model) == []
    weights = model.state_dict()
    for name, tensor in base.state_dict().items():
        assert torch.equal(weights[name][tuple(map(slice, tensor.shape))], tensor), name
    x = torch.randn(2, 3, 16, 16)
    with torch.no_grad():
        assert torch.allclose(model.eval()(x), base.eval()(x), atol=1e-6)
    details = receipt["details"]
    assert (details["parameters"], details["target"]) == (got, wanted)
    for name, width in details["widths"].items():
        assert model.get_submodule(name).out_channels == width
    assert details["told"].startswith(f"{got:,} parameters")
    assert receipt["parameters"] == {"base": got, "modules": 0, "gates": 0}
    assert receipt["flops"][1] > receipt["flops"][0] > 0
    assert receipt["base_weights"] == plain["base_weights"]  # before it was widened
    assert details["told"] in report.notes


def test_the_same_plan_widens_the_same_and_another_seed_draws_others(tmp_path: Path) -> None:
    first, again, other = (
        apply(tmp_path, "se", control="parameters", seed=seed)[0].state_dict() for seed in (5, 5, 6)
    )
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert [v.shape for v in first.values()] == [v.shape for v in other.values()]
    assert not all(torch.equal(first[name], other[name]) for name in first)


class Drawing(nn.Module):
    """Draws from every global generator when it runs, as an augmentation inside a model may."""

    def __init__(self) -> None:
        super().__init__()
        self.body = build_model("torchplug:resnet8")

    def forward(self, x: Tensor) -> Tensor:
        noise = random.random() + float(np.random.rand()) + torch.rand(1)
        return self.body(x + 0 * noise)


@pytest.mark.parametrize("control", [None, "placebo", "parameters"])
def test_no_global_generator_moves(control: ProgramControl | None, tmp_path: Path) -> None:
    def draw() -> tuple[float, float, float]:
        return random.random(), float(np.random.rand()), float(torch.rand(1))

    model = Drawing()
    plan = write_plan(tmp_path / "plan.json", "se@block", control=control)
    for seed in (random.seed, np.random.seed, torch.manual_seed):
        seed(3)
    expected = draw()
    for seed in (random.seed, np.random.seed, torch.manual_seed):
        seed(3)
    tp.apply_plan(model, plan, EXAMPLE)
    assert draw() == expected


class Normed(nn.Module):
    """Every channel meets every other in a norm: nothing can grow."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm, self.end = nn.Conv2d(3, 16, 3), nn.GroupNorm(1, 16), nn.Linear(16, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.end(self.norm(self.conv(x)).mean((2, 3)))


@pytest.mark.parametrize(
    ("model", "texts", "control", "error", "says"),
    [
        (make_resnet, ("se", "acnet"), "placebo", PlugError, "through which the map itself passes"),
        (Normed, ("se@conv",), "parameters", UsageError, "group_norm takes them together"),
        (make_resnet, ("se@layer9",), "placebo", PlugError, "layer9"),
        (make_resnet, ("se@layer9",), None, PlugError, "layer9"),
    ],
)
def test_what_cannot_be_done_leaves_the_model_and_says_why(
    model: Any, texts: tuple[str, ...], control: Any, error: Any, says: str, tmp_path: Path
) -> None:
    made = model()
    before = copy.deepcopy(made.state_dict())
    plan = write_plan(tmp_path / "plan.json", *texts, control=control)
    with pytest.raises(error, match=says) as raised:
        tp.apply_plan(made, plan, EXAMPLE)
    after = made.state_dict()
    assert list(before) == list(after)
    assert all(torch.equal(before[name], after[name]) for name in before)
    receipt = json.loads(receipt_path(plan).read_text())
    assert receipt == {"seed": 5, "control": control, "refused": str(raised.value)}


@pytest.mark.parametrize("control", ["placebo", "parameters"])
def test_at_the_end_a_control_says_whether_it_was_trained(
    control: ProgramControl, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    at_end: list[Any] = []
    monkeypatch.setattr(atexit, "register", lambda *call: at_end.append(call))
    model, _, _ = apply(tmp_path, "se", control=control)
    ((note, *arguments),) = at_end
    note(*arguments)
    applied = tmp_path / "plan.applied.json"
    assert json.loads(applied.read_text())["trained"] is False
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    model(torch.randn(2, 3, 16, 16)).square().sum().backward()
    optimizer.step()
    note(*arguments)
    assert json.loads(applied.read_text())["trained"] is True


def test_a_plan_of_a_control_is_data(tmp_path: Path) -> None:
    plan = RequestPlan(requests=(Request.parse("se"),), seed=1, control="placebo")
    assert RequestPlan.from_json(plan.to_json()) == plan
    text = plan.to_json().replace('"placebo"', '"latency"')
    with pytest.raises(UsageError, match=r"control of the plan must be null or one of parameters"):
        RequestPlan.from_json(text)
    with pytest.raises(UsageError, match="a control belongs to plugs"):
        RequestPlan(requests=(), seed=1, control="placebo")


BARE = """
import sys
packages = "numpy scipy sklearn statsmodels pandas matplotlib lightning torchmetrics rich typer"
sys.modules.update(dict.fromkeys(packages.split()))  # importing one of them raises
import torchplug as tp
from torchplug.hosts import build_model
for plan in sys.argv[1:]:
    tp.apply_plan(build_model("torchplug:resnet8"), plan, (1, 3, 16, 16))
assert "torchplug.comparison" not in sys.modules
"""


def test_torch_alone_is_enough_for_a_script(tmp_path: Path) -> None:
    plans = [
        str(write_plan(tmp_path / f"{control}.json", "se", control=control))
        for control in (None, "placebo", "parameters")
    ]
    words = [sys.executable, "-c", BARE, *plans]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
