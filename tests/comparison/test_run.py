"""Runs repeat, resume and stay paired."""

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import torchvision
from PIL import Image
from torch import nn

import torchplug as tp
from tests.comparison.conftest import QUICK, find_trial, read_trials, run_quickly
from torchplug.comparison import Comparison, Recipe, Variant, load_run
from torchplug.comparison.arguments import read_plugs
from torchplug.comparison.arms import Study, build_base, hash_weights, plug_variant
from torchplug.comparison.data import load_data
from torchplug.comparison.store import seal, write_json
from torchplug.comparison.trial import run_trial
from torchplug.hosts import build_model

ONE = Recipe(epochs=1, batch_size=256, augment="none")


def test_the_same_comparison_twice_gives_the_same_bytes(finished: Path, tmp_path: Path) -> None:
    torch.manual_seed(123)  # what the caller's generator does must not matter
    run_quickly(tmp_path / "again")
    assert read_trials(tmp_path / "again") == read_trials(finished)
    for name in ("comparison.json", "plans/se.json", "arms.json", "data.json"):
        assert (tmp_path / "again" / name).read_bytes() == (finished / name).read_bytes()


def test_a_comparison_leaves_global_settings_alone(tmp_path: Path) -> None:
    threads, state = torch.get_num_threads(), torch.get_rng_state()
    run_quickly(tmp_path / "run", plugs=["se"], recipe=ONE)
    assert torch.get_num_threads() == threads
    assert torch.equal(torch.get_rng_state(), state)
    assert not torch.are_deterministic_algorithms_enabled()


def test_a_finished_comparison_is_not_run_again(finished: Path, tmp_path: Path) -> None:
    root = tmp_path / "copy"
    shutil.copytree(finished, root)
    before = {path: path.stat().st_mtime_ns for path in (root / "trials").rglob("*")}
    events = []
    run_quickly(root, on_event=events.append)
    assert {path: path.stat().st_mtime_ns for path in (root / "trials").rglob("*")} == before
    assert [event.kind for event in events] == ["begin", *["kept"] * 8, "over"]


def test_a_caller_in_python_is_told_of_each_trial_and_where_the_report_is(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = tmp_path / "my run"
    run_quickly(root, plugs=["se"], recipe=ONE)
    printed = capsys.readouterr()
    first, *trials, last = printed.err.splitlines()
    assert (printed.out, first) == ("", "6 trials")
    assert len(trials) == 6
    assert re.fullmatch(r"2 of 6  se, seed 0: finished, 0:00:\d\d, left 0:\d\d:\d\d", trials[1])
    assert last == f"write the report: torchplug report '{root}'"
    run_quickly(root, plugs=["se"], recipe=ONE)
    assert "6 trials, 6 of them there from an earlier run" in capsys.readouterr().err
    run_quickly(root, plugs=["se"], recipe=ONE, on_event=None)
    assert capsys.readouterr() == ("", "")


def test_a_truncated_record_is_run_again(finished: Path, tmp_path: Path) -> None:
    root = tmp_path / "copy"
    shutil.copytree(finished, root)
    path = find_trial(root, "se", 1) / "record.json"
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


def test_the_budget_may_be_another_one(finished: Path, tmp_path: Path) -> None:
    root = tmp_path / "copy"
    shutil.copytree(finished, root)
    run_quickly(root, budget_hours=2.0)
    assert load_run(root).comparison.budget_hours == 2.0


def test_other_data_under_the_same_name_are_refused(tmp_path: Path) -> None:
    write_folder(tmp_path / "images")
    settings = {"data": str(tmp_path / "images"), "image_size": 16, "plugs": ["se"], "recipe": ONE}
    result = run_quickly(tmp_path / "run", **settings)
    assert result.tested == 16
    shutil.copy(tmp_path / "images/0/0.png", tmp_path / "images/1/new.png")
    with pytest.raises(tp.UsageError, match="holds other samples than before"):
        run_quickly(tmp_path / "run", **settings)


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"seeds": 1}, "at least 2 seeds"),
        ({"seeds": [3, 3]}, "seeds must differ"),
        ({"plugs": ["cbma"]}, "did you mean 'cbam'"),
        ({"plugs": []}, "needs a variant"),
        ({"plugs": ["se", "se"]}, "variants must differ"),
        ({"plugs": 3}, "plugs is a list of variants: got 3; write 'cbam@stage', {'module'"),
        ({"plugs": ["se", nn.Conv2d(1, 1, 1)]}, r"plugs\[1\] names what is plugged: got a Conv2d"),
        ({"plugs": [nn.ReLU]}, r"got ReLU; name a class of your own .*file.py:Class@stage"),
        ({"plugs": [{"module": "se", "att": "stage"}]}, "did you mean 'at'"),
        ({"recipe": 1}, r"recipe is a Recipe or its settings: got 1; write {'epochs': 5}"),
        ({"recipe": {"epoch": 1}}, "did you mean 'epochs'"),
        ({"recipe": {"epochs": "1"}}, "recipe.epochs is a whole number: got '1'"),
        ({"goal": "maximize"}, "goal is one of 'max', 'min': got 'maximize'"),
        ({"controls": ["placebos"]}, "controls is a list"),
        ({"seeds": "5"}, r"seeds are a number or a list of numbers: got '5'"),
        ({"seeds": 2.5}, r"seeds are a number or a list of numbers: got 2.5"),
        ({"plugs": ["se:reduction"]}, "has no paper that says where it goes"),
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
    with pytest.raises(tp.PlugError, match=r"role 'bottleneck'.*'stage' \(1 site\)"):
        run_quickly(tmp_path / "run", model=f"{file}:make", plugs=["se"])
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("plugs", "names"),
    [
        ("se + cbam@stage", ["se + cbam@stage"]),
        (tp.CBAM, ["cbam"]),
        ({"module": tp.SqueezeExcite, "at": "stage"}, ["se@stage"]),
        ([tp.CBAM, {"module": "se", "options": {"reduction": [4, 8]}}], ["cbam", "se:reduction=4"]),
        ([Variant(name="mine", plugs=("se", "cbam@stage")), "se"], ["mine", "se"]),
    ],
)
def test_a_plug_is_a_text_a_class_a_table_or_a_variant(plugs: Any, names: list[str]) -> None:
    assert [variant.name for variant in read_plugs(plugs)][: len(names)] == names


