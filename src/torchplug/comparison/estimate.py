"""How long a comparison will take: from trials that are there, or from a few steps of each arm."""

import dataclasses
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch.utils.data import Subset

from torchplug.comparison.arms import Study
from torchplug.comparison.data import TaskData
from torchplug.comparison.readback import read_timings
from torchplug.comparison.spec import Comparison, Variant
from torchplug.comparison.store import Store
from torchplug.comparison.trial import run_trial

STEPS = 4
"""Optimizer steps that are timed; an epoch of as many comes before, to warm up."""


@dataclass(frozen=True)
class Estimate:
    """Seconds of one trial of each arm."""

    seconds: Mapping[str, float]
    source: str
    """In words: measured, or from earlier trials."""


def find_earlier(store: Store, comparison: Comparison, arms: Sequence[Variant]) -> Estimate:
    """Return the mean time of the trials that a run has already; arms without one are left out."""
    found: dict[str, list[float]] = {}
    for (name, _), timing in read_timings(store, comparison, arms).items():
        found.setdefault(name, []).append(float(timing["seconds"]))
    seconds = {name: sum(times) / len(times) for name, times in found.items()}
    count = sum(map(len, found.values()))
    return Estimate(seconds, f"{count} earlier trials")


def measure(study: Study, arms: Sequence[Variant]) -> Estimate:
    """Train every arm for a few steps on a part of the data and scale up.

    Nothing is kept. Validation after each epoch counts in proportion; the test at the end is left
    out, and so is what trials that run side by side take from each other.

    Args:
        study: with data of ours: the parts of a user's LightningDataModule cannot be cut.
        arms: to be timed.

    >>> from torchplug.comparison import Comparison, Recipe, Variant
    >>> from torchplug.comparison.session import Inputs
    >>> recipe = Recipe(epochs=10)
    >>> names = {"model": "torchplug:resnet8", "data": "digits"}
    >>> variants = (Variant.parse("se"),)
    >>> comparison = Comparison(**names, variants=variants, seeds=(0, 1), recipe=recipe)
    >>> study = Inputs(comparison.model, comparison).make_study()
    >>> 0 < measure(study, comparison.arms[:1]).seconds["baseline"] < 600
    True
    """
    data: Any = study.data
    if not isinstance(data, TaskData):
        return Estimate({}, "not known for data of this kind")
    small, scale = _cut(study)
    starts, training = [], {}
    for arm in arms:
        with tempfile.TemporaryDirectory() as folder:
            began = time.monotonic()
            outcome = run_trial(small, arm, small.comparison.seeds[0], Path(folder))
            whole = time.monotonic() - began
        epochs = outcome.timing["epoch_seconds"]
        starts.append(max(whole - sum(epochs), 0.0))
        last = epochs[-1] if epochs else whole
        training[arm.name] = last * scale * study.comparison.recipe.epochs
    start = min(starts, default=0.0)  # the first one imports what trains
    seconds = {name: start + each for name, each in training.items()}
    return Estimate(seconds, f"{STEPS} steps of each arm")


def _cut(study: Study) -> tuple[Study, float]:
    """Return the study on a part of its data for two epochs, and what an epoch is longer by."""
    data: Any = study.data
    recipe = study.comparison.recipe
    count = min(STEPS * recipe.batch_size, len(data.train))
    share = count / len(data.train)
    parts: dict[str, Any] = {
        name: Subset(part, range(max(round(share * len(part)), 1)))
        for name in ("train", "validation", "test")
        if (part := getattr(data, name)) is not None
    }
    parts["train"] = Subset(data.train, range(count))
    settings = dataclasses.replace(recipe, epochs=2)
    comparison = dataclasses.replace(study.comparison, recipe=settings)
    small = dataclasses.replace(
        study, comparison=comparison, data=dataclasses.replace(data, **parts)
    )
    return small, 1 / share
