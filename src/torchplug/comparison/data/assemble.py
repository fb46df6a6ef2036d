"""Make a data set of what a reader listed: checked, split, hashed, and held in memory if small."""

import hashlib
import warnings
from collections.abc import Iterable, Mapping

import numpy as np
from torch.utils.data import Dataset

from torchplug.comparison.data.dividing import divide
from torchplug.comparison.data.items import Item, LazyItems, hold
from torchplug.comparison.data.leaks import find_copies, find_shared_groups, find_twins
from torchplug.comparison.data.pixels import IGNORED, measure_image, read_mask
from torchplug.comparison.data.samples import Boxes, Listing, Sample
from torchplug.comparison.data.task_data import TaskData
from torchplug.comparison.spec import TaskName
from torchplug.errors import UsageError, explain

IMAGE_SIZES = {"classification": 64, "segmentation": 256, "detection": 256}
"""Side of the square that images are brought to: small enough for a first screen."""

MEMORY_LIMIT = 256 * 2**20
"""Bytes of pixels up to which a set is held in memory."""

_LOOKED_AT = 64


class DataWarning(UserWarning):
    """Something about the data that makes results look better than they are."""


def assemble(
    listing: Listing, task: TaskName, image_size: int | None, *, check: bool = True
) -> TaskData:
    """Return the data set of a list of samples.

    Args:
        listing: from a reader.
        task: what its targets are for.
        image_size: side of the square that images are brought to: classification cuts out the
            middle, the other tasks pad. ``None`` is the set's own size or :data:`IMAGE_SIZES`.
        check: look for broken files and for images in two parts. Only a worker whose driver has
            looked leaves it out; the digest is the same.

    Raises:
        UsageError: naming the sample that cannot be used.
    """
    for samples in listing.parts.values():
        _check_targets(samples, len(listing.classes))
    parts = divide(listing.parts, listing.name)
    _check_trained(listing, parts)
    size = image_size or listing.native or IMAGE_SIZES[task]
    held = _count_bytes(parts, size, listing.channels) <= MEMORY_LIMIT
    if check and not held:
        _open_heads(parts)
    if check and task == "segmentation":
        _check_background(parts["train"], len(listing.classes))
    lazy = {
        part: LazyItems(samples, size, listing.channels, len(listing.classes))
        for part, samples in parts.items()
    }
    items: Mapping[str, Dataset[Item]] = (
        {part: hold(each) for part, each in lazy.items()} if held else lazy
    )
    notes = _find_leaks(parts, items, held) if check and not listing.published else ()
    for note in notes:
        warnings.warn(f"{listing.name}: {note}", DataWarning, stacklevel=3)
    return TaskData(
        name=listing.name,
        task=task,
        classes=listing.classes,
        digest=_hash(listing, parts),
        shape=(1, listing.channels, size, size),
        notes=notes,
        **items,
    )


def _find_leaks(
    parts: Mapping[str, list[Sample]], items: Mapping[str, Dataset[Item]], held: bool
) -> tuple[str, ...]:
    found = [find_shared_groups(parts), find_twins(parts, items) if held else find_copies(parts)]
    return tuple(note for note in found if note)


def _count_bytes(parts: Mapping[str, list[Sample]], size: int, channels: int) -> int:
    return sum(len(samples) for samples in parts.values()) * size * size * (channels + 1)


def _open_heads(parts: Mapping[str, list[Sample]]) -> None:
    """Open every image without reading its pixels: enough to name what is missing or no image."""
    for samples in parts.values():
        for sample in samples:
            if not isinstance(sample.target, Boxes):  # their reader measured them
                measure_image(sample.image)


def _check_background(samples: list[Sample], classes: int) -> None:
    """Refuse masks drawn in black and white: 255 would be ignored, and nothing be learned."""
    chosen = samples[:: max(len(samples) // _LOOKED_AT, 1)][:_LOOKED_AT]
    values: set[int] = set()
    for sample in chosen:
        if isinstance(sample.target, int | Boxes):
            return
        values.update(np.unique(np.array(read_mask(sample.target, classes, None))).tolist())
    if IGNORED in values and len(values - {IGNORED}) == 1:
        text = explain(
            f"masks hold class numbers; {IGNORED} marks ignored pixels",
            f"masks with nothing but {sorted(values)}",
            "set the 255 of your class to its number, such as 1",
        )
        raise UsageError(text)


def _check_trained(listing: Listing, parts: Mapping[str, list[Sample]]) -> None:
    """Refuse a class that only held-out images show: no variant can learn it."""
    labels = {
        part: {sample.target for sample in samples if isinstance(sample.target, int)}
        for part, samples in parts.items()
    }
    unseen = sorted((labels["validation"] | labels["test"]) - labels["train"])
    if unseen:
        names = ", ".join(listing.classes[label] for label in unseen[:5])
        text = explain(
            f"every class of {listing.name} needs training images",
            f"none of {names}, which held-out images show",
            "add training images of it, or take the class away",
        )
        raise UsageError(text)


def _check_targets(samples: Iterable[Sample], classes: int) -> None:
    for sample in samples:
        if isinstance(sample.target, int):
            _check_label(sample, sample.target, classes)
        elif isinstance(sample.target, Boxes):
            for label in sample.target.labels.tolist():
                _check_label(sample, label, classes)
            check_corners(sample.target, sample.key)


def _check_label(sample: Sample, label: int, classes: int) -> None:
    if not 0 <= label < classes:
        text = explain(
            f"labels count from 0 to {classes - 1}, one for each class",
            f"{label} in {sample.key}",
            "name all classes, or correct the label",
        )
        raise UsageError(text)


def check_corners(boxes: Boxes, key: str) -> None:
    """Refuse boxes that are empty or leave their image by more than a pixel.

    Annotations are rounded, so up to a pixel is cut off without a word.
    """
    limits = np.array(boxes.frame * 2, dtype=np.float32)
    corners = boxes.corners
    outside = (corners < -1).any(1) | (corners > limits + 1).any(1) | ~np.isfinite(corners).all(1)
    empty = (corners[:, 2:] <= corners[:, :2]).any(1)
    for wrong, rule, fix in (
        (
            outside,
            "a box must lie inside its image",
            "correct it; are its corners in pixels?",
        ),
        (empty, "a box must have a width and a height above 0", "correct or remove it"),
    ):
        if wrong.any():
            corner = ", ".join(f"{value:g}" for value in corners[wrong.argmax()])
            size = f"{boxes.frame[0]} x {boxes.frame[1]}"
            raise UsageError(explain(rule, f"({corner}) in {key} of {size} pixels", fix))
    np.clip(corners, 0, limits, out=corners)


def _hash(listing: Listing, parts: Mapping[str, list[Sample]]) -> str:
    hashed = hashlib.sha256("\0".join((listing.content, *listing.classes, "")).encode())
    for part, samples in parts.items():
        for sample in samples:
            label = _name_target(sample)
            hashed.update(f"{part}\0{sample.key}\0{sample.size}\0{label}\n".encode())
    return hashed.hexdigest()


def _name_target(sample: Sample) -> str:
    if isinstance(sample.target, int):
        return str(sample.target)
    if isinstance(sample.target, Boxes):
        content = sample.target.corners.tobytes() + sample.target.labels.tobytes()
        return hashlib.sha256(content).hexdigest()
    return str(sample.target_size)
