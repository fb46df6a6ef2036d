"""A trial repeats, resumes bit for bit, and trains as a plain loop does."""

import csv
import dataclasses
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import torchplug as tp
from tests.comparison.training.conftest import make_data, make_dropping, make_study, read_state
from torchplug.comparison.arms import Study, build_base
from torchplug.comparison.outcome import Outcome
from torchplug.comparison.seeds import deterministic, make_generator
from torchplug.comparison.trial import run_trial

RESUMED = {"epochs": 4, "ema": 0.9, "batch_size": 16, "gradient_clip": 1.0}
KILLED = """
import sys
from tests.comparison.training.conftest import make_dropping, make_study, run_and_die
run_and_die(make_study(make_model=make_dropping, **{settings}), sys.argv[1], 2)
"""


def run(study: Study, folder: Path, seed: int = 0, arm: int = 0) -> Outcome:
    return run_trial(study, study.comparison.arms[arm], seed, folder)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The record of a trial that nothing interrupted."""
    study = make_study(make_model=make_dropping, **RESUMED)
    folder = tmp_path_factory.mktemp("whole")
    record = run(study, folder).record
    return record | {"state": read_state(folder)}


def train_plainly(study: Study, seed: int) -> tuple[list[float], list[int]]:
    """The same training, written a second time without Lightning: losses and wrong test items."""
    recipe, data = study.comparison.recipe, study.data
    model = build_base(study, seed)
    pixels = data.train.images.double()
    mean, deviation = pixels.mean().float(), pixels.std(correction=0).float()
    optimizer = torch.optim.SGD(
        model.parameters(), lr=0.1, momentum=0.9, weight_decay=5e-4, nesterov=True
    )
    steps = recipe.epochs * (len(data.train) // recipe.batch_size)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=0.1, total_steps=steps)
    losses = []
    for epoch in range(1, recipe.epochs + 1):
        order = torch.randperm(len(data.train), generator=make_generator("order", seed, epoch))
        total = 0.0
        model.train()
        for start in range(0, len(order) - recipe.batch_size + 1, recipe.batch_size):
            chosen = order[start : start + recipe.batch_size]
            images = (data.train.images[chosen].float() - mean) / deviation
            loss = nn.functional.cross_entropy(model(images), data.train.targets[chosen])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            total += float(loss.detach())
        losses.append(total / (len(order) // recipe.batch_size))
    model.eval()
    with torch.no_grad():
        scores = model((data.test.images.float() - mean) / deviation)
    return losses, (scores.argmax(1) != data.test.targets).nonzero().flatten().tolist()


def test_lightning_trains_as_a_plain_loop_does(tmp_path: Path) -> None:
    study = make_study(augment="none", batch_size=20)  # 96 = 4 x 20 + 16 left out
    record = run(study, tmp_path).record
    with deterministic("anything"):
        losses, wrong = train_plainly(study, 0)
    assert [row["loss"] for row in record["curve"]] == losses
    assert record["errors"] == wrong
    assert record["value"] == 100 * (32 - len(wrong)) / 32


def test_a_killed_trial_goes_on_bit_for_bit(whole: dict[str, Any], tmp_path: Path) -> None:
    code = KILLED.replace("{settings}", repr(RESUMED))
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=False)
    assert done.returncode == -9
    torch.manual_seed(5)  # what the process drew before must not matter
    outcome = run(make_study(make_model=make_dropping, **RESUMED), tmp_path)
    assert outcome.timing["resumed_at"] == [2]
    assert len(outcome.timing["epoch_seconds"]) == 4
    assert outcome.record | {"state": read_state(tmp_path)} == whole
    with (tmp_path / "logs/metrics.csv").open() as file:
        assert [row["epoch"] for row in csv.DictReader(file)] == ["1", "2", "3", "4"]


@pytest.mark.parametrize("damage", ["cut", "flip", "foreign"])
def test_a_damaged_or_foreign_checkpoint_is_ignored(
    damage: str, whole: dict[str, Any], tmp_path: Path
) -> None:
    study = make_study(make_model=make_dropping, **RESUMED)
    if damage == "foreign":  # of another seed
        run_trial(study, study.comparison.arms[0], 1, tmp_path)
    else:
        run(study, tmp_path)
        path = tmp_path / "checkpoint.ckpt"
        content = bytearray(path.read_bytes())
        content[len(content) // 2] ^= 255
        path.write_bytes(content if damage == "flip" else content[:-500])
    outcome = run(study, tmp_path)
    assert outcome.timing["resumed_at"] == []
    assert outcome.record | {"state": read_state(tmp_path)} == whole


def test_a_trial_killed_in_its_test_is_tested_again(whole: dict[str, Any], tmp_path: Path) -> None:
    study = make_study(make_model=make_dropping, **RESUMED)
    run(study, tmp_path)  # all its epochs are in the checkpoint
    outcome = run(study, tmp_path)
    assert outcome.timing["resumed_at"] == [4]
    assert outcome.record | {"state": read_state(tmp_path)} == whole


def test_a_trial_is_quiet_and_stays_in_its_folder(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    state = torch.get_rng_state()
    run(make_study(epochs=1), tmp_path / "trial")
    assert capfd.readouterr() == ("", "")
    assert not list((tmp_path / "elsewhere").iterdir())
    assert {path.name for path in (tmp_path / "trial").iterdir()} == {"checkpoint.ckpt", "logs"}
    assert torch.equal(torch.get_rng_state(), state)


def test_a_diverging_trial_ends_at_once(tmp_path: Path) -> None:
    study = make_study(learning_rate=1e30, schedule="constant")
    epochs: list[int] = []
    record = run_trial(study, study.comparison.arms[0], 0, tmp_path, epochs.append).record
    assert (record["status"], record["value"], record["curve"]) == ("diverged", None, [])
    assert epochs == []
    assert record["errors"] is None


def test_a_variant_that_computes_nothing_trains_as_the_baseline(tmp_path: Path) -> None:
    """Order and augmentation are shared, and the module's own draws move nothing."""
    study = make_study()

    def make() -> nn.Module:
        model = study.make_model()
        tp.plug(model, "se", example=(1, 1, 8, 8))
        for _, _, plug in tp.find_plugs(model):
            plug.requires_grad_(False)  # the gain stays zero
        return model

    plain = run(study, tmp_path / "plain").record
    silent = run(dataclasses.replace(study, make_model=make), tmp_path / "silent").record
    assert silent["curve"] == plain["curve"]
    assert silent["errors"] == plain["errors"]
    assert silent["parameters"] != plain["parameters"]


