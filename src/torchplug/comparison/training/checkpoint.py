"""One checkpoint a trial: written atomically after each epoch, ignored if damaged or foreign."""

import os
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint

NAME = "checkpoint.ckpt"
_MARK = "torchplug"
_NOT_NEEDED = ("hyper_parameters", "hparams_name", "datamodule_hyper_parameters")


class EpochCheckpoint(Checkpoint):
    """Writes the state after each epoch.

    Args:
        folder: of the trial.
        mark: what the trial is; a checkpoint of another one is never read.
        on_epoch: told of each epoch that is kept.
    """

    def __init__(self, folder: Path, mark: str, on_epoch: Callable[[int], None] | None) -> None:
        self.path, self.mark, self.on_epoch = folder / NAME, mark, on_epoch
        self.plateaus: list[float | None] = []

    def on_save_checkpoint(
        self, trainer: Trainer, _module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Say whose it is, and leave out what could hold any object."""
        for name in _NOT_NEEDED:
            checkpoint.pop(name, None)
        found = trainer.callback_metrics
        values = [found.get(str(config.monitor)) for config in trainer.lr_scheduler_configs]
        checkpoint[_MARK] = {
            "mark": self.mark,
            "epochs": trainer.current_epoch + 1,
            "plateaus": [None if value is None else float(value) for value in values],
        }

    def on_load_checkpoint(
        self, _trainer: Trainer, _module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Take what schedules that follow a metric have not seen."""
        self.plateaus = list(checkpoint[_MARK]["plateaus"])

    def on_train_start(self, trainer: Trainer, _module: LightningModule) -> None:
        """Let them see it: Lightning shows them the metric of an epoch after its checkpoint."""
        for config, value in zip(trainer.lr_scheduler_configs, self.plateaus, strict=False):
            follows = config.reduce_on_plateau and config.interval == "epoch"
            due = trainer.current_epoch % config.frequency == 0
            if follows and due and value is not None:
                config.scheduler.step(value)  # type: ignore[arg-type]
        self.plateaus = []

    def on_train_epoch_end(self, trainer: Trainer, _module: LightningModule) -> None:
        """Write, then rename: there is always a whole file."""
        partial = self.path.with_name(f"{NAME}.{os.getpid()}.tmp")
        trainer.save_checkpoint(partial)
        if trainer.is_global_zero:
            partial.replace(self.path)
            if self.on_epoch is not None:
                self.on_epoch(trainer.current_epoch + 1)


def find_checkpoint(folder: Path, mark: str) -> tuple[Path | None, int]:
    """Return the checkpoint of a trial and its finished epochs; ``None`` and 0 if none is whole."""
    path = folder / NAME
    for left in folder.glob(f"{NAME}.*.tmp"):  # of a process that was killed while it wrote
        left.unlink(missing_ok=True)
    try:
        with zipfile.ZipFile(path) as archive:
            if archive.testzip() is not None:  # torch.load does not look at the checksums
                return None, 0
        content = torch.load(path, map_location="cpu", weights_only=True)
        found = content[_MARK]
    except (OSError, zipfile.BadZipFile, pickle.UnpicklingError, RuntimeError, EOFError, KeyError):
        return None, 0
    return (path, int(found["epochs"])) if found["mark"] == mark else (None, 0)
