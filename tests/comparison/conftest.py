"""A comparison that is small enough to run in seconds, on the real scans."""

from pathlib import Path
from typing import Any

import pytest

import torchplug as tp
from torchplug.comparison import ComparisonResult, Recipe

QUICK = Recipe(epochs=2, batch_size=128)


def run_quickly(out: Path, **changes: Any) -> ComparisonResult:
    """Two epochs, two seeds; baseline, two variants, and the baseline again."""
    settings = {"plugs": ["se", "cbam@stage"], "seeds": 2, "recipe": QUICK, **changes}
    return tp.compare(settings.pop("model", "torchplug:resnet8"), out=out, **settings)


def read_trials(root: Path) -> dict[str, bytes]:
    """The record of every trial of a run, by its folder."""
    found = sorted((root / "trials").glob("*/record.json"))
    return {path.parent.name: path.read_bytes() for path in found}


def find_trial(root: Path, variant: str, seed: int) -> Path:
    """The folder of one trial."""
    return next((root / "trials").glob(f"{variant}--seed-{seed}--*"))


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The directory of a finished run."""
    root = tmp_path_factory.mktemp("runs") / "finished"
    run_quickly(root)
    return root
