"""What happens around each epoch: random streams, the learning curve, the average of weights."""

import math
import time
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor, nn

from torchplug.comparison.seeds import derive_seed
from torchplug.comparison.tasks.base import Score
from torchplug.comparison.training.augment import seed_generators
from torchplug.comparison.training.module import share_buffers

_LOOK_EVERY = 10


class DivergedError(Exception):
    """The loss is no number any more."""


class Streams(Callback):
    """Derives the global random streams anew for each epoch, so that a resumed trial repeats them.

    Dropout, drop path, and whatever a model or a data set of the user draws from torch's, Python's
    or numpy's generators depends on (stream, epoch) and, with several devices, on the process.
    """

    def __init__(self, stream: int, generators: tuple[torch.Generator, ...] = ()) -> None:
        self.stream, self.generators = stream, generators

    def on_train_epoch_start(self, trainer: Trainer, _module: LightningModule) -> None:
        """Seed for training."""
        seed_generators("training", self.stream, trainer.current_epoch + 1, trainer.global_rank)
        seed_loaders(self.generators, self.stream, trainer.current_epoch)

    def on_validation_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Seed for validation."""
        seed_generators("validation", self.stream, trainer.current_epoch + 1, trainer.global_rank)
        share_buffers(pl_module)

    def on_test_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Seed for the test."""
        seed_generators("test", self.stream, trainer.global_rank)
        share_buffers(pl_module)


def seed_loaders(generators: tuple[torch.Generator, ...], stream: int, epoch: int) -> None:
    """Seed what the worker processes of a user's loader are seeded from; ``epoch`` is from 0."""
    for number, generator in enumerate(generators):
        generator.manual_seed(derive_seed("workers", stream, epoch + 1, number))


class Curve(Callback):
    """Keeps the loss and the validation of each epoch, and ends a training that diverges.

    Args:
        metric: of a user's module, to look for among what it logged; empty for a task's own.
    """

    def __init__(self, metric: str = "") -> None:
        self.metric = metric
        self.curve: list[dict[str, Any]] = []
        self.seconds: list[float] = []
        self.resumed: list[int] = []
        self._total: Tensor | float = 0.0
        self._steps, self._began = 0, time.monotonic()

    def state_dict(self) -> dict[str, Any]:
        """Return what a checkpoint keeps."""
        return {"curve": self.curve, "seconds": self.seconds, "resumed": self.resumed}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from a checkpoint."""
        self.curve, self.seconds = list(state_dict["curve"]), list(state_dict["seconds"])
        self.resumed = [*state_dict["resumed"], len(self.curve)]

    def on_train_start(self, trainer: Trainer, _module: LightningModule) -> None:
        """Write the rows of earlier epochs again: Lightning begins a new file."""
        for row, seconds in zip(self.curve, self.seconds, strict=True):
            _log(trainer, row, seconds)

    def on_train_epoch_start(self, _trainer: Trainer, _module: LightningModule) -> None:
        """Begin an epoch."""
        self._total, self._steps, self._began = 0.0, 0, time.monotonic()

    def on_train_batch_end(
        self, trainer: Trainer, _module: LightningModule, outputs: Any, *_: Any
    ) -> None:
        """Add a loss; one that is no number ends the training at once."""
        loss = outputs["loss"] if isinstance(outputs, dict) else outputs
        if not isinstance(loss, Tensor):
            return
        self._steps += 1
        if loss.device.type == "cpu" and trainer.world_size == 1:
            self._total = float(self._total) + float(loss.detach())
            if not math.isfinite(self._total):
                raise DivergedError
        else:  # to look at every step would wait for the device every step
            self._total = self._total + loss.detach().double()
            if self._steps % _LOOK_EVERY == 0:
                self._mean_loss(trainer)

    def _mean_loss(self, trainer: Trainer) -> float:
        mean = self._total / max(self._steps, 1)
        if isinstance(mean, Tensor) and trainer.world_size > 1:
            mean = trainer.strategy.reduce(mean, reduce_op="mean")
        if not math.isfinite(mean):
            raise DivergedError
        return float(mean)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Add the epoch to the curve and to the logs."""
        row = {
            "epoch": trainer.current_epoch + 1,
            "loss": self._mean_loss(trainer) if self._steps else None,
            "validation": self._find_validation(trainer, pl_module),
        }
        self.curve.append(row)
        self.seconds.append(time.monotonic() - self._began)
        _log(trainer, row, self.seconds[-1])

    def _find_validation(self, trainer: Trainer, module: LightningModule) -> float | None:
        score = getattr(module, "score", None)
        if not self.metric:
            return next(iter(score.metrics.values())) if isinstance(score, Score) else None
        for word in ("val", "valid", "validation"):
            value = trainer.callback_metrics.get(self.metric.replace("test", word))
            if value is not None and "test" in self.metric:
                return float(value)
        return None


def _log(trainer: Trainer, row: dict[str, Any], seconds: float) -> None:
    values = {key: value for key, value in row.items() if value is not None} | {"seconds": seconds}
    for logger in trainer.loggers:
        logger.log_metrics(values, step=row["epoch"])
        logger.save()


class Averaged(Callback):
    """An exponential moving average of weights and buffers, which is validated and tested.

    Polyak and Juditsky's averaging (1992) with the warm-up of TensorFlow's
    ``ExponentialMovingAverage``: the decay is at most ``(1 + step) / (10 + step)``.
    """

    def __init__(self, decay: float) -> None:
        self.decay, self.step = decay, 0
        self.average: dict[str, Tensor] = {}
        self._kept: dict[str, Tensor] = {}

    def state_dict(self) -> dict[str, Any]:
        """Return what a checkpoint keeps."""
        return {"step": self.step, "average": self.average}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from a checkpoint."""
        self.step, self.average = state_dict["step"], dict(state_dict["average"])

    def on_train_batch_end(self, _trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        """Move the average towards the weights."""
        weights = _floats(pl_module)
        if not self.average:
            self.average = {name: value.clone() for name, value in weights.items()}
        self.step += 1
        decay = min(self.decay, (1 + self.step) / (10 + self.step))
        for name, value in weights.items():
            average = self.average[name] = self.average[name].to(value.device)
            average.lerp_(value, 1 - decay)

    def on_validation_start(self, _trainer: Trainer, pl_module: LightningModule) -> None:
        """Put the average in the place of the weights."""
        self._exchange(pl_module)

    def on_validation_end(self, _trainer: Trainer, pl_module: LightningModule) -> None:
        """Put the weights back."""
        self._restore(pl_module)

    def on_test_start(self, _trainer: Trainer, pl_module: LightningModule) -> None:
        """Put the average in the place of the weights."""
        self._exchange(pl_module)

    def on_test_end(self, _trainer: Trainer, pl_module: LightningModule) -> None:
        """Put the weights back."""
        self._restore(pl_module)

    def _exchange(self, module: nn.Module) -> None:
        for name, value in _floats(module).items() if self.average else ():
            self._kept[name] = value.clone()
            value.copy_(self.average[name])

    def _restore(self, module: nn.Module) -> None:
        weights = _floats(module)
        for name, value in self._kept.items():
            weights[name].copy_(value)
        self._kept = {}


def _floats(module: nn.Module) -> dict[str, Tensor]:
    return {
        name: value.detach()
        for name, value in module.state_dict().items()
        if value.is_floating_point()
    }
