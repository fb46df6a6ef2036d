"""Read images with masks or boxes as PASCAL VOC lays them out.

::

    JPEGImages/  or images/               a.jpg …
    SegmentationClass/  or masks/         a.png …   class numbers as gray or palette values
    Annotations/                          a.xml …   boxes, for detection
    ImageSets/Segmentation/train.txt …    the split: names without suffix (ImageSets/Main: boxes)
    classes.txt                           names by number, if they are to be shown

Without ``ImageSets`` the parts may be folders, ``images/train`` beside ``masks/train``; without any
split it is divided here.
"""

from collections.abc import Iterator
from pathlib import Path
from xml.etree import ElementTree

import numpy as np

from torchplug.comparison.data.image_folder import list_images
from torchplug.comparison.data.options import DataOptions, read_groups, read_names
from torchplug.comparison.data.pixels import IGNORED, measure_image, read_mask
from torchplug.comparison.data.samples import (
    WHOLE,
    Boxes,
    FileSource,
    Listing,
    Sample,
    find_parts,
)
from torchplug.comparison.spec import TaskName
from torchplug.errors import UsageError, explain, nearest

VOC_CLASSES = (
    "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow",
    "diningtable", "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train",
    "tvmonitor",
)  # fmt: skip
_IMAGES = ("JPEGImages", "images", "imgs", "img")
_MASKS = ("SegmentationClass", "masks", "mask", "labels", "annotations")
_SETS = {"segmentation": "Segmentation", "detection": "Main"}


def list_voc(path: str, task: TaskName, options: DataOptions) -> Listing:
    """Return the images below ``path`` with their masks, or their boxes for detection."""
    root = Path(path)
    if task == "classification":
        fix = "set the task, or give a folder with one sub-folder a class"
        raise UsageError(explain("voc/ is for segmentation and detection", task, fix))
    images = _find_folder(root, _IMAGES, "images")
    targets = _find_folder(root, _MASKS if task == "segmentation" else ("Annotations",), "targets")
    files = _split_files(root, images, task)
    if task == "detection":
        return _list_boxes(path, root, targets, files, options)
    masks = {
        each.relative_to(targets).with_suffix("").as_posix(): each for each in list_images(targets)
    }
    rows = {
        part: [(each, _find_mask(each, images, masks)) for each in paths]
        for part, paths in files.items()
    }
    classes = options.classes or read_names(root) or _count_classes(root, rows)
    parts = {}
    for part, pairs in rows.items():
        keys = [image.relative_to(root).as_posix() for image, _ in pairs]
        groups = read_groups(root, keys, options)
        parts[part] = [
            Sample(
                key,
                FileSource(str(image)),
                FileSource(str(mask)),
                image.stat().st_size,
                group,
                mask.stat().st_size,
            )
            for key, (image, mask), group in zip(keys, pairs, groups, strict=True)
        ]
    return Listing(path, classes, parts)


def _find_folder(root: Path, names: tuple[str, ...], kind: str) -> Path:
    folder = next((root / name for name in names if (root / name).is_dir()), None)
    if folder is None:
        inside = (
            ", ".join(sorted(each.name for each in root.iterdir()))
            if root.is_dir()
            else "no folder"
        )
        fix = f"put them into {root / names[0]}"
        rule = f"the {kind} of VOC lie in {' or '.join(names)}"
        raise UsageError(explain(rule, f"{root} with {inside or 'nothing'}", fix))
    return folder


def _split_files(root: Path, images: Path, task: TaskName) -> dict[str, list[Path]]:
    lists = root / "ImageSets" / _SETS[task]
    texts = {each.stem: each for each in lists.glob("*.txt")} if lists.is_dir() else {}
    found = find_parts(texts)
    if "train" not in found and "trainval" in texts:
        found["train"] = "trainval"
    present = list_images(images)
    if texts:
        by_name = {each.relative_to(images).with_suffix("").as_posix(): each for each in present}
        return {part: _read_list(texts[name], by_name) for part, name in found.items()}
    folders = {each.name: each for each in images.iterdir() if each.is_dir()}
    found = find_parts(folders)
    if "train" not in found:
        return {WHOLE: present}
    return {part: list_images(folders[name]) for part, name in found.items()}


