"""Train and test one model by Lightning's Trainer."""

import importlib.util
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins.environments.lightning import LightningEnvironment
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.loggers import CSVLogger, Logger, TensorBoardLogger
from lightning.pytorch.strategies import DDPStrategy, Strategy
from torch import nn

from torchplug.comparison.arms import Study
from torchplug.comparison.recipe import Recipe
from torchplug.comparison.tasks.base import Score
from torchplug.comparison.tasks.choose import get_task
from torchplug.comparison.training.callbacks import (
    Averaged,
    Curve,
    DivergedError,
    Streams,
    seed_loaders,
)
from torchplug.comparison.training.checkpoint import EpochCheckpoint, find_checkpoint
from torchplug.comparison.training.feed import Feed, feed_module, feed_task
from torchplug.comparison.training.module import TaskModule
from torchplug.comparison.training.own import ModuleData, read_score
from torchplug.comparison.training.quiet import interruptible, quiet

LOGS = "logs"


@dataclass(frozen=True)
class Trained:
    """What came of one training; ``score`` is ``None`` if it diverged."""

    score: Score | None
    curve: tuple[Mapping[str, Any], ...]
    tested: int
    epoch_seconds: tuple[float, ...]
    resumed_at: tuple[int, ...]
    """Epochs that were finished when an interrupted training went on."""


@dataclass(frozen=True)
class Place:
    """Where a training runs: its folder, and its process among those of the trial."""

    folder: Path
    rank: int = 0
    world: int = 1


def train(
    study: Study,
    model: nn.Module,
    *,
    stream: int,
    mark: str,
    place: Place,
    on_epoch: Callable[[int], None] | None = None,
) -> Trained:
    """Train a model by the recipe of a study and test it once, after the last epoch.

    Args:
        study: with the data.
        model: plugged; a ``LightningModule`` is trained as it is.
        stream: of the trial, which all random numbers are derived from.
        mark: hash of what the trial is; a checkpoint in the folder is used if it has the same.
        place: the folder, and the process.
        on_epoch: told of each finished epoch.
    """
    checkpoint, epochs = find_checkpoint(place.folder, mark)
    if checkpoint is None and place.rank == 0:
        shutil.rmtree(place.folder / LOGS, ignore_errors=True)
    feed = _feed(study, model, stream, place)
    feed.set_epoch(epochs)
    seed_loaders(feed.generators, stream, epochs)
    comparison = study.comparison
    own = isinstance(model, LightningModule)
    curve = Curve(comparison.metric if own else "")
    callbacks = [Streams(stream, feed.generators), curve]
    if comparison.recipe.ema:
        callbacks.append(Averaged(comparison.recipe.ema))
    callbacks.append(EpochCheckpoint(place.folder, mark, on_epoch))
    with quiet(), interruptible():
        trainer = _make_trainer(study, place, callbacks)
        module = model if isinstance(model, LightningModule) else _wrap(study, model, feed)
        try:
            score = _run(trainer, module, feed, checkpoint)
        except DivergedError:
            score = None
    if score is not None and own:
        score = read_score(trainer.callback_metrics, comparison.metric)
    return Trained(
        score=score,
        curve=tuple(curve.curve),
        tested=feed.tested,
        epoch_seconds=tuple(curve.seconds),
        resumed_at=tuple(curve.resumed),
    )


def _feed(study: Study, model: nn.Module, stream: int, place: Place) -> Feed:
    if isinstance(study.data, ModuleData):
        return feed_module(study.data, stream, place.rank, place.world)
    return feed_task(study, model, stream, place.rank, place.world)


def _wrap(study: Study, model: nn.Module, feed: Feed) -> TaskModule:
    comparison = study.comparison
    steps = comparison.recipe.epochs * feed.steps
    model.train()
    return TaskModule(
        model, get_task(comparison.task), comparison.recipe, study.data.classes, steps
    )


def _run(trainer: Trainer, module: LightningModule, feed: Feed, checkpoint: Path | None) -> Score:
    path = None if checkpoint is None else str(checkpoint)
    trainer.fit(module, feed.train, feed.validation, ckpt_path=path, weights_only=True)
    trainer.test(module, feed.test, verbose=False)
    score = getattr(module, "score", None)
    return score if isinstance(score, Score) else Score({}, {})


def _make_trainer(study: Study, place: Place, callbacks: list[Any]) -> Trainer:
    comparison = study.comparison
    recipe: Recipe = comparison.recipe
    device = torch.device(comparison.device)
    devices: Any = place.world
    if place.world == 1 and device.type != "cpu":
        devices = [device.index or 0]
    return Trainer(
        accelerator={"cuda": "gpu"}.get(device.type, device.type),
        devices=devices,
        strategy=_make_strategy(place, device),
        precision="bf16-mixed" if recipe.precision == "bf16" else "32-true",
        max_epochs=recipe.epochs,
        gradient_clip_val=recipe.gradient_clip or None,
        callbacks=callbacks,
        logger=_make_loggers(place),
        log_every_n_steps=10**9,  # a user's module logs its epochs; rows of steps are many
        default_root_dir=place.folder,
        num_sanity_val_steps=0,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
        inference_mode=False,  # what a module keeps from a validation may be trained with
        # a scheduler's own environment would let Lightning requeue the job of the whole study
        plugins=[LightningEnvironment()],
    )


def _make_strategy(place: Place, device: torch.device) -> Strategy | str:
    if place.world == 1:
        return "auto"
    backend = "nccl" if device.type == "cuda" else "gloo"
    # some modules have parameters that are inert in some places
    return DDPStrategy(process_group_backend=backend, find_unused_parameters=True)


def _make_loggers(place: Place) -> list[Logger] | bool:
    if place.rank:
        return False
    loggers: list[Logger] = [CSVLogger(place.folder, name=LOGS, version="")]
    if importlib.util.find_spec("tensorboard") is not None:
        loggers.append(
            TensorBoardLogger(place.folder, name=LOGS, version="", default_hp_metric=False)
        )
    return loggers