def test_the_control_of_the_pipeline_draws_afresh(tmp_path: Path) -> None:
    study = make_study(epochs=1)
    first, again = (run(study, tmp_path / str(arm), arm=arm).record for arm in (0, 2))
    assert again["control"] == "again"
    assert again["base_weights"] != first["base_weights"]
    assert again["curve"] != first["curve"]


@pytest.mark.parametrize("task", ["segmentation", "detection"])
def test_dense_tasks_repeat(task: str, tmp_path: Path) -> None:
    study = make_study(task, data=make_data(task, 32, 8), batch_size=8, epochs=1)
    records = [run(study, tmp_path / name, arm=1).record for name in "ab"]
    assert records[0] == records[1]
    names = {"segmentation": ["miou", "dice"], "detection": ["map", "map50"]}[task]
    assert list(records[0]["metrics"]) == names
    assert records[0]["value"] == records[0]["metrics"][names[0]]
    assert records[0]["errors"] is None
    assert len(records[0].get("items", [0] * 8)) == 8


def test_half_precision_and_readers_in_other_processes(tmp_path: Path) -> None:
    study = make_study(epochs=1, precision="bf16", augment="scale_flip")
    with_workers = make_study(epochs=1, precision="bf16", augment="scale_flip", workers=1)
    one, two = run(study, tmp_path / "a").record, run(with_workers, tmp_path / "b").record
    assert one["curve"] == two["curve"]
    full = run(make_study(epochs=1, augment="scale_flip"), tmp_path / "c").record
    assert full["curve"] != one["curve"]
    assert full["curve"][0]["loss"] == pytest.approx(one["curve"][0]["loss"], rel=0.05)


def test_label_smoothing_raises_the_loss(tmp_path: Path) -> None:
    sharp = run(make_study(epochs=1), tmp_path / "a").record
    smooth = run(make_study(epochs=1, label_smoothing=0.2), tmp_path / "b").record
    assert smooth["curve"][0]["loss"] != sharp["curve"][0]["loss"]