def _read_list(text: Path, images: dict[str, Path]) -> list[Path]:
    names = [line.split()[0] for line in text.read_text().splitlines() if line.strip()]
    missing = next((name for name in names if name not in images), None)
    if missing is not None:
        rule = f"each image of {text} must be there"
        raise UsageError(explain(rule, f"no image {missing}", "add it, or take it off the list"))
    return [images[name] for name in names]


def _find_mask(image: Path, images: Path, masks: dict[str, Path]) -> Path:
    name = image.relative_to(images).with_suffix("").as_posix()
    mask = masks.get(name) or masks.get(f"{name}_mask")
    if mask is None:
        fix = f"add a mask called {image.stem}.png, or take the image away"
        raise UsageError(explain("each image needs a mask of its name", f"none for {image}", fix))
    return mask


def _count_classes(root: Path, rows: dict[str, list[tuple[Path, Path]]]) -> tuple[str, ...]:
    """Name the classes of unnamed masks by their numbers: all masks are read for it."""
    highest = 0
    for pairs in rows.values():
        for _, mask in pairs:
            values = np.array(read_mask(FileSource(str(mask)), None, None))
            known = values[values != IGNORED]
            highest = max(highest, int(known.max(initial=0)))
    if root.name.startswith("VOC2") and highest <= len(VOC_CLASSES):
        return ("background", *VOC_CLASSES)
    return tuple(str(number) for number in range(highest + 1))


def _list_boxes(
    path: str,
    root: Path,
    folder: Path,
    files: dict[str, list[Path]],
    options: DataOptions,
) -> Listing:
    trees = {
        part: [(each, _read_xml(folder / f"{each.stem}.xml")) for each in paths]
        for part, paths in files.items()
    }
    classes = options.classes or read_names(root)
    if not classes:
        names = {name for rows in trees.values() for _, tree in rows for name, _ in _objects(tree)}
        classes = VOC_CLASSES if names <= set(VOC_CLASSES) else tuple(sorted(names))
    parts = {}
    for part, rows in trees.items():
        keys = [image.relative_to(root).as_posix() for image, _ in rows]
        groups = read_groups(root, keys, options)
        parts[part] = [
            Sample(
                key,
                FileSource(str(image)),
                _read_boxes(image, tree, classes),
                image.stat().st_size,
                group,
            )
            for key, (image, tree), group in zip(keys, rows, groups, strict=True)
        ]
    return Listing(path, classes, parts)


def _read_xml(path: Path) -> ElementTree.Element:
    try:
        return ElementTree.parse(path).getroot()
    except (OSError, ElementTree.ParseError) as error:
        fix = "add or repair the file"
        rule = "each image needs an annotation of its name"
        raise UsageError(explain(rule, f"{path} ({error})", fix)) from error


def _objects(tree: ElementTree.Element) -> Iterator[tuple[str, list[float]]]:
    """Yield the class and the corners of each object; difficult ones are left out."""
    for each in tree.iter("object"):
        if each.findtext("difficult", "0").strip() == "1":
            continue
        corners = [
            float(each.findtext(f"bndbox/{name}", "nan"))
            for name in ("xmin", "ymin", "xmax", "ymax")
        ]
        # VOC counts pixels from 1 and includes the last one
        yield each.findtext("name", ""), [corners[0] - 1, corners[1] - 1, *corners[2:]]


def _read_boxes(image: Path, tree: ElementTree.Element, classes: tuple[str, ...]) -> Boxes:
    found = list(_objects(tree))
    for name, _ in found:
        if name not in classes:
            rule = f"objects are of the classes {', '.join(classes)}"
            got = f"{name!r} in the annotation of {image}"
            raise UsageError(explain(rule, got, nearest(name, classes)))
    return Boxes(
        np.array([corners for _, corners in found], np.float32).reshape(-1, 4),
        np.array([classes.index(name) for name, _ in found], np.int64),
        measure_image(FileSource(str(image))),
    )