def test_a_recipe_is_settings_too_and_epochs_are_told_apart(tmp_path: Path) -> None:
    run_quickly(tmp_path / "run", plugs="se", recipe={"batch_size": 512}, epochs=1, controls=())
    recipe = load_run(tmp_path / "run").comparison.recipe
    assert recipe == Recipe.for_task("classification", epochs=1, batch_size=512)


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
        for variant in study.comparison.arms[:-1]:
            model = build_base(study, seed)
            plug_variant(model, variant, study, seed)
            tp.unplug(model)
            hashes[variant.name, seed] = hash_weights(model)
    assert len({value for (_, seed), value in hashes.items() if seed == 0}) == 1
    assert hashes["baseline", 0] != hashes["baseline", 1]


def test_an_identity_variant_trains_exactly_as_the_baseline(study: Study, tmp_path: Path) -> None:
    """A plug that computes nothing must change nothing: order and augmentation are shared."""
    frozen = run_trial(study, study.comparison.arms[0], 0, tmp_path / "frozen").record

    def make() -> nn.Module:
        model = build_model("torchplug:resnet8", in_channels=1)
        tp.plug(model, "se", example=(1, 1, 8, 8))
        for _, _, plug in tp.find_plugs(model):
            plug.requires_grad_(False)  # the gain stays zero
        return model

    silent = Study(study.comparison, study.data, make)
    plugged = run_trial(silent, study.comparison.arms[0], 0, tmp_path / "plugged").record
    assert plugged["errors"] == frozen["errors"]
    assert plugged["curve"] == frozen["curve"]


def test_a_diverging_trial_is_recorded_and_its_seed_left_out_for_all(tmp_path: Path) -> None:
    recipe = Recipe(epochs=1, learning_rate=1e30, schedule="constant", batch_size=128)
    with pytest.raises(tp.UsageError, match="seed 0: baseline diverged"):
        run_quickly(tmp_path / "run", plugs=["se"], recipe=recipe)
    record = json.loads((find_trial(tmp_path / "run", "baseline", 0) / "record.json").read_text())
    assert (record["status"], record["value"]) == ("diverged", None)


def rewrite(root: Path, variant: str, seed: int, **changes: object) -> None:
    """Change a record so that it is still sealed."""
    path = find_trial(root, variant, seed) / "record.json"
    write_json(path, seal({**json.loads(path.read_text()), **changes}))


def test_a_failed_seed_is_dropped_for_all_variants_and_named(tmp_path: Path) -> None:
    root = tmp_path / "three"
    run_quickly(root, seeds=3, plugs=["se"], recipe=ONE)
    rewrite(root, "se", 1, status="diverged", value=None, errors=None)
    result = load_run(root).result
    assert result.seeds == (0, 2)
    assert result.dropped == {1: "se diverged"}
    assert all(len(row.values) == 2 for row in result.rows if row.control is None)


def test_unpaired_records_are_an_error(finished: Path, tmp_path: Path) -> None:
    root = tmp_path / "copy"
    shutil.copytree(finished, root)
    rewrite(root, "se", 1, base_weights="other")
    with pytest.raises(tp.TorchplugError, match="seed 1 is not paired"):
        load_run(root)


def test_a_run_without_all_its_trials_is_no_result_yet(finished: Path, tmp_path: Path) -> None:
    root = tmp_path / "copy"
    shutil.copytree(finished, root)
    (find_trial(root, "se", 1) / "record.json").unlink()
    with pytest.raises(tp.UsageError, match="needs all trials: got no se seed 1"):
        load_run(root)


def test_the_default_recipe_is_above_97_percent_on_held_out_digits(
    study: Study, tmp_path: Path
) -> None:
    comparison = Comparison(
        model="torchplug:resnet8", data="digits", variants=(Variant.parse("se"),), seeds=(0, 1)
    )
    whole = Study(comparison, study.data, study.make_model)
    assert run_trial(whole, comparison.arms[0], 0, tmp_path).record["value"] > 97


def test_models_of_libraries_and_functions_can_be_compared(tmp_path: Path) -> None:
    result = run_quickly(
        tmp_path / "function",
        model=lambda: torchvision.models.shufflenet_v2_x0_5(num_classes=10),
        plugs=["se@stage4"],
        recipe=ONE,
    )
    assert [row.variant for row in result.rows] == ["baseline", "se@stage4", "baseline again"]
    assert result.rows[1].places == "stage4.3"


def write_folder(root: Path) -> None:
    digits = load_data("digits")
    for label in (0, 1):
        images = digits.train.images[digits.train.labels == label][:20]
        for i, image in enumerate(images):
            path = root / str(label) / f"{i}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(image[0].numpy()).resize((24, 16)).save(path)
