"""A user's own LightningModule and LightningDataModule."""

import subprocess
import sys
from pathlib import Path

import pytest
from lightning.pytorch import LightningDataModule
from torch.utils.data import DataLoader

import torchplug as tp
from tests.comparison.training.conftest import make_study, read_state
from tests.comparison.training.own_parts import Classifier, Digits, make_own
from torchplug.comparison.training.own import wrap_datamodule
from torchplug.comparison.trial import check_model, run_trial

KILLED = """
import sys
from tests.comparison.training.conftest import run_and_die
from tests.comparison.training.own_parts import make_own
run_and_die(make_own(workers=1), sys.argv[1], 2)
"""


def test_an_own_module_and_its_data_are_resumed_bit_for_bit(tmp_path: Path) -> None:
    """With dropout, a shuffling loader, noise from worker processes, and a plateau schedule."""
    study = make_own(workers=1)
    check_model(study, study.make_model())
    whole = run_trial(study, study.comparison.arms[1], 0, tmp_path / "plugged").record
    assert whole["parameters"]["modules"] > 0
    whole = run_trial(study, study.comparison.arms[0], 0, tmp_path / "whole").record
    done = subprocess.run([sys.executable, "-c", KILLED, str(tmp_path / "killed")], check=False)
    assert done.returncode == -9
    outcome = run_trial(study, study.comparison.arms[0], 0, tmp_path / "killed")
    assert outcome.timing["resumed_at"] == [2]
    assert outcome.record == whole
    assert read_state(tmp_path / "killed") == read_state(tmp_path / "whole")
    assert whole["status"] == "finished"
    assert 0 <= whole["value"] <= 1
    assert set(whole["metrics"]) == {"test_acc", "test_loss"}
    assert all(row["validation"] is not None for row in whole["curve"])
    assert whole["tested"] == 32


def test_an_own_module_reads_data_of_ours(tmp_path: Path) -> None:
    study = make_study(make_model=Classifier, comparison={"metric": "test_loss", "goal": "min"})
    record = run_trial(study, study.comparison.arms[0], 0, tmp_path).record
    assert record["value"] == record["metrics"]["test_loss"] > 0


def test_a_plain_model_reads_an_own_data_module(tmp_path: Path) -> None:
    study = make_study(data=wrap_datamodule(Digits()), epochs=1)
    check_model(study, study.make_model())
    record = run_trial(study, study.comparison.arms[0], 0, tmp_path).record
    assert record["value"] == 100 * (32 - len(record["errors"])) / 32
    assert max(record["errors"], default=0) < 32


def test_a_metric_that_is_not_logged_is_named(tmp_path: Path) -> None:
    study = make_own("test_accuracy", epochs=1)
    with pytest.raises(tp.UsageError, match="did you mean 'test_acc'"):
        run_trial(study, study.comparison.arms[0], 0, tmp_path)
    with pytest.raises(tp.UsageError, match="needs the name of the metric"):
        check_model(make_own(""), Classifier())


def test_data_without_images_or_classes_is_refused() -> None:
    class Numbers(LightningDataModule):
        def train_dataloader(self) -> DataLoader[int]:
            return DataLoader(range(4))  # type: ignore[arg-type]

    with pytest.raises(tp.UsageError, match="begins with images"):
        wrap_datamodule(Numbers())
    Nameless = type("Nameless", (Digits,), {"num_classes": 0})
    study = make_study(make_model=Classifier, data=wrap_datamodule(Digits()))
    bare = make_study(make_model=study.make_model, data=wrap_datamodule(Nameless()))
    with pytest.raises(tp.UsageError, match="Nameless without classes"):
        check_model(bare, Classifier().net)
    assert wrap_datamodule(Digits()).digest == wrap_datamodule(Digits()).digest
