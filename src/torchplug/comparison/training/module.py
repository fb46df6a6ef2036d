"""The plugged model as Lightning trains it."""

from collections.abc import Sequence
from typing import Any

import torch
from lightning.pytorch import LightningModule
from torch import Tensor, nn

from torchplug.comparison.recipe import Recipe
from torchplug.comparison.tasks.base import Meter, Score, Task


class TaskModule(LightningModule):
    """A model with the loss, the metrics and the recipe of its task.

    Args:
        model: plugged.
        task: of the comparison.
        recipe: of the comparison.
        classes: their names.
        steps: of the whole training, for the schedule.
    """

    def __init__(
        self, model: nn.Module, task: Task, recipe: Recipe, classes: Sequence[str], steps: int
    ) -> None:
        super().__init__()
        self.model, self.task, self.recipe, self.steps = model, task, recipe, steps
        self.classes = tuple(classes)
        self.meter: Meter | None = None
        self.seen = 0
        self.score: Score | None = None

    def configure_optimizers(self) -> Any:
        """Return the optimizer and a schedule of single steps."""
        optimizer = self.recipe.make_optimizer(self.model.parameters())
        schedule = self.recipe.make_schedule(optimizer, self.steps)
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": schedule, "interval": "step"},
        }

    def transfer_batch_to_device(
        self, batch: Any, device: torch.device, dataloader_idx: int
    ) -> Any:
        """Move a batch; on the processor it is there: to look at every index would cost more."""
        if device.type == "cpu":
            return batch
        return super().transfer_batch_to_device(batch, device, dataloader_idx)

    def forward(self, images: Tensor) -> Any:
        """Return what the model returns."""
        return self.model(images)

    def training_step(self, batch: Any, _: int) -> Tensor:
        """Return the loss of one batch."""
        return self.task.compute_loss(self.model, batch[0], batch[1], self.recipe)

    def _begin(self) -> None:
        self.meter, self.seen = self.task.make_meter(self.classes, self.device), 0

    def _evaluate(self, batch: Any) -> None:
        images, targets = batch[:2]
        # a user's own loader does not name its items: they are counted
        indices = batch[2] if len(batch) > 2 else range(self.seen, self.seen + len(images))
        self.seen += len(images)
        if self.meter is None:  # pragma: no cover - Lightning begins an evaluation first
            self._begin()
        predictions = self.task.predict(self.model, images, targets)
        self.meter.update(predictions, targets, indices)  # type: ignore[union-attr]

    def _end(self) -> None:
        if self.meter is not None:
            self.score, self.meter = self.meter.compute(), None

    def on_validation_epoch_start(self) -> None:
        """Begin a meter."""
        self._begin()

    def validation_step(self, batch: Any, _: int) -> None:
        """Take one batch of the validation images."""
        self._evaluate(batch)

    def on_validation_epoch_end(self) -> None:
        """Keep the score."""
        self._end()

    def on_test_epoch_start(self) -> None:
        """Begin a meter."""
        self._begin()

    def test_step(self, batch: Any, *_: Any) -> None:
        """Take one batch of the test images."""
        self._evaluate(batch)

    def on_test_epoch_end(self) -> None:
        """Keep the score."""
        self._end()


def share_buffers(module: nn.Module) -> None:
    """Give the processes of one trial the same running statistics before an evaluation."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        for buffer in module.buffers():
            torch.distributed.broadcast(buffer, src=0)
