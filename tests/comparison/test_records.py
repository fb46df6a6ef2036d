"""A record is used only for what it is a record of, and says what it was made with."""

import functools
import json
import random
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

import torchplug as tp
from tests.comparison.conftest import find_trial, run_quickly
from torchplug.comparison import Recipe, Variant, load_run
from torchplug.comparison.data import load_data
from torchplug.comparison.seeds import deterministic
from torchplug.comparison.statistics import equivalence_test
from torchplug.hosts import build_model
from torchplug.surgery.request import Request

ONE = Recipe(epochs=1, batch_size=256, augment="none")
MAKER = """
from torch import nn
from torchplug.hosts import build_model
from torchplug.surgery.request import Request
def make(num_classes, in_channels):
    model = build_model("torchplug:resnet8", num_classes=num_classes, in_channels=in_channels)
    {change}
    return model
"""


def small() -> nn.Module:
    return build_model("torchplug:resnet8", in_channels=1)


def test_a_model_file_that_was_changed_is_another_model(tmp_path: Path) -> None:
    file = tmp_path / "net.py"
    file.write_text(MAKER.format(change="pass"))
    run_quickly(tmp_path / "run", model=f"{file}:make", plugs=["se"], recipe=ONE)
    file.write_text(MAKER.format(change="model.relu = nn.SiLU()"))
    with pytest.raises(tp.UsageError, match="model_digest"):
        run_quickly(tmp_path / "run", model=f"{file}:make", plugs=["se"], recipe=ONE)


