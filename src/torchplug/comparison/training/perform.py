"""Make the record of one trial: prepare its model, train it, test it."""

import dataclasses
import platform
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from lightning.pytorch import LightningModule
from torch import nn

from torchplug.comparison.arms import Study, build_base, describe_parameters, prepare_model
from torchplug.comparison.seeds import deterministic
from torchplug.comparison.spec import Variant
from torchplug.comparison.training.fit import Place, Trained, train
from torchplug.comparison.training.own import ModuleData
from torchplug.errors import UsageError, explain

FORMAT = 2
OnEpoch = Callable[[int], None]


def perform(
    study: Study, variant: Variant, seed: int, place: Place, on_epoch: OnEpoch | None
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return record and timing of a trial."""
    began = time.time()
    comparison = study.comparison
    stream = variant.stream(seed)
    digest = comparison.digest(variant, seed)
    study = _adopt_recipe(study, variant)
    arm = prepare_model(study, variant, seed)
    parameters = describe_parameters(arm)
    with deterministic("training", stream, device=comparison.device):
        trained = train(
            study,
            arm.model,
            stream=stream,
            mark=f"{digest} {study.data.digest} {arm.base_weights}",
            place=place,
            on_epoch=on_epoch,
        )
    record = {
        "format": FORMAT,
        "specification": digest,
        "variant": variant.name,
        "control": variant.control,
        "of": variant.of,
        "seed": seed,
        "error": "",
        **describe(trained),
        "base_weights": arm.base_weights,
        "data": study.data.digest,
        "parameters": parameters,
    }
    timing = {
        "began": began,
        "seconds": time.time() - began,
        "epoch_seconds": list(trained.epoch_seconds),
        "resumed_at": list(trained.resumed_at),
        "host": platform.node(),
    }
    return record, timing


def _adopt_recipe(study: Study, variant: Variant) -> Study:
    """Return the study with what a search has found for this arm alone."""
    own = variant.details.get("recipe")
    if not own:
        return study
    comparison = study.comparison
    recipe = dataclasses.replace(comparison.recipe, **own)
    return dataclasses.replace(study, comparison=dataclasses.replace(comparison, recipe=recipe))


def describe(trained: Trained) -> dict[str, Any]:
    """Return what a record says of a training."""
    score = trained.score
    content: dict[str, Any] = {
        "status": "diverged" if score is None else "finished",
        "value": None if score is None else next(iter(score.metrics.values())),
        "metrics": {} if score is None else dict(score.metrics),
        "classes": {} if score is None else dict(score.classes),
        "errors": None if score is None or score.errors is None else list(score.errors),
        "tested": trained.tested,
        "curve": [dict(row) for row in trained.curve],
    }
    if score is not None and score.items is not None:
        content["items"] = list(score.items)
    return content


def check_own(study: Study, model: nn.Module) -> bool:
    """Return whether a model or its data is a user's Lightning one, and refuse what cannot work.

    Raises:
        UsageError: if a LightningModule comes without the name of its metric, or a plain model
            with a LightningDataModule that does not name its classes.
    """
    if isinstance(model, LightningModule):
        if not study.comparison.metric:
            text = explain(
                "a LightningModule needs the name of the metric that decides",
                "no metric",
                "pass metric='test_acc', or whatever its test_step logs",
            )
            raise UsageError(text)
        return True
    if isinstance(study.data, ModuleData):
        if not study.data.classes:
            text = explain(
                "a LightningDataModule for a plain model names its classes",
                f"{study.data.name} without classes or num_classes",
                "set self.num_classes = … in it, or bring a LightningModule of your own",
            )
            raise UsageError(text)
        return True
    return False


def train_weights(study: Study, folder: Path, stream: int, on_epoch: OnEpoch | None) -> nn.Module:
    """Return the base trained by the recipe of the study, with a stream of its own.

    Raises:
        UsageError: if it diverges.
    """
    model = build_base(study, stream)
    mark = f"base {study.comparison.model_digest} {study.data.digest} {study.comparison.recipe}"
    with deterministic("training", stream, device=study.comparison.device):
        trained = train(
            study, model, stream=stream, mark=mark, place=Place(folder), on_epoch=on_epoch
        )
    if trained.score is None:
        text = explain(
            "the base of a comparison must be trained before it is compared",
            f"a training that diverged after epoch {len(trained.curve)}",
            "lower learning_rate, or clip gradients: gradient_clip = 1.0",
        )
        raise UsageError(text)
    return model
