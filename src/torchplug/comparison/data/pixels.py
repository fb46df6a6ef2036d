"""Read images and masks and bring them to one size."""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from torchplug.comparison.data.samples import Boxes, Source
from torchplug.errors import UsageError, explain

IGNORED = 255
"""Value of a mask where no class is asked for."""

_PADDING = 114  # the gray that detectors are used to
_BROKEN = (
    OSError,
    UnidentifiedImageError,
    SyntaxError,
    ValueError,
    Image.DecompressionBombError,
    ImportError,  # ultralytics makes Pillow look for a HEIF reader when it cannot open a file
)


def read_image(source: Source, channels: int) -> Image.Image:
    """Return the whole image, upright, gray (1 channel) or RGB (3)."""
    try:
        with source.open() as file:
            image = _to_bytes(ImageOps.exif_transpose(file))
            return image.convert("L" if channels == 1 else "RGB")
    except _BROKEN as error:
        raise UsageError(_explain_broken(source, error)) from error


def measure_image(source: Source) -> tuple[int, int]:
    """Return width and height, upright, from the head of the file."""
    try:
        with source.open() as file:
            turned = file.getexif().get(0x0112, 1) in {5, 6, 7, 8}
            width, height = file.size
    except _BROKEN as error:
        raise UsageError(_explain_broken(source, error)) from error
    return (height, width) if turned else (width, height)


def read_mask(source: Source, classes: int | None, frame: tuple[int, int] | None) -> Image.Image:
    """Return a mask as class numbers, of the size ``frame`` of its image."""
    try:
        with source.open() as file:
            values, mode, size = np.array(file), file.mode, file.size
    except _BROKEN as error:
        raise UsageError(_explain_broken(source, error)) from error
    if values.ndim != 2:
        text = explain(
            "a mask holds one class number a pixel",
            f"{source.name} of mode {mode}, which holds colors",
            "store it as 8-bit gray or palette, with the class number as the value",
        )
        raise UsageError(text)
    if frame is not None and size != frame:
        text = explain(
            "a mask must have the size of its image",
            f"{source.name} of {_times(size)} for an image of {_times(frame)}",
            "draw the mask on the image as it is stored",
        )
        raise UsageError(text)
    if classes is not None:
        _check_values(values, classes, source.name)
    return Image.fromarray(values.astype(np.uint8))


def _check_values(values: NDArray[np.generic], classes: int, name: str) -> None:
    present = np.unique(values)
    wrong = [int(value) for value in present if value >= classes and value != IGNORED]
    if wrong:
        text = explain(
            f"a mask holds class numbers from 0 to {classes - 1}, and {IGNORED} for ignored pixels",
            f"{wrong[0]} in {name}",
            "name all classes, or set these pixels to 255",
        )
        raise UsageError(text)


def _explain_broken(source: Source, error: BaseException) -> str:
    if isinstance(error, ImportError) and error.__context__ is not None:
        error = error.__context__
    return explain(
        "every image must be readable",
        f"{source.name} ({type(error).__name__}: {error})",
        "repair or remove this file",
    )


def _times(size: tuple[int, int]) -> str:
    return f"{size[0]} x {size[1]} pixels"


def _to_bytes(image: Image.Image) -> Image.Image:
    """Bring 16-bit gray to 8 bits: Pillow would cut everything above 255 to white."""
    if image.mode.startswith("I;16"):
        return Image.fromarray((np.array(image) >> 8).astype(np.uint8))
    if image.mode in {"I", "F"}:
        raise OSError(f"pixels of mode {image.mode!r} have no fixed range")
    return image


def crop_square(image: Image.Image, size: int) -> Image.Image:
    """Scale the shorter side to ``size`` and cut out the middle: a class is seen, a rim is not."""
    if image.size == (size, size):
        return image
    scale = size / min(image.size)
    width, height = (max(round(side * scale), size) for side in image.size)
    image = image.resize((width, height), Image.Resampling.BILINEAR)
    left, top = (width - size) // 2, (height - size) // 2
    return image.crop((left, top, left + size, top + size))


@dataclass(frozen=True)
class Frame:
    """How an image is fitted into a square: the longer side scaled, the rest padded."""

    size: int
    width: int
    height: int

    @property
    def inner(self) -> tuple[int, int]:
        """Width and height of the image within the square."""
        scale = self.size / max(self.width, self.height)
        return max(round(self.width * scale), 1), max(round(self.height * scale), 1)

    @property
    def corner(self) -> tuple[int, int]:
        """Where the image begins, from the left and from the top."""
        return (self.size - self.inner[0]) // 2, (self.size - self.inner[1]) // 2

    def fit_image(self, image: Image.Image) -> Image.Image:
        """Return the image in the square, its border gray."""
        return self._fit(image, Image.Resampling.BILINEAR, _PADDING)

    def fit_mask(self, mask: Image.Image) -> Image.Image:
        """Return the mask in the square, its border ignored."""
        return self._fit(mask, Image.Resampling.NEAREST, IGNORED)

    def fit_boxes(self, boxes: Boxes) -> dict[str, Tensor]:
        """Return the boxes in the pixels of the square."""
        scale = np.array([self.inner[0] / self.width, self.inner[1] / self.height] * 2)
        corners = boxes.corners * scale + np.array(self.corner * 2)
        return {
            "boxes": torch.from_numpy(corners.astype(np.float32).reshape(-1, 4)),
            "labels": torch.from_numpy(boxes.labels.astype(np.int64)),
        }

    def _fit(self, image: Image.Image, method: Image.Resampling, padding: int) -> Image.Image:
        if image.size == (self.size, self.size):
            return image
        fill = padding if image.mode == "L" else (padding,) * 3
        square = Image.new(image.mode, (self.size, self.size), fill)
        square.paste(image.resize(self.inner, method), self.corner)
        return square


def to_tensor(image: Image.Image) -> Tensor:
    """Return an image as bytes ``(C, H, W)``."""
    values = torch.from_numpy(np.array(image))
    return values[None] if values.ndim == 2 else values.permute(2, 0, 1).contiguous()
