"""Modules of a script's own: the plan names them, the script hands them in."""

import hashlib
import importlib.util
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

import torchplug as tp
from torchplug.errors import UsageError
from torchplug.hosts import build_model, locate_source
from torchplug.programs import ProgramControl, RequestPlan
from torchplug.surgery.request import Request

EXAMPLE = (1, 3, 16, 16)
OWN = """
import torch
from torch import nn

class Scale(nn.Module):
    def __init__(self, channels, *, value=1.0):
        super().__init__()
        self.scale = nn.Parameter(torch.full((1, channels, 1, 1), value))

    def forward(self, x):
        return x * self.scale
"""


@pytest.fixture
def own_file(tmp_path: Path) -> Path:
    path = tmp_path / "own.py"
    path.write_text(OWN)
    return path


def load(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def make_plan(path: Path, control: ProgramControl | None = None) -> RequestPlan:
    name = f"{path}:Scale"
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    request = Request.parse(f"{name}@stage:value=2.0")
    return RequestPlan(requests=(request,), seed=1, control=control, sources={name: digest})


@pytest.mark.parametrize("control", [None, "placebo", "parameters"])
def test_a_class_that_is_handed_in_is_plugged_and_controlled(
    control: ProgramControl | None, own_file: Path
) -> None:
    own = load(own_file)
    model = build_model("torchplug:resnet8")
    plan = RequestPlan.from_json(make_plan(own_file, control).to_json())
    report = tp.apply_plan(model, plan, EXAMPLE, modules={"Scale": own.Scale})
    scales = [module for module in model.modules() if isinstance(module, own.Scale)]
    assert len(scales) == len(report.paths) == (0 if control == "parameters" else 3)
    assert all(float(scale.scale.detach().mean()) == 2 for scale in scales)
    assert {type(scale) is own.Scale for scale in scales} <= {control is None}


@pytest.mark.parametrize(
    ("modules", "says"),
    [
        (None, r"a script hands in its own modules.*own\.py:Scale; pass apply_plan\(…, modules="),
        ({"Scales": object}, r"did you mean 'Scales'\? pass apply_plan"),
    ],
)
def test_nothing_that_a_plan_names_is_imported(
    modules: Any, says: str, own_file: Path, tmp_path: Path
) -> None:
    own_file.write_text(OWN + f"\nopen({str(tmp_path / 'ran')!r}, 'w')\n")
    host = build_model("torchplug:resnet8")
    with pytest.raises(UsageError, match=says):
        tp.apply_plan(host, make_plan(own_file), EXAMPLE, modules=modules)
    assert not (tmp_path / "ran").exists()


def test_a_class_of_another_source_is_not_taken_for_it(own_file: Path, tmp_path: Path) -> None:
    plan = make_plan(own_file)
    copied = tmp_path / "elsewhere" / "own.py"
    copied.parent.mkdir()
    copied.write_text(OWN)
    modules = {"Scale": load(copied).Scale}  # the same content elsewhere is the same source
    tp.apply_plan(build_model("torchplug:resnet8"), plan, EXAMPLE, modules=modules)
    copied.write_text(OWN.replace("x * self", "x + self"))
    modules = {"Scale": load(copied).Scale}
    with pytest.raises(UsageError, match=r"is the one that the comparison names: got .*elsewhere"):
        tp.apply_plan(build_model("torchplug:resnet8"), plan, EXAMPLE, modules=modules)


def test_a_source_is_found_without_importing_it(
    own_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own_file.write_text(
        "import package_that_is_not_there\nraise SystemExit\n"
        "from elsewhere import Other as Own\nScale = Own\nclass Late: ...\n"
    )
    for name in ("Scale", "Own", "Late"):
        assert locate_source(f"{own_file}:{name}") == own_file
    monkeypatch.chdir(tmp_path)
    found = locate_source("own:Scale")
    assert found is not None
    assert found.samefile(own_file)
    assert locate_source("package_that_is_not_there.part:Scale") is None
    assert locate_source("torch.nn:Conv2d") is not None


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("none.py:Scale", "", r"a model file must exist: got 'none\.py'"),
        ("own.py:Scaled", OWN, r"must define the maker: got 'Scaled'; did you mean 'Scale'"),
        ("own.py:Scale", "class Scale(", "must be Python"),
    ],
)
def test_a_source_that_cannot_be_meant_is_named(
    name: str, content: str, says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "own.py").write_text(content)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UsageError, match=says):
        locate_source(name)
