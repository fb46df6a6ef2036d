"""Image data for a comparison, held in memory, with one fixed split for all trials.

=====================  ===================================================================
``digits``             scikit-learn's 1,797 scans of handwritten digits, 8 x 8, one channel
``cifar10:ROOT``       torchvision's CIFAR-10 under a local root; ``cifar100:ROOT`` likewise
``PATH``               a folder of images: ``PATH/train/<class>/…`` with ``val`` or ``test``
                       beside it, or ``PATH/<class>/…``, which is split here
=====================  ===================================================================
"""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import Tensor

from torchplug.comparison.folder import read_folder
from torchplug.comparison.seeds import derive_seed
from torchplug.comparison.split import Split
from torchplug.errors import UsageError, explain, import_extra

VALIDATION_SHARE, TEST_SHARE = 0.1, 0.4
DEFAULT_IMAGE_SIZE = 64
"""Side of the square to which images of a folder are brought: small enough for a first screen."""


@dataclass(frozen=True)
class ImageData:
    """A data set with its split.

    Training images train, validation images draw the learning curves, and test images are seen
    once, after the last epoch.
    """

    name: str
    classes: tuple[str, ...]
    train: Split
    validation: Split
    test: Split
    digest: str
    """Hash of the list of samples: two records with one digest saw the same data."""

    @property
    def channels(self) -> int:
        """1 for gray images, 3 for color."""
        return self.train.images.shape[1]

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """Shape of a batch of one."""
        return (1, *self.train.images.shape[1:])

    def statistics(self) -> tuple[Tensor, Tensor]:
        """Return mean and deviation of each channel over the training images."""
        images = self.train.images
        total, squares = torch.zeros(()), torch.zeros(())
        for start in range(0, len(images), 4096):  # a copy of all in float64 would be too large
            values = images[start : start + 4096].double()
            total = total + values.sum((0, 2, 3))
            squares = squares + values.square().sum((0, 2, 3))
        count = images.numel() / self.channels
        mean = total / count
        deviation = (squares / count - mean.square()).clamp(min=1e-12).sqrt()
        return mean.float()[:, None, None], deviation.float()[:, None, None]


def load_data(name: str, *, image_size: int | None = None) -> ImageData:
    """Read a data set into memory.

    Args:
        name: see the table at the top of this file.
        image_size: side of the square to which the images of a folder are resized; 64 if not
            given. Data of one fixed size ignores it.

    Raises:
        UsageError: if nothing is there, a folder has no classes, or an image cannot be read.

    >>> data = load_data("digits")
    >>> len(data.train), len(data.validation), len(data.test)
    (898, 180, 719)
    """
    if name == "digits":
        return _load_digits()
    kind, _, root = name.partition(":")
    if kind in {"cifar10", "cifar100"}:
        return _load_cifar(kind, Path(root))
    path = Path(name)
    if not path.is_dir():
        text = explain(
            "data is 'digits', 'cifar10:ROOT', 'cifar100:ROOT' or a folder of images",
            f"{name!r}, which is no folder",
            "give the path of a folder with one sub-folder a class",
        )
        raise UsageError(text)
    parts, classes, digest = read_folder(path, image_size or DEFAULT_IMAGE_SIZE)
    return _divide(name, classes, parts, digest)


def _load_digits() -> ImageData:
    digits = load_digits()
    images = torch.from_numpy(digits.images).float()[:, None]
    labels = torch.from_numpy(digits.target).long()
    digest = hashlib.sha256(digits.images.tobytes() + digits.target.tobytes()).hexdigest()
    classes = tuple(str(name) for name in digits.target_names)
    return _divide("digits", classes, {"all": Split(images, labels)}, digest)


def _load_cifar(kind: str, root: Path) -> ImageData:
    datasets = import_extra("torchvision.datasets", extra="compare", purpose="CIFAR")
    maker: Callable[..., Any] = datasets.CIFAR10 if kind == "cifar10" else datasets.CIFAR100
    try:
        parts = {part: maker(root, train=part == "train") for part in ("train", "test")}
    except RuntimeError as error:
        folder = maker.base_folder  # type: ignore[attr-defined]
        text = explain(
            f"{kind} must lie under its root as torchvision unpacks it",
            f"{root} without a whole {folder}",
            f"name the folder that holds {folder}: {kind}:path/to/root",
        )
        raise UsageError(text) from error
    splits, hashed = {}, hashlib.sha256()
    for part, data in parts.items():
        hashed.update(data.data.tobytes() + bytes(str(data.targets), "ascii"))
        images = torch.from_numpy(np.ascontiguousarray(data.data.transpose(0, 3, 1, 2)))
        splits[part] = Split(images, torch.tensor(data.targets))
    classes = tuple(parts["train"].classes)
    return _divide(f"{kind}:{root}", classes, splits, hashed.hexdigest())


def _divide(name: str, classes: Sequence[str], parts: dict[str, Split], digest: str) -> ImageData:
    """Complete the split: what the data does not divide is divided here, the same each time."""
    train = parts.get("train", parts.get("all"))
    if train is None:  # pragma: no cover - the readers give one of the two
        raise UsageError(f"{name} has no training images")
    test, validation = parts.get("test"), parts.get("validation")
    if test is None and validation is not None:  # a folder with one held-out part: that is the test
        test, validation = validation, None
    if test is None:
        train, test = _split_off(train, TEST_SHARE, name, "test")
    if validation is None:
        # the validation share is one of the whole, as the test share is
        share = VALIDATION_SHARE * (len(train) + len(test)) / len(train)
        train, validation = _split_off(train, min(share, 0.5), name, "validation")
    return ImageData(name, tuple(classes), train, validation, test, digest)


def _split_off(whole: Split, share: float, name: str, purpose: str) -> tuple[Split, Split]:
    """Divide in two, with each class in its proportion; independent of every seed."""
    seed = derive_seed("split", purpose) % 2**32
    try:
        rest, taken = train_test_split(
            np.arange(len(whole)), test_size=share, random_state=seed, stratify=whole.labels.numpy()
        )
    except ValueError as error:
        counts = torch.bincount(whole.labels).tolist()
        text = explain(
            f"{name} needs several images of each class to be split",
            f"{counts} images a class ({error})",
            "add images, or bring the split along as train, val and test folders",
        )
        raise UsageError(text) from error
    rest, taken = torch.from_numpy(np.sort(rest)), torch.from_numpy(np.sort(taken))
    return (
        Split(whole.images[rest], whole.labels[rest]),
        Split(whole.images[taken], whole.labels[taken]),
    )
