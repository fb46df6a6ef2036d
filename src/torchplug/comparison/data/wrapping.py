"""Take a user's own datasets, as objects."""

import hashlib
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

from torchplug.comparison.data.assemble import check_corners
from torchplug.comparison.data.dividing import TEST_SHARE, VALIDATION_SHARE, split_off
from torchplug.comparison.data.items import Item, Target
from torchplug.comparison.data.pixels import IGNORED, Frame, crop_square, to_tensor
from torchplug.comparison.data.samples import Boxes, Sample
from torchplug.comparison.data.task_data import TaskData
from torchplug.comparison.spec import TaskName
from torchplug.errors import UsageError, explain

_HASHED = 4096
"""Items of a part that are read for digest and checks; of more, as many at even distances."""


class WrappedItems(Dataset[Item]):
    """Items of a user's dataset, brought to bytes of one size.

    Args:
        dataset: its items are ``(image, target)``.
        task: what the target is for.
        classes: how many there are.
        size: side of the square that images are brought to; ``None`` leaves them.
        indices: which items; ``None`` is all.
    """

    def __init__(
        self,
        dataset: Any,
        task: TaskName,
        classes: int,
        size: int | None = None,
        indices: Sequence[int] | None = None,
    ) -> None:
        self.dataset, self.task, self.classes, self.size = dataset, task, classes, size
        self.indices = range(len(dataset)) if indices is None else indices

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, index: int) -> Item:
        item = self.dataset[self.indices[index]]
        if not isinstance(item, tuple | list) or len(item) != 2:
            fix = "return an image and its target"
            raise UsageError(explain("an item is (image, target)", type(item).__name__, fix))
        image, target = _to_bytes(item[0]), item[1]
        if self.task == "classification":
            return self._fit_class(image, target, index)
        if self.task == "segmentation":
            return self._fit_mask(image, target, index)
        return self._fit_boxes(image, target, index)

    def _fit_class(self, image: Tensor, target: Any, index: int) -> Item:
        label = _to_label(target, index)
        if not 0 <= label < self.classes:
            rule = f"labels count from 0 to {self.classes - 1}, one for each class"
            raise UsageError(explain(rule, f"{label} for item {index}", "name all classes"))
        return self._resize(image, crop_square), label

    def _fit_mask(self, image: Tensor, target: Any, index: int) -> Item:
        mask = (
            target if isinstance(target, Tensor) else torch.from_numpy(np.array(target))
        ).squeeze()
        if mask.shape != image.shape[1:]:
            got = f"{tuple(mask.shape)} for an image {tuple(image.shape[1:])} in item {index}"
            rule = "a mask must have the size of its image"
            raise UsageError(explain(rule, got, "return class numbers (H, W)"))
        wrong = (mask < 0) | ((mask >= self.classes) & (mask != IGNORED))
        if wrong.any():
            rule = f"a mask holds class numbers from 0 to {self.classes - 1}, and 255 for ignored"
            got = f"{int(mask[wrong][0])} in item {index}"
            raise UsageError(explain(rule, got, "name all classes, or set these pixels to 255"))
        frame = _frame(image, self.size)
        if frame is None:
            return image, mask.byte()
        fitted = frame.fit_mask(Image.fromarray(mask.byte().numpy()))
        return self._resize(image, lambda picture, _: frame.fit_image(picture)), to_tensor(fitted)[
            0
        ]

    def _fit_boxes(self, image: Tensor, target: Any, index: int) -> Item:
        if not isinstance(target, dict) or not {"boxes", "labels"} <= set(target):
            got = ", ".join(target) if isinstance(target, dict) else type(target).__name__
            fix = "return boxes (n, 4) as x1, y1, x2, y2 in pixels and labels (n,) from 0"
            raise UsageError(explain('a target is {"boxes": …, "labels": …}', got, fix))
        corners = np.asarray(target["boxes"], np.float32).reshape(-1, 4).copy()
        labels = np.asarray(target["labels"], np.int64).reshape(-1)
        boxes = Boxes(corners, labels, (image.shape[2], image.shape[1]))
        for label in labels.tolist():
            if not 0 <= label < self.classes:
                rule = f"labels count from 0 to {self.classes - 1}, one for each class"
                raise UsageError(explain(rule, f"{label} for item {index}", "name all classes"))
        check_corners(boxes, f"item {index}")
        frame = _frame(image, self.size)
        if frame is None:
            return image, {"boxes": torch.from_numpy(corners), "labels": torch.from_numpy(labels)}
        fitted = frame.fit_boxes(boxes)
        return self._resize(image, lambda picture, _: frame.fit_image(picture)), fitted

    def _resize(self, image: Tensor, fit: Callable[[Image.Image, int], Image.Image]) -> Tensor:
        if self.size is None or image.shape[1:] == (self.size, self.size):
            return image
        values = image[0] if image.shape[0] == 1 else image.permute(1, 2, 0)
        return to_tensor(fit(Image.fromarray(values.contiguous().numpy()), self.size))


