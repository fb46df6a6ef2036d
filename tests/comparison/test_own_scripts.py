"""Real training scripts as trials: ultralytics on scenes of digits, timm on a folder of digits."""

import importlib.util
import json
import shutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import matplotlib
import pytest
import torch

import torchplug as tp
from torchplug.comparison.command import run_command_trial
from torchplug.comparison.controls import find_controls
from torchplug.comparison.spec import Comparison, Control, Variant

EXAMPLES = Path(__file__).parents[2] / "examples"


def load_example(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let ultralytics find a font, for it would download one; keep it from the network."""
    config = tmp_path / "config"
    font = Path(matplotlib.get_data_path(), "fonts/ttf/DejaVuSans.ttf")
    for folder in (config, config / "Ultralytics"):
        folder.mkdir(exist_ok=True)
        shutil.copy(font, folder / "Arial.ttf")
    monkeypatch.setenv("YOLO_CONFIG_DIR", str(config))
    monkeypatch.setenv("YOLO_OFFLINE", "1")
    monkeypatch.setenv("PYTHONPATH", str(EXAMPLES.parent / "src"))


def run_script(
    folder: Path,
    arm: int,
    script: Path,
    words: str,
    metric: str,
    control: Control | None = None,
) -> dict[str, Any]:
    comparison = Comparison(
        model="command",
        data="command",
        variants=(Variant.parse("se@block"),),
        seeds=(0, 1),
        command=f"{{python}} {script} --seed {{seed}} --plan {{plan}} --out {{out}} {words}",
        metric=metric.rpartition(":")[2],
        metric_file=metric,
    )
    study: Any = SimpleNamespace(comparison=comparison, data=None)
    variant = comparison.arms[arm]
    if control is not None:
        (found,) = find_controls(study, [variant], [control])
        assert found.arm is not None
        variant = found.arm
    return run_command_trial(study, variant, 0, folder).record


@pytest.mark.usefixtures("offline")
def test_ultralytics_trains_what_is_plugged(tmp_path: Path) -> None:
    data = load_example("digits_on_disk").write_yolo(tmp_path / "digits", most=16)
    metric = "{out}/run/results.csv:metrics/mAP50(B)"
    words = f"--data {data} --batch 8"
    record = run_script(tmp_path / "t", 1, EXAMPLES / "ultralytics_train.py", words, metric)
    assert record["status"] == "finished", record["error"]
    assert 0 <= record["value"] <= 1
    assert record["parameters"]["gates"] == 8
    receipt = json.loads((tmp_path / "t" / "plan.applied.json").read_text())
    assert receipt["trained"] is True
    saved = (
        torch.load(tmp_path / "t/out/run/weights/last.pt", weights_only=False)["ema"]
        or (torch.load(tmp_path / "t/out/run/weights/last.pt", weights_only=False)["model"])
    )
    plugs = tp.find_plugs(saved)
    assert [path for path, _, _ in plugs] == [p["path"] for p in receipt["plan"]["plugs"]]
    assert any(bool(plug.gain.detach().abs().max() > 0) for _, _, plug in plugs)


@pytest.mark.usefixtures("offline")
def test_ultralytics_trains_what_is_widened(tmp_path: Path) -> None:
    data = load_example("digits_on_disk").write_yolo(tmp_path / "digits", most=16)
    metric = "{out}/run/results.csv:metrics/mAP50(B)"
    script, words = EXAMPLES / "ultralytics_train.py", f"--data {data} --batch 8"
    record = run_script(tmp_path / "t", 1, script, words, metric, "parameters")
    assert record["status"] == "finished", record["error"]
    receipt = json.loads((tmp_path / "t" / "plan.applied.json").read_text())
    assert receipt["trained"] is True
    assert receipt["parameters"]["modules"] == 0
    saved = torch.load(tmp_path / "t/out/run/weights/last.pt", weights_only=False)
    network = saved["ema"] or saved["model"]
    for name, width in receipt["details"]["widths"].items():
        assert network.get_submodule(name).out_channels == width


REBUILT = """
import sys
from ultralytics import YOLO
from ultralytics.models.yolo.detect import DetectionTrainer
import torchplug
yolo = YOLO("yolov8n.yaml")
torchplug.plug(yolo.model, "se", "block", example=(1, 3, 64, 64))
settings = {"model": "yolov8n.yaml", "data": sys.argv[1], "device": "cpu", "amp": False}
trainer = DetectionTrainer(overrides={**settings, "project": sys.argv[2], "plots": False})
trainer.setup_model()  # what train() begins with
print("plugs:", len(torchplug.find_plugs(yolo.model)), len(torchplug.find_plugs(trainer.model)))
"""


@pytest.mark.usefixtures("offline")
def test_ultralytics_builds_plugs_away_that_come_too_early(tmp_path: Path) -> None:
    data = load_example("digits_on_disk").write_yolo(tmp_path / "digits", most=8)
    words = [sys.executable, "-c", REBUILT, str(data), str(tmp_path)]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert "plugs: 8 0" in done.stdout, done.stderr


@pytest.mark.usefixtures("offline")
def test_timm_starts_both_arms_from_equal_weights(tmp_path: Path) -> None:
    folder = load_example("digits_on_disk").write_folders(tmp_path / "digits", most=128)
    script, words = EXAMPLES / "timm_train.py", f"--data {folder} --model resnet10t --size 16"
    records = [
        run_script(tmp_path / name, arm, script, words, "{out}/metrics.json:top1")
        for arm, name in enumerate(("baseline", "plugged"))
    ]
    for record in records:
        assert record["status"] == "finished", record["error"]
        assert 0 <= record["value"] <= 100
    assert records[0]["base_weights"] == records[1]["base_weights"]
    assert records[0]["parameters"]["base"] == records[1]["parameters"]["base"]
    assert records[1]["parameters"]["modules"] > records[0]["parameters"]["modules"] == 0
    assert "top1=" in (tmp_path / "plugged" / "logs" / "stdout.txt").read_text()
