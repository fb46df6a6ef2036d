"""Read images with boxes as YOLO lays them out.

::

    data.yaml                     path, train, val, test, names; as ultralytics reads it
    images/train/a.jpg            or train/images/a.jpg, or images/a.jpg without a split
    labels/train/a.txt            a line an object: class, center x, center y, width, height,
                                  as shares of the image; a polygon's box is taken

An image without a label file shows nothing of interest.
"""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from torchplug.comparison.data.image_folder import list_images
from torchplug.comparison.data.options import DataOptions, read_groups, read_names
from torchplug.comparison.data.pixels import measure_image
from torchplug.comparison.data.samples import (
    WHOLE,
    Boxes,
    FileSource,
    Listing,
    Sample,
    find_parts,
)
from torchplug.comparison.spec import TaskName
from torchplug.errors import UsageError, explain, import_extra

_HEADS = ("data.yaml", "data.yml", "dataset.yaml")


def list_yolo(path: str, task: TaskName, options: DataOptions) -> Listing:
    """Return the images of a folder or of its ``data.yaml``, with their boxes."""
    if task != "detection":
        fix = "set the task to detection"
        raise UsageError(explain("yolo/ is for detection", task, fix))
    root = Path(path)
    head = (
        root
        if root.is_file()
        else next((root / name for name in _HEADS if (root / name).is_file()), None)
    )
    root = root.parent if root.is_file() else root
    content = _read_head(head) if head else {}
    files = _find_files(head, content) if head else _find_folders(root)
    classes = options.classes or _name_classes(root, content)
    texts = {part: [_find_labels(each) for each in paths] for part, paths in files.items()}
    if not classes:
        highest = max(
            (row[0] for rows in texts.values() for text in rows for row in _read_rows(text)),
            default=0,
        )
        classes = tuple(str(label) for label in range(int(highest) + 1))
    parts = {}
    for part, paths in files.items():
        keys = [Path(os.path.relpath(each, root)).as_posix() for each in paths]
        groups = read_groups(root, keys, options)
        parts[part] = [
            Sample(
                key, FileSource(str(image)), _read_boxes(image, text), image.stat().st_size, group
            )
            for key, image, text, group in zip(keys, paths, texts[part], groups, strict=True)
        ]
    return Listing(path, classes, parts)


def _read_head(head: Path) -> dict[str, Any]:
    yaml = import_extra("yaml", extra="compare", purpose="data.yaml")
    try:
        content = yaml.safe_load(head.read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        fix = "write path, train, val, test and names"
        raise UsageError(
            explain(f"{head} must be YAML", str(error).splitlines()[0], fix)
        ) from error
    if not isinstance(content, dict) or "train" not in content:
        got = ", ".join(map(str, content)) if isinstance(content, dict) else repr(content)
        fix = "write path, train, val, test and names"
        raise UsageError(explain(f"{head} must name its train images", got, fix))
    return content


def _find_files(head: Path, content: Mapping[str, Any]) -> dict[str, list[Path]]:
    base = head.parent / str(content.get("path") or "")
    base = base if base.is_dir() else head.parent
    found = {}
    for part, key in (("train", "train"), ("validation", "val"), ("test", "test")):
        places = content.get(key)
        if not places:
            continue
        places = [places] if isinstance(places, str) else places
        found[part] = [file for place in places for file in _find_place(head, base, place)]
    return found


def _find_place(head: Path, base: Path, place: str) -> list[Path]:
    """The images of a folder or of a list; ``../train/images`` may be meant from the base."""
    for path in (base / place, base / place.removeprefix("../")):
        if path.is_dir():
            images = list_images(path)
            if images:
                return images
        if path.is_file():
            lines = path.read_text(encoding="utf-8").split("\n")
            return [path.parent / line.strip() for line in lines if line.strip()]
    fix = "correct path, train, val or test in it"
    raise UsageError(explain(f"{head} must name folders with images", f"{base / place}", fix))


def _find_folders(root: Path) -> dict[str, list[Path]]:
    images = root / "images"
    if images.is_dir():
        folders = {each.name: each for each in images.iterdir() if each.is_dir()}
    else:
        folders = {each.name: each for each in root.iterdir() if (each / "images").is_dir()}
        folders = {name: each / "images" for name, each in folders.items()}
    found = find_parts(folders)
    if "train" in found:
        return {part: list_images(folders[name]) for part, name in found.items()}
    present = list_images(images) if images.is_dir() else []
    if not present:
        inside = ", ".join(sorted(each.name for each in root.iterdir())[:5])
        text = explain(
            "YOLO's images lie in images/, with labels/ beside it, or data.yaml names them",
            f"{root} with {inside or 'nothing'}",
            "lay them out so: images/train/a.jpg, labels/train/a.txt",
        )
        raise UsageError(text)
    return {WHOLE: present}


def _name_classes(root: Path, content: Mapping[str, Any]) -> tuple[str, ...]:
    names = content.get("names")
    if isinstance(names, dict):
        return tuple(str(names[number]) for number in sorted(names))
    if isinstance(names, list):
        return tuple(map(str, names))
    return read_names(root)


def _find_labels(image: Path) -> Path:
    """``…/images/…/a.jpg`` has its labels in ``…/labels/…/a.txt``."""
    parts = list(image.parts)
    places = [index for index, part in enumerate(parts[:-1]) if part == "images"]
    if places:
        parts[places[-1]] = "labels"
    return Path(*parts).with_suffix(".txt")


def _read_rows(text: Path) -> list[list[float]]:
    if not text.is_file():
        return []
    rows = []
    for number, line in enumerate(text.read_text().splitlines(), 1):
        words = line.split()
        if not words:
            continue
        try:
            row = [float(word) for word in words]
        except ValueError:
            row = []
        if (
            not row
            or row[0] != int(row[0])
            or not (len(row) == 5 or (len(row) > 6 and len(row) % 2))
        ):
            rule = "a label is: class, center x, center y, width, height"
            fix = "write five numbers, the last four as shares of the image"
            raise UsageError(explain(rule, f"{line!r} in line {number} of {text}", fix))
        rows.append(row)
    return rows


def _read_boxes(image: Path, text: Path) -> Boxes:
    rows = _read_rows(text)
    width, height = frame = measure_image(FileSource(str(image)))
    corners = np.array([_to_corners(row) for row in rows], np.float64).reshape(-1, 4)
    if corners.size and np.abs(corners).max() > 2:
        text_ = explain(
            "boxes of YOLO are shares of the image, from 0 to 1",
            f"{np.abs(corners).max():g} in {text}",
            "divide by the width and the height of the image",
        )
        raise UsageError(text_)
    corners *= np.array([width, height, width, height])
    labels = np.array([int(row[0]) for row in rows], np.int64)
    return Boxes(corners.astype(np.float32), labels, frame)


def _to_corners(row: list[float]) -> NDArray[np.float64]:
    values = np.array(row[1:])
    if len(values) == 4:
        center, half = values[:2], values[2:] / 2
        return np.concatenate([center - half, center + half])
    points = values.reshape(-1, 2)
    return np.concatenate([points.min(0), points.max(0)])