def wrap_datasets(
    train: Any,
    test: Any,
    validation: Any = None,
    *,
    classes: Sequence[str] | int,
    task: TaskName = "classification",
    name: str = "own data",
    image_size: int | None = None,
) -> TaskData:
    """Return a data set of a user's own map-style datasets.

    Args:
        train: items are ``(image, target)``: the image a PIL image, a byte tensor ``(C, H, W)``, or
            a float tensor from 0 to 1, as stored and not yet normalized or augmented (the recipe
            does both); targets as in :class:`TaskData`.
        test: the same, seen once at the end; ``None`` takes 40 % of ``train``.
        validation: the same, for the learning curves; ``None`` takes a part of ``train``.
        classes: their names, or how many there are.
        task: what the targets are for.
        name: as it stands in the report.
        image_size: side of the square that images are brought to; ``None`` if all have one size.

    Raises:
        UsageError: for an item that is none of these; the text names it.

    >>> images = torch.zeros(40, 3, 8, 8, dtype=torch.uint8)
    >>> own = torch.utils.data.TensorDataset(images, torch.arange(40) % 2)
    >>> data = wrap_datasets(own, own, classes=["cat", "dog"])
    >>> len(data.train), len(data.validation), len(data.test)
    (32, 8, 40)
    """
    names = tuple(map(str, range(classes) if isinstance(classes, int) else classes))
    wrapped = {}
    for part, dataset in (("train", train), ("validation", validation), ("test", test)):
        if dataset is not None:
            _check_kind(dataset, part)
            wrapped[part] = WrappedItems(dataset, task, len(names), image_size)
    total = sum(map(len, wrapped.values()))
    if test is None:
        wrapped["train"], wrapped["test"] = _divide(wrapped["train"], TEST_SHARE, name, "test")
    if validation is None:
        share = min(VALIDATION_SHARE * total / len(wrapped["train"]), 0.5)
        wrapped["train"], wrapped["validation"] = _divide(
            wrapped["train"], share, name, "validation"
        )
    shape: tuple[int, int, int] | None = None
    hashed = hashlib.sha256("\0".join(names).encode())
    for part in ("train", "validation", "test"):
        shape = _check_items(wrapped[part], part, shape, hashed)
    _check_repeatable(wrapped["train"])
    return TaskData(
        name=name,
        task=task,
        classes=names,
        train=wrapped["train"],
        validation=wrapped["validation"],
        test=wrapped["test"],
        digest=hashed.hexdigest(),
        shape=(1, *(shape or (1, 1, 1))),
    )


def _check_kind(dataset: Any, part: str) -> None:
    if not (hasattr(dataset, "__len__") and hasattr(dataset, "__getitem__")):
        text = explain(
            "a dataset has a length and items by number, so that every arm sees one order",
            f"{type(dataset).__name__} for {part}",
            "collect a stream into a list of items",
        )
        raise UsageError(text)
    if len(dataset) == 0:
        fix = "pass one with items"
        raise UsageError(explain("a dataset has items", f"none for {part}", fix))


