"""The two kinds of parts: held in memory, or read from disk item by item."""

from collections.abc import Sequence
from typing import Any, TypeAlias

import torch
from torch import Tensor
from torch.utils.data import Dataset

from torchplug.comparison.data.pixels import (
    Frame,
    crop_square,
    read_image,
    read_mask,
    to_tensor,
)
from torchplug.comparison.data.samples import Boxes, Sample
from torchplug.errors import UsageError, explain

Target: TypeAlias = int | Tensor | dict[str, Tensor]
Item: TypeAlias = tuple[Tensor, Target]


class MemoryItems(Dataset[Item]):
    """Images ``(N, C, H, W)`` of bytes and their targets.

    Args:
        images: as stored.
        targets: class numbers ``(N,)``, masks ``(N, H, W)``, or a list of boxes with labels.
    """

    def __init__(self, images: Tensor, targets: Tensor | list[dict[str, Tensor]]) -> None:
        self.images, self.targets = images, targets

    @property
    def labels(self) -> Any:
        """The targets; for classification class numbers ``(N,)``."""
        return self.targets

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> Item:
        target = self.targets[index]
        if isinstance(target, dict):
            # a training may move boxes in place
            return self.images[index], {key: value.clone() for key, value in target.items()}
        return self.images[index], int(target) if target.ndim == 0 else target


class LazyItems(Dataset[Item]):
    """Samples that are read when asked for.

    Args:
        samples: where the images lie.
        size: side of the square that they are brought to.
        channels: 1 or 3.
        classes: their number, which masks are checked against.
    """

    def __init__(self, samples: Sequence[Sample], size: int, channels: int, classes: int) -> None:
        self.samples, self.size, self.channels, self.classes = samples, size, channels, classes

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> Item:
        sample = self.samples[index]
        image = read_image(sample.image, self.channels)
        target = sample.target
        if isinstance(target, int):
            return to_tensor(crop_square(image, self.size)), target
        frame = Frame(self.size, *image.size)
        if isinstance(target, Boxes):
            if image.size != target.frame:
                raise UsageError(_explain_frame(sample, image.size, target.frame))
            return to_tensor(frame.fit_image(image)), frame.fit_boxes(target)
        mask = frame.fit_mask(read_mask(target, self.classes, image.size))
        return to_tensor(frame.fit_image(image)), to_tensor(mask)[0]


def hold(items: LazyItems) -> MemoryItems:
    """Read all items into memory."""
    images = torch.empty((len(items), items.channels, items.size, items.size), dtype=torch.uint8)
    targets: list[Any] = []
    for index in range(len(items)):
        images[index], target = items[index]
        targets.append(target)
    if not targets or isinstance(targets[0], dict):
        return MemoryItems(images, targets)
    if isinstance(targets[0], int):
        return MemoryItems(images, torch.tensor(targets))
    return MemoryItems(images, torch.stack(targets))


def _explain_frame(sample: Sample, got: tuple[int, int], drawn: tuple[int, int]) -> str:
    return explain(
        "boxes must have been drawn on the image as it is stored",
        f"{sample.image.name} of {got[0]} x {got[1]} pixels with boxes for {drawn[0]} x {drawn[1]}",
        "write the annotations anew, or restore the image",
    )
