"""One trial: one variant, one seed, trained and tested; its record is equal in every repetition."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn

from torchplug.comparison.arms import Study
from torchplug.comparison.outcome import Outcome
from torchplug.comparison.seeds import derive_seed
from torchplug.comparison.spec import Variant
from torchplug.comparison.tasks import choose
from torchplug.comparison.tasks.choose import get_task
from torchplug.errors import UsageError, explain, nearest, require_extra

BASE_WEIGHTS = "base.pt"
_PACKAGES = ("lightning", "torchmetrics")
_STREAMS = 2**62

OnEpoch = Callable[[int], None]


def run_trial(
    study: Study, variant: Variant, seed: int, folder: Path, on_epoch: OnEpoch | None = None
) -> Outcome:
    """Train and test one variant with one seed.

    A trial that was interrupted goes on from the checkpoint in its folder and ends with the same
    record, bit for bit. ``status`` is ``finished``, or ``diverged`` as soon as the loss is no
    number; any exception is the caller's.

    Args:
        study: what is compared.
        variant: the arm.
        seed: of the trial.
        folder: where ``checkpoint.ckpt`` and ``logs/`` are; nothing else is written anywhere.
        on_epoch: told the number of each epoch whose checkpoint is written.

    Raises:
        UsageError: if model, data and recipe do not fit each other.
        MissingExtra: if Lightning or torchmetrics is not installed.
    """
    require_extra(_PACKAGES, extra="compare", purpose="training")
    folder.mkdir(parents=True, exist_ok=True)
    # Lightning takes seconds to import: only what trains loads it
    if study.comparison.devices > 1:
        from torchplug.comparison.training.spread import perform_spread

        return Outcome(*perform_spread(study, variant, seed, folder, on_epoch))
    from torchplug.comparison.training.fit import Place
    from torchplug.comparison.training.perform import perform

    return Outcome(*perform(study, variant, seed, Place(folder), on_epoch))


def check_model(study: Study, model: nn.Module) -> None:
    """Refuse what could not be trained: before anything is written.

    Raises:
        UsageError: naming what does not fit.
        MissingExtra: if Lightning or torchmetrics is not installed.
    """
    require_extra(_PACKAGES, extra="compare", purpose="training")
    if _is_lightning(model) or _is_lightning(getattr(study.data, "module", None)):
        from torchplug.comparison.training.perform import check_own

        check_own(study, model)
        return
    comparison = study.comparison
    task = get_task(comparison.task)
    if comparison.metric and comparison.metric not in task.metrics:
        fix = nearest(comparison.metric, task.metrics)
        text = explain(f"{task.name} has its metrics", repr(comparison.metric), fix)
        raise UsageError(text)
    choose.check_model(task, model, study.data, comparison.recipe)


def _is_lightning(model: Any) -> bool:
    """Tell without the import: a model is no LightningModule where Lightning is not loaded."""
    names = {kind.__name__ for kind in type(model).__mro__}
    return bool(names & {"LightningModule", "LightningDataModule"})


def train_base(study: Study, folder: Path, on_epoch: OnEpoch | None = None) -> Path:
    """Train a baseline once, by the recipe of the study, and return the path of its weights.

    It has a stream of its own, so no seed of the comparison repeats its order. An interrupted
    training goes on from its checkpoint; weights that are there are not trained again.

    Raises:
        UsageError: if the training diverges.
    """
    path = folder / BASE_WEIGHTS
    if path.exists():
        return path
    require_extra(_PACKAGES, extra="compare", purpose="training")
    from torchplug.comparison.training.perform import train_weights

    folder.mkdir(parents=True, exist_ok=True)
    fresh = dataclasses.replace(study, start=None)
    model = train_weights(fresh, folder, derive_seed("trained base") % _STREAMS, on_epoch)
    partial = path.with_suffix(".tmp")
    torch.save(model.state_dict(), partial)
    partial.replace(path)
    return path