def test_another_function_of_the_same_name_is_another_model(tmp_path: Path) -> None:
    class Other(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer3 = nn.Conv2d(1, 16, 3)
            self.fc = nn.Linear(16, 10)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.fc(self.layer3(x).mean((2, 3)))

    makers = [lambda make=make: make() for make in (small, Other)]  # one name, one line
    run_quickly(tmp_path / "run", model=makers[0], plugs=["se@layer3"], recipe=ONE)
    with pytest.raises(tp.UsageError, match="model_digest"):
        run_quickly(tmp_path / "run", model=makers[1], plugs=["se@layer3"], recipe=ONE)


def test_one_model_for_all_trials_is_refused(tmp_path: Path) -> None:
    model = small()
    with pytest.raises(tp.UsageError, match="makes a new model for each trial: got one ResNet8"):
        run_quickly(tmp_path / "run", model=model)
    with pytest.raises(tp.UsageError, match="whose second model differs"):
        run_quickly(tmp_path / "run", model=lambda: model)
    assert not (tmp_path / "run").exists()


def test_a_partial_makes_models_too(tmp_path: Path) -> None:
    maker = functools.partial(build_model, "torchplug:resnet8", in_channels=1)
    result = run_quickly(tmp_path / "run", model=maker, plugs=["se"], recipe=ONE)
    assert len(result.rows) == 3


def test_variants_whose_names_look_alike_keep_their_own_files(tmp_path: Path) -> None:
    plugs = ["se@layer?", "se@layer*"]
    run_quickly(tmp_path / "run", plugs=plugs, recipe=ONE)
    assert len(list((tmp_path / "run" / "trials").iterdir())) == 8
    assert len(load_run(tmp_path / "run").result.rows) == 4


@pytest.mark.parametrize("margin", [0.0, -1.0, float("nan"), float("inf")])
def test_an_impossible_margin_is_refused(margin: float, tmp_path: Path) -> None:
    with pytest.raises(tp.UsageError, match="a margin is above 0"):
        run_quickly(tmp_path / "run", margin=margin)


def test_options_that_no_file_holds_are_refused(finished: Path) -> None:
    request = Request(module="se", options={"act_layer": nn.GELU})
    variant = Variant(name="gelu", plugs=(request,))
    with pytest.raises(tp.UsageError, match="kept as JSON"):
        run_quickly(finished, plugs=[variant])


class FailsInTraining(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = small()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.training and len(x) > 2:
            raise KeyError("only in training")
        return self.inner(x)


def test_any_exception_of_a_trial_is_its_record(tmp_path: Path) -> None:
    with pytest.raises(tp.UsageError, match="baseline failed KeyError: 'only in training'"):
        run_quickly(tmp_path / "run", model=FailsInTraining, plugs=["se@inner.layer3"])
    path = find_trial(tmp_path / "run", "se@inner.layer3", 1) / "record.json"
    assert json.loads(path.read_text())["status"] == "failed"


def test_a_damaged_record_is_run_again(finished: Path, tmp_path: Path) -> None:
    root = tmp_path / "copy"
    shutil.copytree(finished, root)
    path = find_trial(root, "se", 1) / "record.json"
    whole = path.read_text()
    path.write_text(whole.replace('"seed": 1', '"seed": 2'))
    events = []
    run_quickly(root, on_event=events.append)
    assert [event.trial for event in events if event.kind == "redo"] == ["se, seed 1"]
    assert path.read_text() == whole


def test_the_environment_of_kept_trials_is_not_forgotten(finished: Path, tmp_path: Path) -> None:
    root = tmp_path / "copy"
    shutil.copytree(finished, root)
    path = root / "environment.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "torch": "1.0"}))
    run_quickly(root)
    run_quickly(root)
    told = json.loads(path.read_text())
    assert told["torch"] == "1.0"
    change = f"torch: 1.0 -> {torch.__version__.split('+')[0]}"
    # a commit beside the run is another change; each is told once
    assert told["changed on resuming"].split("; ").count(change) == 1


def test_lost_costs_are_named(finished: Path, tmp_path: Path) -> None:
    root = tmp_path / "copy"
    shutil.copytree(finished, root)
    (root / "costs.json").unlink()
    with pytest.raises(tp.UsageError, match=r"no whole costs\.json"):
        load_run(root)


def test_every_global_generator_and_setting_is_as_before() -> None:
    drawn = []
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        for _ in range(2):
            before = (random.getstate(), np.random.get_state()[1].tolist())
            with deterministic("a test"):
                drawn.append((random.random(), np.random.rand(), torch.rand(()).item()))
            assert (random.getstate(), np.random.get_state()[1].tolist()) == before
        assert torch.is_deterministic_algorithms_warn_only_enabled()
    finally:
        torch.use_deterministic_algorithms(False)
    assert drawn[0] == drawn[1]


@pytest.mark.parametrize(("seeds", "p"), [(2, 0.25), (5, 1 / 32)])
def test_ties_prove_equivalence_only_in_many_seeds(seeds: int, p: float) -> None:
    assert equivalence_test(np.zeros(seeds), 0.2) == p
    assert equivalence_test(np.full(seeds, 0.3), 0.2) == 1.0


@pytest.mark.parametrize("text", ["import nosuchpackage", "def make(:", "1 / 0"])
def test_a_model_file_that_fails_is_named(text: str, tmp_path: Path) -> None:
    file = tmp_path / "net.py"
    file.write_text(text)
    with pytest.raises(tp.UsageError, match=r"net\.py must be importable"):
        build_model(f"{file}:make")


def test_neighbors_of_a_file_and_packages_of_the_folder_are_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "torchplug_test_widths.py").write_text("WIDTH = 3\n")
    (tmp_path / "torchplug_test_net.py").write_text(
        "from torch import nn\nfrom torchplug_test_widths import WIDTH\n"
        "def make():\n    return nn.Linear(WIDTH, 1)\n"
    )
    assert build_model(f"{tmp_path}/torchplug_test_net.py:make").in_features == 3
    monkeypatch.chdir(tmp_path)
    assert build_model("torchplug_test_net:make").in_features == 3


def test_sixteen_bit_images_keep_their_grays(tmp_path: Path) -> None:
    ramp = np.linspace(0, 65535, 16 * 16).reshape(16, 16).astype(np.uint16)
    for label in ("a", "b"):
        (tmp_path / label).mkdir()
        for i in range(10):
            Image.fromarray(ramp).save(tmp_path / label / f"{i}.png")
    images = load_data(str(tmp_path), image_size=16).train.images
    assert images[0, 0].flatten().tolist() == (ramp >> 8).flatten().tolist()
