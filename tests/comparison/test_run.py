"""Runs repeat, resume and stay paired."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
import torchvision
from PIL import Image
from torch import nn

import torchplug as tp
from tests.comparison.conftest import QUICK, run_quickly
from torchplug.comparison import Comparison, Recipe, Variant, load_run
from torchplug.comparison.data import load_data
from torchplug.comparison.trial import Study, build_base, hash_weights, plug_variant, run_trial
from torchplug.hosts import build_model


def read_trials(root: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted((root / "trials").glob("*.json"))}


def test_the_same_comparison_twice_gives_the_same_bytes(finished: Path, tmp_path: Path) -> None:
    torch.manual_seed(123)  # what the caller's generator does must not matter
    run_quickly(tmp_path / "again")
    assert read_trials(tmp_path / "again") == read_trials(finished)
    assert len(read_trials(finished)) == 6
    for name in ("comparison.json", "plans/se.json", "costs.json", "summary.json"):
        assert (tmp_path / "again" / name).read_bytes() == (finished / name).read_bytes()


def test_a_comparison_leaves_global_settings_alone(tmp_path: Path) -> None:
    threads, state = torch.get_num_threads(), torch.get_rng_state()
    run_quickly(tmp_path / "run", plugs=["se"])
    assert torch.get_num_threads() == threads
    assert torch.equal(torch.get_rng_state(), state)
    assert not torch.are_deterministic_algorithms_enabled()


def test_a_finished_comparison_is_not_run_again(finished: Path, tmp_path: Path) -> None:
    root = tmp_path / "copy"
    shutil.copytree(finished, root)
    before = {path: path.stat().st_mtime_ns for path in (root / "trials").iterdir()}
    events = []
    run_quickly(root, on_event=events.append)
    assert {path: path.stat().st_mtime_ns for path in (root / "trials").iterdir()} == before
    assert [event.kind for event in events] == ["begin", *["kept"] * 6]


KILLED = """
import sys
from tests.comparison.conftest import run_quickly
run_quickly(sys.argv[1])
"""


def test_a_killed_comparison_goes_on_and_ends_as_if_it_had_not_been(
    finished: Path, tmp_path: Path
) -> None:
    root = tmp_path / "killed"
    repository = Path(__file__).parents[2]
    process = subprocess.Popen([sys.executable, "-c", KILLED, str(root)], cwd=repository)
    deadline = time.time() + 120
    while not list(root.glob("trials/*.json")) and time.time() < deadline:
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    left = read_trials(root)
    assert 0 < len(left) < 6
    (root / "trials" / ".half.json.x.tmp").write_text("{")  # what a killed writer leaves

    events = []
    run_quickly(root, on_event=events.append)

    assert read_trials(root) == read_trials(finished)
    assert sum(event.kind == "kept" for event in events) == len(left)
    assert not list(root.rglob("*.tmp"))


def test_a_truncated_record_is_run_again(finished: Path, tmp_path: Path) -> None:
    root = tmp_path / "copy"
    shutil.copytree(finished, root)
    path = root / "trials" / "se--seed-1.json"
    path.write_bytes(path.read_bytes()[:100])
    events = []
    run_quickly(root, on_event=events.append)
    assert [event.trial for event in events if event.kind == "redo"] == ["se, seed 1"]
    assert read_trials(root) == read_trials(finished)


def test_another_specification_is_refused_and_nothing_is_written(finished: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in finished.rglob("*")}
    with pytest.raises(tp.UsageError, match=r"seeds: \[0, 1\] -> \[0, 1, 2\]"):
        run_quickly(finished, seeds=3)
    with pytest.raises(tp.UsageError, match=r"recipe.epochs: 2 -> 3"):
        run_quickly(finished, recipe=Recipe(epochs=3, batch_size=128))
    assert {path: path.stat().st_mtime_ns for path in finished.rglob("*")} == before


def test_a_directory_of_something_else_is_refused(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("precious")
    with pytest.raises(tp.UsageError, match="with other files; choose another name"):
        run_quickly(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]


def test_two_drivers_do_not_write_one_directory(tmp_path: Path) -> None:
    def start_a_second(event: object) -> None:
        with pytest.raises(tp.UsageError, match="one process at a time"):
            run_quickly(tmp_path / "run", plugs=["se"])

    run_quickly(tmp_path / "run", plugs=["se"], on_event=start_a_second)


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"seeds": 1}, "at least 2 seeds"),
        ({"seeds": [3, 3]}, "seeds must differ"),
        ({"plugs": ["cbma"]}, "did you mean 'cbam'"),
        ({"plugs": []}, "needs a variant"),
        ({"plugs": ["se", "se"]}, "variants must differ"),
        ({"plugs": ["se:reduction"]}, r"a module is named by its key|OPTION=VALUE"),
        ({"plugs": ["se:reductoin=4"]}, "did you mean 'reduction'"),
        ({"model": "torchplug:resnet9"}, "did you mean 'resnet8'"),
        ({"model": "torchvision:resnet19"}, "did you mean 'resnet18'"),
        ({"model": "timm:resnet10x"}, "did you mean 'resnet10t'"),
        ({"model": "resnet18"}, "named by its source"),
        ({"model": "nowhere.at.all:make"}, "must be importable"),
        ({"model": "missing.py:make"}, "must exist"),
        ({"model": "collections:Counter"}, "must make a model"),
        ({"model": "torchvision:fcn_resnet50"}, r"must return scores \(N, 10\)|must run"),
        ({"data": "no/such/folder"}, "is no folder"),
        ({"data": "cifar10:no/such/root"}, "cifar-10-batches-py"),
        ({"device": "cuda:99"}, "device must be there"),
    ],
)
def test_bad_input_is_refused_before_anything_is_written(
    changes: dict[str, object], text: str, tmp_path: Path
) -> None:
    with pytest.raises(tp.UsageError, match=text):
        run_quickly(tmp_path / "run", **changes)
    assert not (tmp_path / "run").exists()


def test_a_role_that_the_model_does_not_have_lists_its_roles(tmp_path: Path) -> None:
    file = tmp_path / "plain.py"
    file.write_text(
        "from torch import nn\n"
        "def make(num_classes, in_channels):\n"
        "    return nn.Sequential(nn.Conv2d(in_channels, 16, 3), nn.ReLU(),\n"
        "        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, num_classes))\n"
    )
    with pytest.raises(tp.PlugError, match=r"role 'bottleneck'.*'stage' \(1 sites\)"):
        run_quickly(tmp_path / "run", model=f"{file}:make", plugs=["se"])
    assert not (tmp_path / "run").exists()


@pytest.fixture(scope="module")
def study() -> Study:
    data = load_data("digits")
    variants = (Variant.parse("se"), Variant.parse("nl@stage"))
    comparison = Comparison(
        model="torchplug:resnet8", data="digits", variants=variants, seeds=(0, 1), recipe=QUICK
    )
    return Study(comparison, data, lambda: build_model("torchplug:resnet8", in_channels=1))


def test_base_weights_are_bit_equal_in_all_variants_whatever_the_module_draws(study: Study) -> None:
    hashes = {}
    for seed in (0, 1):
        for variant in study.comparison.arms:
            model = build_base(study, seed)
            plug_variant(model, variant, study, seed)
            tp.unplug(model)
            hashes[variant.name, seed] = hash_weights(model)
    assert len({value for (_, seed), value in hashes.items() if seed == 0}) == 1
    assert hashes["baseline", 0] != hashes["baseline", 1]


def test_an_identity_variant_trains_exactly_as_the_baseline(study: Study) -> None:
    """A plug that computes nothing must change nothing: order and augmentation are shared."""
    silent = Variant(name="silent", module="se", options={"reduction": 4})
    frozen = run_trial(study, study.comparison.arms[0], 0)

    def make() -> nn.Module:
        model = build_model("torchplug:resnet8", in_channels=1)
        tp.plug(model, "se", example=(1, 1, 8, 8))
        for _, _, plug in tp.find_plugs(model):
            plug.requires_grad_(False)  # the gain stays zero
        return model

    plugged = run_trial(Study(study.comparison, study.data, make), study.comparison.arms[0], 0)
    assert plugged["errors"] == frozen["errors"]
    assert plugged["curve"] == frozen["curve"]
    assert silent.module == "se"


def test_a_diverging_trial_is_recorded_and_its_seed_left_out_for_all(tmp_path: Path) -> None:
    recipe = Recipe(epochs=1, learning_rate=1e30, schedule="constant", batch_size=128)
    with pytest.raises(tp.UsageError, match="seed 0: baseline diverged"):
        run_quickly(tmp_path / "run", plugs=["se"], recipe=recipe)
    record = json.loads((tmp_path / "run/trials/baseline--seed-0.json").read_text())
    assert (record["status"], record["accuracy"], record["curve"]) == ("diverged", None, [])


def test_a_failed_seed_is_dropped_for_all_variants_and_named(
    finished: Path, tmp_path: Path
) -> None:
    root = tmp_path / "three"
    run_quickly(root, seeds=3)
    path = root / "trials" / "se--seed-1.json"
    record = json.loads(path.read_text())
    path.write_text(json.dumps({**record, "status": "diverged", "accuracy": None, "errors": None}))
    result = load_run(root).result
    assert result.seeds == (0, 2)
    assert result.dropped == {1: "se diverged"}
    assert all(len(row.accuracies) == 2 for row in result.rows)


def test_unpaired_records_are_an_error(finished: Path, tmp_path: Path) -> None:
    root = tmp_path / "copy"
    shutil.copytree(finished, root)
    path = root / "trials" / "se--seed-1.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "base_weights": "other"}))
    with pytest.raises(tp.TorchplugError, match="seed 1 is not paired"):
        load_run(root)


def test_the_default_recipe_is_above_97_percent_on_held_out_digits(study: Study) -> None:
    comparison = Comparison(
        model="torchplug:resnet8", data="digits", variants=(Variant.parse("se"),), seeds=(0, 1)
    )
    record = run_trial(Study(comparison, study.data, study.make_model), comparison.arms[0], 0)
    assert record["accuracy"] > 97


def test_models_of_libraries_and_functions_can_be_compared(tmp_path: Path) -> None:
    result = run_quickly(
        tmp_path / "function",
        model=lambda: torchvision.models.resnet18(num_classes=10),
        plugs=["se@layer4"],
        recipe=Recipe(epochs=1, batch_size=256),
    )
    assert [row.variant for row in result.rows] == ["baseline", "se@layer4"]
    assert result.rows[1].places == "layer4.1"


def test_a_folder_of_images_can_be_compared(tmp_path: Path) -> None:
    write_folder(tmp_path / "images")
    result = run_quickly(tmp_path / "run", data=str(tmp_path / "images"), image_size=16)
    assert result.tested == 16
    assert json.loads((tmp_path / "run/trials/baseline--seed-0.json").read_text())["data"]


def write_folder(root: Path) -> None:
    digits = load_data("digits")
    for label in (0, 1):
        images = digits.train.images[digits.train.labels == label][:20]
        for i, image in enumerate(images):
            path = root / str(label) / f"{i}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(image[0].numpy()).resize((24, 16)).save(path)
