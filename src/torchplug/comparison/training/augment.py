"""Augmentation whose draws depend on (stream, epoch, index of the item) and on nothing else.

The order of items, the size of a batch, the number of processes that read and the variant do not
matter. ``shift`` and ``flip`` work on whole batches; what has to resample or to move boxes goes
item by item through torchvision's transforms, version 2.
"""

import contextlib
import random
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from torchplug.comparison.recipe import Augment
from torchplug.comparison.seeds import derive_seed, make_generator
from torchplug.errors import import_extra

DRAWS = 3
"""Numbers an item: two for the shift, one for mirroring."""

_IGNORED = 255
_REACH = 8  # a shift goes up to this part of the side
_SCALES, _RATIOS = (0.5, 1.0), (3 / 4, 4 / 3)
_SMALLEST_BOX = 2.0

Transform = Callable[[Tensor, Any], tuple[Tensor, Any]]


def draw(stream: int, epoch: int, count: int) -> Tensor:
    """Return the draws ``(count, 3)`` in [0, 1) of one epoch; row i is of item i."""
    return torch.rand(count, DRAWS, generator=make_generator("augment", stream, epoch))


def augment_batch(
    images: Tensor, masks: Tensor | None, kind: Augment, draws: Tensor
) -> tuple[Tensor, Tensor | None]:
    """Shift and mirror normalized images, and their masks with them.

    What comes in from outside an image is its mean, 0; in a mask it is ignored.

    Args:
        images: ``(N, C, H, W)``.
        masks: ``(N, H, W)`` or ``None``.
        kind: ``shift``, ``flip``, ``shift_flip``; others change nothing.
        draws: ``(N, 3)`` in [0, 1).
    """
    if kind not in {"shift", "flip", "shift_flip"}:
        return images, masks
    height, width = images.shape[-2:]
    reach = max(height, width) // _REACH if "shift" in kind else 0
    moves = (draws[:, :2] * (2 * reach + 1)).long()
    rows = moves[:, :1] + torch.arange(height, device=draws.device)
    columns = moves[:, 1:] + torch.arange(width, device=draws.device)
    if "flip" in kind:
        columns = torch.where(draws[:, 2:] < 0.5, columns.flip(1), columns)
    pad = (reach, reach, reach, reach)
    moved = _gather(nn.functional.pad(images, pad), rows, columns)
    if masks is None:
        return moved, None
    padded = nn.functional.pad(masks[:, None], pad, value=_IGNORED)
    return moved, _gather(padded, rows, columns)[:, 0]


def _gather(images: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    sample = torch.arange(len(images), device=images.device)[:, None, None, None]
    channel = torch.arange(images.shape[1], device=images.device)[:, None, None]
    return images[sample, channel, rows[:, None, :, None], columns[:, None, None, :]]


def make_transform(
    kind: Augment, task: str, size: Sequence[int], fill: Sequence[int]
) -> Transform | None:
    """Return what works on one item ``(image, target)`` of bytes; ``None`` where none is needed.

    Args:
        kind: of the recipe.
        task: only detection shifts and mirrors here, since boxes move with the image.
        size: height and width of images.
        fill: what comes in from outside, a value a channel.
    """
    parts = _choose(kind, task)
    if not parts:
        return None
    transforms = import_extra("torchvision.transforms.v2", extra="compare", purpose="augmentation")
    reach = max(size) // _REACH
    make: dict[str, Callable[[], Any]] = {
        "shift": lambda: transforms.RandomCrop(tuple(size), padding=reach, fill=list(fill)),
        "flip": transforms.RandomHorizontalFlip,
        "scale": lambda: transforms.RandomResizedCrop(
            tuple(size), scale=_SCALES, ratio=_RATIOS, antialias=True
        ),
        "trivial": lambda: transforms.TrivialAugmentWide(fill=list(fill)),
        "boxes": lambda: transforms.SanitizeBoundingBoxes(min_size=_SMALLEST_BOX),
    }
    return _Items(transforms.Compose([make[part]() for part in parts]), task)


def _choose(kind: Augment, task: str) -> list[str]:
    parts = [part for part in ("shift", "scale", "trivial", "flip") if part in kind]
    if kind == "trivial":
        parts.append("flip")
    if task != "detection" and not set(parts) & {"scale", "trivial"}:
        return []  # shifted and mirrored by whole batches
    return [*parts, "boxes"] if task == "detection" and parts else parts


class _Items:
    """Tells torchvision what a target is, so that it moves with the image."""

    def __init__(self, transform: Any, task: str) -> None:
        self.transform, self.task = transform, task

    def __call__(self, image: Tensor, target: Any) -> tuple[Tensor, Any]:
        kinds = import_extra("torchvision.tv_tensors", extra="compare", purpose="augmentation")
        seen = kinds.Image(image)
        if self.task == "classification":
            return self.transform(seen).as_subclass(Tensor), target
        if self.task == "segmentation":
            moved, mask = self.transform(seen, kinds.Mask(target))
            return moved.as_subclass(Tensor), mask.as_subclass(Tensor)
        size = tuple(image.shape[-2:])
        boxes = kinds.BoundingBoxes(target["boxes"], format="XYXY", canvas_size=size)
        moved, found = self.transform(seen, {"boxes": boxes, "labels": target["labels"]})
        kept = {"boxes": found["boxes"].as_subclass(Tensor), "labels": found["labels"]}
        return moved.as_subclass(Tensor), kept


@contextlib.contextmanager
def keep_generators() -> Iterator[None]:
    """Leave the global generators as they were before."""
    states = torch.get_rng_state(), random.getstate(), np.random.get_state()
    try:
        yield
    finally:
        torch.set_rng_state(states[0])
        random.setstate(states[1])
        np.random.set_state(states[2])


def seed_generators(*purpose: str | int) -> None:
    """Seed torch's (all devices), Python's and numpy's global generators for one purpose."""
    seed = derive_seed(*purpose)
    torch.manual_seed(seed)
    random.seed(seed)
    np.random.seed(seed % 2**32)
