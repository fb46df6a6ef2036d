"""What a reader lists: samples, each with the place of its image and its target.

A list is small and says all that the split and the digest need; pixels are read later, at once for
small sets and item by item for large ones.
"""

import io
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from PIL import Image

PARTS = ("train", "validation", "test")
WHOLE = "all"
"""The part of a set that comes without a split."""

PART_NAMES = {
    "train": ("train", "training", "trn"),
    "validation": ("val", "valid", "validation", "eval", "dev"),
    "test": ("test", "testing", "tst"),
}


class Source(Protocol):
    """Where an image or a mask lies; small, picklable."""

    @property
    def name(self) -> str:
        """The place, as an error names it."""

    def open(self) -> Image.Image:
        """Return the image; its pixels may still be unread."""


@dataclass(frozen=True, slots=True)
class FileSource:
    """An image file."""

    path: str

    @property
    def name(self) -> str:
        """The path."""
        return self.path

    def open(self) -> Image.Image:
        """Open the file."""
        return Image.open(self.path)


@dataclass(frozen=True, slots=True)
class TarSource:
    """A member of an uncompressed tar, read by its place: no extraction, any order."""

    path: str
    offset: int
    size: int
    member: str

    @property
    def name(self) -> str:
        """The tar and its member."""
        return f"{self.path}:{self.member}"

    def read(self) -> bytes:
        """Return the bytes of the member."""
        with Path(self.path).open("rb") as file:
            file.seek(self.offset)
            return file.read(self.size)

    def open(self) -> Image.Image:
        """Open the member as an image."""
        return Image.open(io.BytesIO(self.read()))


@dataclass(frozen=True, slots=True)
class ArraySource:
    """One image of an array ``(N, H, W)`` or ``(N, H, W, 3)`` of bytes."""

    images: NDArray[np.uint8] = field(repr=False)
    index: int

    @property
    def name(self) -> str:
        """The number of the image."""
        return f"image {self.index}"

    def open(self) -> Image.Image:
        """Return the image."""
        return Image.fromarray(np.ascontiguousarray(self.images[self.index]))


@dataclass(frozen=True, slots=True)
class Boxes:
    """The objects of one image: corners ``(n, 4)`` as x1, y1, x2, y2 in its pixels, and labels."""

    corners: NDArray[np.float32]
    labels: NDArray[np.int64]
    frame: tuple[int, int]
    """Width and height of the image that the boxes were drawn on."""


@dataclass(frozen=True, slots=True)
class Sample:
    """One image of a list."""

    key: str
    """Its name within the set, the same wherever the set lies: decides the split."""

    image: Source
    target: "int | Source | Boxes"
    """A class number, the place of a mask, or boxes."""

    size: int
    """Of the stored image, in bytes; for the digest."""

    group: str | None = None
    """What must not be divided, such as a patient."""

    target_size: int = 0
    """Of a stored mask, in bytes; for the digest."""


@dataclass(frozen=True)
class Listing:
    """What a reader found."""

    name: str
    classes: tuple[str, ...]
    parts: Mapping[str, list[Sample]]
    channels: int = 3
    content: str = ""
    """Hash of pixels, for sets that are kept as arrays."""

    native: int | None = None
    """Side of the images, where all are squares of one size."""

    published: bool = False
    """A well-known set with its own split: not searched for leaks."""


def part_of(name: str) -> str | None:
    """Return the part that a folder or file of this name stands for, or ``None``.

    >>> part_of("val2017"), part_of("training"), part_of("trains")
    ('validation', 'train', None)
    """
    plain = name.lower().rstrip("0123456789_-")
    return next((part for part, names in PART_NAMES.items() if plain in names), None)


def find_parts(folders: Mapping[str, Any]) -> dict[str, str]:
    """Return which of the given names stands for which part; the most usual name wins."""
    found: dict[str, str] = {}
    order = [name for names in PART_NAMES.values() for name in names]
    usual = {name: place for place, name in enumerate(order)}
    for name in sorted(folders, key=lambda name: (usual.get(name.lower(), len(usual)), name)):
        part = part_of(name)
        if part is not None:
            found.setdefault(part, name)
    return {part: found[part] for part in PARTS if part in found}
