"""A data set as a comparison sees it: three parts, fixed for all trials."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from torchplug.comparison.data.items import MemoryItems
from torchplug.comparison.spec import TaskName

_LOOKED_AT = 2_000
"""Training images that mean and deviation are taken over, where there are more."""


@dataclass(frozen=True)
class TaskData:
    """A data set with its split.

    Training images train, validation images draw the learning curves, and test images are seen
    once, after the last epoch. An item of a part is ``(image, target)``: the image is a byte tensor
    ``(C, H, W)`` of one size for the whole set; the target is

    - for classification, the class number;
    - for segmentation, a byte mask ``(H, W)`` of class numbers, 255 where nothing is asked;
    - for detection, ``{"boxes": (n, 4) float32, "labels": (n,) int64}``, the corners x1, y1, x2, y2
      in pixels and the classes from 0.

    Parts are map-style datasets and can be pickled. Small ones are held in memory and have
    ``images`` and ``targets``.
    """

    name: str
    task: TaskName
    classes: tuple[str, ...]
    train: Any
    validation: Any
    test: Any
    digest: str
    """Hash of the list of samples: two records with one digest saw the same data."""

    shape: tuple[int, int, int, int]
    """Shape of a batch of one."""

    notes: tuple[str, ...] = ()
    """What a reader of the result should know, such as images that are in two parts."""

    @property
    def channels(self) -> int:
        """1 for gray images, 3 for color."""
        return self.shape[1]

    def statistics(self) -> tuple[Tensor, Tensor]:
        """Return mean and deviation of each channel, ``(C, 1, 1)``, on the scale 0 to 255.

        They are those of the training images; of more than 2,000, as many at even distances.
        """
        total = squares = torch.zeros(self.channels, dtype=torch.float64)
        count = 0
        for start in range(0, len(indices := self._choose()), 256):
            values = self._stack(indices[start : start + 256]).double()
            total = total + values.sum((0, 2, 3))
            squares = squares + values.square().sum((0, 2, 3))
            count += values.numel() // self.channels
        mean = total / count
        deviation = (squares / count - mean.square()).clamp(min=1e-12).sqrt()
        return mean.float()[:, None, None], deviation.float()[:, None, None]

    def _choose(self) -> Tensor:
        number = len(self.train)
        return torch.arange(min(number, _LOOKED_AT)) * number // min(number, _LOOKED_AT)

    def _stack(self, indices: Tensor) -> Tensor:
        if isinstance(self.train, MemoryItems):
            return self.train.images[indices]
        return torch.stack([self.train[int(index)][0] for index in indices])
