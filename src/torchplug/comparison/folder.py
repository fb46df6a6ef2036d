"""Read a folder of images, one sub-folder a class."""

import hashlib
from pathlib import Path

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError

from torchplug.comparison.split import Split
from torchplug.errors import UsageError, explain, import_extra

_PART_NAMES = {
    "train": ("train", "training"),
    "validation": ("val", "valid", "validation", "eval", "dev"),
    "test": ("test", "testing"),
}


def read_folder(root: Path, size: int) -> tuple[dict[str, Split], tuple[str, ...], str]:
    """Return the parts that a folder holds (or ``all``), its classes, and a hash of its list.

    Every image is opened here, before any training, so that a broken file is named at once.
    """
    datasets = import_extra("torchvision.datasets", extra="compare", purpose="a folder of images")
    hashed = hashlib.sha256()
    parts: dict[str, Split] = {}
    classes: tuple[str, ...] = ()
    for part, folder in _find_parts(root).items():
        try:
            listing = datasets.ImageFolder(folder)
        except FileNotFoundError as error:
            raise UsageError(_explain_no_classes(folder, error)) from error
        if classes and tuple(listing.classes) != classes:
            text = explain(
                f"all parts of {root} must have the same classes",
                f"{listing.classes} in {folder.name}, {list(classes)} before",
                "rename or complete the class folders",
            )
            raise UsageError(text)
        classes = tuple(listing.classes)
        for path, label in listing.samples:
            relative = Path(path).relative_to(root).as_posix()
            hashed.update(f"{relative}\0{Path(path).stat().st_size}\0{label}\n".encode())
        images = torch.stack([_read_image(path, size) for path, _ in listing.samples])
        parts[part] = Split(images, torch.tensor(listing.targets))
    return parts, classes, hashed.hexdigest()


def _find_parts(root: Path) -> dict[str, Path]:
    """The named parts of a data set, or the folder as a whole."""
    parts = {
        part: root / name
        for part, names in _PART_NAMES.items()
        for name in reversed(names)
        if (root / name).is_dir()
    }
    return parts if "train" in parts else {"all": root}


def _explain_no_classes(folder: Path, error: Exception) -> str:
    inside = sorted(path.name for path in folder.iterdir())
    shown = ", ".join(inside[:5]) + (", …" if len(inside) > 5 else "")
    reason = str(error).splitlines()[0]
    return explain(
        "a folder of images holds one sub-folder a class with images in it",
        f"{folder} with {shown or 'nothing'} ({reason})",
        "make folder/<class name>/image.png, or folder/train/<class name>/…",
    )


def _to_bytes(image: Image.Image) -> Image.Image:
    """Bring 16-bit gray to 8 bits: Pillow would cut everything above 255 to white."""
    if image.mode.startswith("I;16"):
        return Image.fromarray((np.array(image) >> 8).astype(np.uint8))
    if image.mode in {"I", "F"}:
        raise OSError(f"pixels of mode {image.mode!r} have no fixed range")
    return image


def _read_image(path: str, size: int) -> torch.Tensor:
    """Read one image as ``(3, size, size)`` bytes: the shorter side scaled, the middle cut out."""
    try:
        with Image.open(path) as file:
            image = _to_bytes(file).convert("RGB")
    except (OSError, UnidentifiedImageError, SyntaxError, Image.DecompressionBombError) as error:
        text = explain(
            "every image must be readable",
            f"{path} ({type(error).__name__}: {error})",
            "repair or remove this file",
        )
        raise UsageError(text) from error
    scale = size / min(image.size)
    width, height = (max(round(side * scale), size) for side in image.size)
    image = image.resize((width, height), Image.Resampling.BILINEAR)
    left, top = (width - size) // 2, (height - size) // 2
    image = image.crop((left, top, left + size, top + size))
    return torch.from_numpy(np.array(image)).permute(2, 0, 1).contiguous()
