"""From the rehearsal to the controls of winners: everything but the training is real."""

import json
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.data import TensorDataset

import torchplug as tp
from tests.comparison.conftest import read_trials, run_quickly
from torchplug.comparison import Recipe, load_run
from torchplug.comparison.arms import Study, prepare_model
from torchplug.comparison.outcome import Outcome
from torchplug.comparison.spec import Variant
from torchplug.hosts import build_model

ONE = Recipe(epochs=1, batch_size=256, augment="none")
GAINS = {"se": 1.5, "gc": -1.5}


def pretend(seconds: float = 0.0, gains: dict[str, float] | None = None) -> Any:
    """A trial that is not trained; its variant decides what it reaches."""

    def run(study: Study, variant: Variant, seed: int, folder: Path, on_epoch: Any) -> Outcome:
        time.sleep(seconds)
        wiggle = (len(variant.name) * 7 + seed * 3) % 5 / 20
        right = round(600 + 7.19 * ((gains or GAINS).get(variant.name, 0.0) + seed % 3 + wiggle))
        value = 100 * right / 719
        record = {
            "format": 2,
            "specification": study.comparison.digest(variant, seed),
            "variant": variant.name,
            "control": variant.control,
            "of": variant.of,
            "seed": seed,
            "status": "finished",
            "error": "",
            "value": value,
            "metrics": {"accuracy": value},
            "classes": {},
            "errors": list(range(719 - right)),
            "tested": 719,
            "curve": [],
            "base_weights": prepare_model(study, variant, seed).base_weights,
            "data": study.data.digest,
            "parameters": {"base": 1, "modules": 0, "gates": 0},
        }
        return Outcome(record, {"began": 0.0, "seconds": seconds, "resumed_at": []})

    return run


@pytest.fixture
def untrained(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torchplug.comparison.trial_job.run_trial", pretend())


def test_a_winner_gets_its_controls_and_no_other(untrained: None, tmp_path: Path) -> None:
    events: list[Any] = []
    settings = {"plugs": ["se", "gc"], "seeds": 7}
    result = run_quickly(tmp_path / "run", **settings, on_event=events.append)
    controls = [(row.control, row.of) for row in result.rows if row.control]
    assert controls == [("again", "baseline"), ("parameters", "se"), ("placebo", "se")]
    assert result.winners == ("se",)
    phase = next(event for event in events if event.kind == "phase")
    assert (phase.total, phase.message) == (42, "2 controls of provisional winners")
    assert events[-1].done == events[-1].total == 42 == len(read_trials(tmp_path / "run"))

    again: list[Any] = []
    assert run_quickly(tmp_path / "run", **settings, on_event=again.append).rows == result.rows
    assert Counter(event.kind for event in again) == {"begin": 1, "kept": 42, "phase": 1, "over": 1}
    run = load_run(tmp_path / "run")
    assert [arm.name for arm in run.arms] == [row.variant for row in result.rows]
    assert run.costs["parameters control of se"]["added"] > 0
    assert len(run.plans["placebo control of se"].plugs) == 3


def test_controls_that_were_asked_for_are_there_for_every_variant(
    untrained: None, tmp_path: Path
) -> None:
    controls = ["placebo", "again"]
    result = run_quickly(tmp_path / "run", plugs=["se", "gc"], seeds=2, controls=controls)
    found = [(row.control, row.of) for row in result.rows if row.control]
    assert found == [("again", "baseline"), ("placebo", "se"), ("placebo", "gc")]


def test_a_hopeless_variant_is_reported_with_the_seeds_it_had(
    untrained: None, tmp_path: Path
) -> None:
    result = run_quickly(tmp_path / "run", plugs=["gc"], seeds=6, futility=True, margin=0.2)
    row = next(row for row in result.rows if row.variant == "gc")
    assert row.stopped == "for futility after 3 seeds"
    assert len(row.values) == 3
    assert result.seeds == tuple(range(6))
    assert load_run(tmp_path / "run").result.rows == result.rows


def test_what_the_budget_leaves_is_reported_and_goes_on_with_more(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("torchplug.comparison.trial_job.run_trial", pretend(seconds=0.4))
    settings = {"plugs": ["gc"], "seeds": 9}
    events: list[Any] = []

    def stop_the_clock(event: Any) -> None:
        events.append(event)
        if event.kind == "end" and event.done == 8:  # whole seeds: 3 arms each
            now = time.monotonic()
            monkeypatch.setattr("torchplug.comparison.driver.time.monotonic", lambda: now + 1e6)

    result = run_quickly(tmp_path / "run", **settings, budget_hours=1.0, on_event=stop_the_clock)
    monkeypatch.undo()
    assert 2 <= len(result.seeds) <= 3
    assert {row.stopped for row in result.rows if row.variant == "gc"} <= {
        "by the budget after 2",
        "by the budget after 3",
    }
    assert load_run(tmp_path / "run").result.seeds == result.seeds
    assert "the budget is spent" in next(e.message for e in events if e.kind == "stop")
    monkeypatch.setattr("torchplug.comparison.trial_job.run_trial", pretend())
    whole = run_quickly(tmp_path / "run", **settings, budget_hours=2.0)
    assert len(whole.seeds) == 9
    assert not any(row.stopped for row in whole.rows)


def test_a_base_is_trained_once_and_every_arm_starts_from_it(tmp_path: Path) -> None:
    settings = {"plugs": ["se"], "recipe": ONE, "base": "trained"}
    run_quickly(tmp_path / "run", **settings)
    weights = next((tmp_path / "run" / "base").glob("*/base.pt"))
    found = [json.loads(raw) for raw in read_trials(tmp_path / "run").values()]
    assert len({record["base_weights"] for record in found}) == 1  # of all seeds and arms
    state = torch.load(weights, weights_only=True)
    model = build_model("torchplug:resnet8", num_classes=10, in_channels=1)
    model.load_state_dict(state)
    assert not (weights.parent / "checkpoint.ckpt").exists()
    before = weights.stat().st_mtime_ns
    run_quickly(tmp_path / "run", **settings)
    assert weights.stat().st_mtime_ns == before


def test_datasets_in_memory_can_be_compared(untrained: None, tmp_path: Path) -> None:
    images = torch.randint(0, 255, (60, 1, 8, 8), dtype=torch.uint8)
    own = TensorDataset(images, torch.arange(60) % 3)
    settings = {"plugs": ["se"], "data": (own, own)}
    with pytest.raises(tp.UsageError, match="names of their classes"):
        run_quickly(tmp_path / "run", **settings)
    run_quickly(tmp_path / "run", **settings, data_options={"classes": 3})
    told = json.loads((tmp_path / "run/data.json").read_text())
    assert told["name"] == "TensorDataset"
    assert told["classes"] == ["0", "1", "2"]
    with pytest.raises(tp.UsageError, match="data is a name"):
        run_quickly(tmp_path / "other", plugs=["se"], data=3)
