"""Loaders whose order of items depends on (stream, epoch) only, so that a resume repeats it."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, Sampler

from torchplug.comparison.arms import input_channels
from torchplug.comparison.recipe import Augment, Recipe
from torchplug.comparison.seeds import make_generator
from torchplug.comparison.tasks.base import Task
from torchplug.comparison.training.augment import (
    Transform,
    augment_batch,
    draw,
    keep_generators,
    make_transform,
    seed_generators,
)

Key = tuple[int, list[int]]
"""An epoch, counted from 1 (0 for an evaluation), and the indices of one batch."""


class Shuffled(Sampler[Any]):
    """A permutation of items that depends on (stream, epoch) only.

    Lightning calls :meth:`set_epoch` before each epoch. Yields single indices, for a user's own
    loader; :class:`Batches` yields those of batches.
    """

    def __init__(self, count: int, stream: int, *, rank: int = 0, world: int = 1) -> None:
        self.count, self.stream, self.rank, self.world = count, stream, rank, world
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Take the number of an epoch, from 0."""
        self.epoch = epoch

    def order(self) -> list[int]:
        """Return the permutation of all items."""
        generator = make_generator("order", self.stream, self.epoch + 1)
        return torch.randperm(self.count, generator=generator).tolist()

    def __len__(self) -> int:
        return self.count // self.world

    def __iter__(self) -> Iterator[Any]:
        yield from self.order()[self.rank : len(self) * self.world : self.world]


class Batches(Shuffled):
    """The batches of a permutation; each process of a trial gets its part of every batch."""

    def __init__(
        self, count: int, size: int, stream: int, *, rank: int = 0, world: int = 1
    ) -> None:
        super().__init__(count, stream, rank=rank, world=world)
        self.size = min(size, count)

    def __len__(self) -> int:
        # the last, smaller batch is left out: a batch of one has no statistics
        return self.count // self.size

    def __iter__(self) -> Iterator[Key]:
        order = self.order()
        for start in range(0, len(self) * self.size, self.size):
            yield self.epoch + 1, order[start + self.rank : start + self.size : self.world]


class InOrder(Sampler[Key]):
    """All items in order, for an evaluation."""

    def __init__(self, count: int, size: int, *, rank: int = 0, world: int = 1) -> None:
        self.indices, self.size = range(rank, count, world), size

    def __len__(self) -> int:
        return math.ceil(len(self.indices) / self.size)

    def __iter__(self) -> Iterator[Key]:
        for start in range(0, len(self.indices), self.size):
            yield 0, list(self.indices[start : start + self.size])


@dataclass(frozen=True)
class Preparation:
    """How items become what a model reads: augmented, normalized, of the channels it has."""

    task: Task
    augment: Augment
    mean: Tensor
    deviation: Tensor
    transform: Transform | None
    """Of single items in training."""

    widen: bool
    """Whether gray images are shown to a model that reads color."""

    def prepare(self, images: Tensor, targets: Any, draws: Tensor | None) -> tuple[Tensor, Any]:
        """Return a batch as the model reads it; ``draws`` are there in training."""
        images = self.task.normalize(images, self.mean, self.deviation)
        if draws is not None and self.task.name != "detection":  # boxes moved with their image
            masks = targets if self.task.name == "segmentation" else None
            images, masks = augment_batch(images, masks, self.augment, draws)
            targets = targets if masks is None else masks
        return images.expand(-1, 3, -1, -1) if self.widen else images, targets


def make_preparation(task: Task, recipe: Recipe, data: Any, model: nn.Module) -> Preparation:
    """Return how the images of ``data`` are prepared for ``model``."""
    mean, deviation = data.statistics()
    fill = [round(value) for value in mean.flatten().tolist()]
    return Preparation(
        task=task,
        augment=recipe.augment,
        mean=mean,
        deviation=deviation,
        transform=make_transform(recipe.augment, task.name, data.shape[2:], fill),
        widen=input_channels(model) == 3 and data.channels == 1,
    )


class BatchReader(Dataset[Any]):
    """Reads the items of a key; those held in memory are taken at once.

    Args:
        items: a part of the data.
        preparation: of images and targets.
        stream: of the trial.
        indices: whether a batch names its items: ``(images, targets, indices)``. A user's own
            LightningModule gets ``(images, targets)``.
    """

    def __init__(
        self, items: Any, preparation: Preparation, stream: int, *, indices: bool = True
    ) -> None:
        self.items, self.preparation = items, preparation
        self.stream, self.indices = stream, indices
        self._draws: tuple[int, Tensor] = (0, torch.empty(0))

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, key: Key) -> Any:
        epoch, indices = key
        images, targets = self._read(epoch, indices)
        draws = self._draw(epoch)[indices] if epoch else None
        batch = self.preparation.prepare(images, targets, draws)
        return (*batch, indices) if self.indices else batch

    def _read(self, epoch: int, indices: list[int]) -> tuple[Tensor, Any]:
        transform = self.preparation.transform if epoch else None
        targets = self._held()
        if transform is None and isinstance(targets, Tensor):
            return self.items.images[indices], targets[indices]
        rows = [self.items[index] for index in indices]
        if transform is not None:
            with keep_generators():
                for place, (index, row) in enumerate(zip(indices, rows, strict=True)):
                    seed_generators("augment", self.stream, epoch, index)
                    rows[place] = transform(*row)
        images = torch.stack([image for image, _ in rows])
        return images, self.preparation.task.collate([target for _, target in rows])

    def _held(self) -> Any:
        if not isinstance(getattr(self.items, "images", None), Tensor):
            return None
        return getattr(self.items, "targets", getattr(self.items, "labels", None))

    def _draw(self, epoch: int) -> Tensor:
        if self._draws[0] != epoch:
            self._draws = epoch, draw(self.stream, epoch, len(self.items))
        return self._draws[1]


def make_loader(reader: BatchReader, sampler: Sampler[Any], *, workers: int = 0) -> DataLoader[Any]:
    """Return a loader of whole batches."""
    return DataLoader(
        reader,
        batch_size=None,
        sampler=sampler,
        num_workers=workers,
        persistent_workers=False,
        # the loader would draw from the global generator otherwise
        generator=torch.Generator().manual_seed(0),
    )