def _divide(
    items: WrappedItems, share: float, name: str, purpose: str
) -> tuple[WrappedItems, WrappedItems]:
    targets = getattr(items.dataset, "targets", None)
    samples = []
    for place, index in enumerate(items.indices):
        target: Any = 0
        if items.task == "classification":
            known = targets[index] if targets is not None else items[place][1]
            target = _to_label(known, place)
        samples.append(Sample(str(index), None, target, 0))  # type: ignore[arg-type]
    rest, taken = split_off(samples, share, name, purpose)
    return tuple(  # type: ignore[return-value]
        WrappedItems(
            items.dataset,
            items.task,
            items.classes,
            items.size,
            [int(sample.key) for sample in chosen],
        )
        for chosen in (rest, taken)
    )


def _check_items(
    items: WrappedItems, part: str, shape: tuple[int, int, int] | None, hashed: Any
) -> tuple[int, int, int]:
    """Read items for the digest, and hold them to one shape."""
    count = min(len(items), _HASHED)
    hashed.update(f"{part} {len(items)}".encode())
    for number in range(count):
        index = number * len(items) // count
        image, target = items[index]
        shape = shape or (image.shape[0], image.shape[1], image.shape[2])
        if tuple(image.shape) != shape:
            got = f"{tuple(image.shape)} for item {index} of {part}, {shape} before"
            raise UsageError(explain("all images have one size", got, "pass image_size="))
        hashed.update(image.contiguous().numpy().tobytes() + _target_bytes(target))
    return shape or (1, 1, 1)  # never empty: parts without items were refused


def _check_repeatable(items: WrappedItems) -> None:
    for index in range(min(3, len(items))):
        first, again = items[index], items[index]
        same = torch.equal(first[0], again[0]) and _target_bytes(first[1]) == _target_bytes(
            again[1]
        )
        if not same:
            text = explain(
                "an item must be the same each time it is read",
                f"another image or target for item {index} of train at the second reading",
                "take random augmentation out of the dataset: the recipe does it",
            )
            raise UsageError(text)


def _target_bytes(target: Target) -> bytes:
    if isinstance(target, int):
        return str(target).encode()
    tensors = target.values() if isinstance(target, dict) else [target]
    return b"".join(tensor.contiguous().numpy().tobytes() for tensor in tensors)


def _to_label(target: Any, index: int) -> int:
    try:
        return int(target)
    except (TypeError, ValueError) as error:
        fix = "return the number of the class"
        got = f"{type(target).__name__} for item {index}"
        raise UsageError(explain("the target of a classifier is a number", got, fix)) from error


def _to_bytes(image: Any) -> Tensor:
    if isinstance(image, Image.Image):
        return to_tensor(image if image.mode in {"L", "RGB"} else image.convert("RGB"))
    if not isinstance(image, Tensor) or image.ndim != 3 or image.shape[0] not in {1, 3}:
        got = f"shape {tuple(image.shape)}" if isinstance(image, Tensor) else type(image).__name__
        fix = "return such a tensor, or a PIL image"
        raise UsageError(explain("an image is a tensor (1 or 3, H, W)", got, fix))
    if image.dtype == torch.uint8:
        return image
    low, high = float(image.min()), float(image.max())
    if not image.is_floating_point() or low < 0 or high > 1:
        text = explain(
            "images are bytes, or floats from 0 to 1",
            f"{image.dtype} from {low:g} to {high:g}",
            "take the normalization out of the dataset: the recipe normalizes",
        )
        raise UsageError(text)
    return (image * 255).round().byte()


def _frame(image: Tensor, size: int | None) -> Frame | None:
    height, width = image.shape[1:]
    if size is None or (height, width) == (size, size):
        return None
    return Frame(size, width, height)
