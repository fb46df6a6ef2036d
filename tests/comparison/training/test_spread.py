"""One trial on two devices: here two processes of the processor, joined by gloo."""

import dataclasses
from pathlib import Path

import pytest

import torchplug as tp
from tests.comparison.training.conftest import make_study
from torchplug.comparison.trial import run_trial


def test_two_devices_divide_a_trial(tmp_path: Path) -> None:
    study = make_study(comparison={"devices": 2}, batch_size=32)
    epochs: list[int] = []
    record = run_trial(study, study.comparison.arms[1], 0, tmp_path / "two", epochs.append).record
    assert epochs == [1, 2]
    assert record["status"] == "finished"
    assert record["tested"] == 32
    assert record["value"] == 100 * (32 - len(record["errors"])) / 32  # of both processes
    alone = make_study(batch_size=32)
    single = run_trial(alone, alone.comparison.arms[1], 0, tmp_path / "one").record
    assert single["base_weights"] == record["base_weights"]
    # the same batches; each process has norm statistics of its own half
    first, second = single["curve"][0]["loss"], record["curve"][0]["loss"]
    assert first == pytest.approx(second, rel=0.2)
    assert first != second


def test_a_batch_that_cannot_be_divided_is_refused(tmp_path: Path) -> None:
    study = make_study(comparison={"devices": 2}, batch_size=33)
    broken = dataclasses.replace(study)
    with pytest.raises(tp.TorchplugError, match="batch_size=33 for 2 devices"):
        run_trial(broken, broken.comparison.arms[0], 0, tmp_path)
