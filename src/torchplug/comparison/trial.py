"""One trial: one variant, one seed, trained and tested; its record is equal in every repetition."""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from torchplug.comparison.arms import (
    Study,
    describe_parameters,
    input_channels,
    make_example,
    prepare_model,
)
from torchplug.comparison.recipe import Augment, Recipe
from torchplug.comparison.seeds import deterministic, make_generator
from torchplug.comparison.spec import Variant
from torchplug.comparison.split import Split
from torchplug.errors import UsageError, explain

_TEST_BATCH = 256


def run_trial(
    study: Study, variant: Variant, seed: int, on_epoch: Callable[[int], None] | None = None
) -> dict[str, Any]:
    """Train and test one variant with one seed and return its record.

    The record is a function of its arguments: no clock, no name of the machine. ``status`` is
    ``finished``, or ``diverged`` when the loss is no longer a number.
    """
    comparison = study.comparison
    arm = prepare_model(study, variant, seed)
    with deterministic("training", variant.stream(seed)):
        training = _Training(study, arm.model.to(comparison.device), variant.stream(seed))
        curve = training.run(on_epoch)
        finished = len(curve) == comparison.recipe.epochs
        wrong = training.find_errors(study.data.test) if finished else None
    tested = len(study.data.test)
    return {
        "format": 1,
        "specification": comparison.digest(variant, seed),
        "variant": variant.name,
        "seed": seed,
        "status": "finished" if finished else "diverged",
        "accuracy": None if wrong is None else 100 * (tested - len(wrong)) / tested,
        "errors": wrong,
        "tested": tested,
        "curve": curve,
        "base_weights": arm.base_weights,
        "data": study.data.digest,
        "parameters": describe_parameters(arm),
    }


class _Training:
    """The training of one model: plain, short, and the same for all variants."""

    def __init__(self, study: Study, model: nn.Module, seed: int) -> None:
        self.recipe: Recipe = study.comparison.recipe
        self.data, self.model, self.seed = study.data, model, seed
        self.device = study.comparison.device
        self.channels = input_channels(model)
        self.mean, self.deviation = study.data.statistics()
        self.size = min(self.recipe.batch_size, len(study.data.train))
        # the last, smaller batch is left out: a batch of one has no statistics
        self.starts = range(0, len(study.data.train) - self.size + 1, self.size)
        self.optimizer = self.recipe.make_optimizer(model.parameters())
        steps = self.recipe.epochs * len(self.starts)
        self.schedule = self.recipe.make_schedule(self.optimizer, steps)
        self.loss = nn.CrossEntropyLoss(label_smoothing=self.recipe.label_smoothing)

    def run(self, on_epoch: Callable[[int], None] | None) -> list[dict[str, float]]:
        """Train all epochs and return the learning curve; it ends early if training diverges."""
        curve = []
        for epoch in range(1, self.recipe.epochs + 1):
            loss = self._train_epoch(epoch)
            if not math.isfinite(loss):
                break
            validation = self.data.validation
            right = len(validation) - len(self.find_errors(validation))
            accuracy = 100 * right / len(validation)
            curve.append({"epoch": epoch, "loss": loss, "validation_accuracy": accuracy})
            if on_epoch is not None:
                on_epoch(epoch)
        return curve

    def _train_epoch(self, epoch: int) -> float:
        train = self.data.train
        order = torch.randperm(len(train), generator=make_generator("order", self.seed, epoch))
        shifts = make_generator("augment", self.seed, epoch)
        self.model.train()
        total = 0.0
        for start in self.starts:
            chosen = order[start : start + self.size]
            images = augment(self._prepare(train.images[chosen]), self.recipe.augment, shifts)
            loss = self.loss(
                self.model(images.to(self.device)), train.labels[chosen].to(self.device)
            )
            total += float(loss.detach())
            if not math.isfinite(total):
                return math.nan
            self.optimizer.zero_grad()
            loss.backward()
            self.optimizer.step()
            self.schedule.step()
        return total / len(self.starts)

    def find_errors(self, split: Split) -> list[int]:
        """Return the indices of the images that the model gets wrong."""
        self.model.eval()
        wrong: list[int] = []
        with torch.no_grad():
            for start in range(0, len(split), _TEST_BATCH):
                rows = slice(start, start + _TEST_BATCH)
                scores = self.model(self._prepare(split.images[rows]).to(self.device)).cpu()
                missed = scores.argmax(1) != split.labels[rows]
                wrong += [start + int(i) for i in missed.nonzero().flatten()]
        return wrong

    def _prepare(self, images: Tensor) -> Tensor:
        images = (images.float() - self.mean) / self.deviation
        if self.channels == 3 and images.shape[1] == 1:
            images = images.expand(-1, 3, -1, -1)
        return images


def augment(images: Tensor, kind: Augment, generator: torch.Generator) -> Tensor:
    """Shift each image by up to an eighth of its size, filled with the mean, and mirror half.

    The draws depend on the generator and the batch size only, so every variant sees the same.
    """
    if kind == "none":
        return images
    count, channels, height, width = images.shape
    reach = max(height, width) // 8
    moves = torch.randint(0, 2 * reach + 1, (2, count), generator=generator)
    mirrored = torch.rand(count, generator=generator) < 0.5
    padded = nn.functional.pad(images, (reach, reach, reach, reach))
    rows = moves[0][:, None] + torch.arange(height)
    columns = moves[1][:, None] + torch.arange(width)
    if kind == "shift_flip":
        columns = torch.where(mirrored[:, None], columns.flip(1), columns)
    sample = torch.arange(count)[:, None, None, None]
    channel = torch.arange(channels)[:, None, None]
    return padded[sample, channel, rows[:, None, :, None], columns[:, None, None, :]]


def check_model(study: Study, model: nn.Module) -> None:
    """Refuse a model that does not classify this data.

    Raises:
        UsageError: naming what it returned.
    """
    data = study.data
    expected = input_channels(model)
    if expected not in {None, data.channels} and (expected, data.channels) != (3, 1):
        text = explain(
            f"the model must read the {data.channels} channels of {data.name}",
            f"a first convolution of {expected} channels",
            "use a model that takes in_channels=, or other data",
        )
        raise UsageError(text)
    shape, count = make_example(model, data), len(data.classes)
    model.eval()
    try:
        with torch.no_grad():
            output = model(torch.zeros(shape))
    except Exception as error:
        text = explain(
            f"the model must run on the images of {data.name}",
            f"{type(error).__name__}: {error} for an input of shape {shape}",
            "choose a model for such images, or set the image size",
        )
        raise UsageError(text) from error
    got = tuple(output.shape) if isinstance(output, Tensor) else type(output).__name__
    if got != (1, count):
        text = explain(
            f"compare trains classifiers: the model must return scores (N, {count})",
            f"{got}",
            "use a model that takes num_classes=, or wrap it: file.py:factory",
        )
        raise UsageError(text)
