"""Several processes make the same records as one."""

from pathlib import Path

import pytest
from torch import nn

from tests.comparison.conftest import read_trials, run_quickly
from torchplug.comparison import compare
from torchplug.errors import UsageError
from torchplug.hosts import build_model


def make_model() -> nn.Module:
    return build_model("torchplug:resnet8", num_classes=10, in_channels=1)


def test_a_pool_writes_the_same_bytes_as_one_process(finished: Path, tmp_path: Path) -> None:
    events = []
    result = run_quickly(tmp_path / "two", workers=2, on_event=events.append)
    assert read_trials(tmp_path / "two") == read_trials(finished)
    assert len(read_trials(finished)) == 8
    assert [row.variant for row in result.rows] == [
        "baseline",
        "se",
        "cbam@stage",
        "baseline again",
    ]
    assert {event.trial for event in events if event.kind == "epoch"} == {
        f"{row.variant}, seed {seed}" for row in result.rows for seed in (0, 1)
    }
    assert events[-1].left == 0


def test_a_model_that_cannot_be_sent_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    def local() -> nn.Module:
        return make_model()

    with pytest.raises(UsageError, match="workers=1"):
        compare(local, ["se"], out=tmp_path / "run", workers=2)
    with pytest.raises(UsageError, match="at least one process"):
        compare(make_model, ["se"], out=tmp_path / "run", workers=0)
    assert not (tmp_path / "run").exists()
