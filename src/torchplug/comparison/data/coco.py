"""Read images with boxes as COCO lays them out.

::

    annotations/instances_train2017.json    or instances_train.json beside the images,
                                            or train/_annotations.coco.json
    train2017/  or images/train2017/  or images/

Crowds are left out. Classes are the categories in the order of their ids.
"""

import json
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np

from torchplug.comparison.data.options import DataOptions
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

_PREFIX = "instances_"


def list_coco(path: str, task: TaskName, options: DataOptions) -> Listing:
    """Return the images of every ``instances_*.json``, with their boxes."""
    if task != "detection":
        fix = "set the task to detection"
        raise UsageError(explain("coco/ is for detection", task, fix))
    root = Path(path)
    files = _find_files(root)
    found = find_parts(files)
    if "train" not in found and len(files) == 1:
        found = {WHOLE: next(iter(files))}
    elif "train" not in found:
        fix = "call one of them instances_train.json"
        raise UsageError(explain(f"{root} needs training images", ", ".join(sorted(files)), fix))
    contents = {part: _read_json(files[name]) for part, name in found.items()}
    categories = [_read_categories(content) for content in contents.values()]
    for part, others in zip(found, categories, strict=True):
        if others != categories[0]:
            rule = f"all parts of {root} must have the same categories"
            here, before = (", ".join(each.values()) for each in (others, categories[0]))
            got = f"{here} in {part}, {before} before"
            raise UsageError(explain(rule, got, "write the same list into each file"))
    numbers = {identity: number for number, identity in enumerate(sorted(categories[0]))}
    parts = {
        part: _list_part(root, files[found[part]], found[part], content, numbers, options)
        for part, content in contents.items()
    }
    names = tuple(categories[0][identity] for identity in sorted(categories[0]))
    return Listing(path, options.classes or names, parts)


def _find_files(root: Path) -> dict[str, Path]:
    files = {
        file.stem.removeprefix(_PREFIX): file
        for folder in (root / "annotations", root)
        for file in sorted(folder.glob(f"{_PREFIX}*.json"))
    }
    files |= {file.parent.name: file for file in sorted(root.glob("*/_annotations.coco.json"))}
    if not files:
        inside = (
            ", ".join(sorted(each.name for each in root.iterdir())[:5]) if root.is_dir() else ""
        )
        text = explain(
            "COCO's boxes lie in annotations/instances_train.json and its like",
            f"{root} with {inside or 'nothing'}",
            "name the folder that holds annotations/",
        )
        raise UsageError(text)
    return files


def _read_json(file: Path) -> dict[str, Any]:
    try:
        content: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
        missing = [key for key in ("images", "annotations", "categories") if key not in content]
    except (ValueError, TypeError) as error:
        raise UsageError(explain(f"{file} must be JSON", str(error), "repair the file")) from error
    if missing:
        rule = f"{file} must hold images, annotations and categories"
        raise UsageError(explain(rule, f"no {', '.join(missing)}", "export the boxes as COCO"))
    return content


def _read_categories(content: dict[str, Any]) -> dict[int, str]:
    return {int(each["id"]): str(each["name"]) for each in content["categories"]}


def _list_part(
    root: Path,
    file: Path,
    name: str,
    content: dict[str, Any],
    numbers: dict[int, int],
    options: DataOptions,
) -> list[Sample]:
    drawn = defaultdict(list)
    for each in content["annotations"]:
        if not each.get("iscrowd"):
            drawn[each["image_id"]].append(each)
    samples = []
    for row in content["images"]:
        image = _find_image(root, file, name, row["file_name"])
        frame = int(row["width"]), int(row["height"])
        boxes = _read_boxes(drawn.pop(row["id"], []), numbers, frame, image)
        key = image.relative_to(root).as_posix()
        size = image.stat().st_size
        samples.append(Sample(key, FileSource(str(image)), boxes, size, _group(row, options, file)))
    if drawn:
        rule = f"each box of {file} belongs to one of its images"
        got = f"image_id {next(iter(drawn))}"
        raise UsageError(explain(rule, got, "add the image, or remove the box"))
    return samples


def _find_image(root: Path, file: Path, name: str, file_name: str) -> Path:
    folders = (root / name, root / "images" / name, root / "images", file.parent, root)
    found = next((each / file_name for each in folders if (each / file_name).is_file()), None)
    if found is None:
        rule = f"each image of {file} must be there"
        fix = f"put it into {folders[0]} or {folders[1]}"
        raise UsageError(explain(rule, f"no {file_name}", fix))
    return found


def _group(row: dict[str, Any], options: DataOptions, file: Path) -> str | None:
    if not options.group:
        return None
    if options.group not in row:
        rule = f"each image of {file} must have the group {options.group!r}"
        raise UsageError(explain(rule, ", ".join(row), nearest(options.group, row)))
    return str(row[options.group])


def _read_boxes(
    rows: list[dict[str, Any]], numbers: dict[int, int], frame: tuple[int, int], image: Path
) -> Boxes:
    unknown = next((row for row in rows if row["category_id"] not in numbers), None)
    if unknown is not None:
        rule = f"category_id is one of {', '.join(map(str, sorted(numbers)))}"
        got = f"{unknown['category_id']} for {image}"
        raise UsageError(explain(rule, got, "add the category, or correct the box"))
    corners = np.array([row["bbox"] for row in rows], np.float64).reshape(-1, 4)
    corners[:, 2:] += corners[:, :2]
    labels = np.array([numbers[row["category_id"]] for row in rows], np.int64)
    return Boxes(corners.astype(np.float32), labels, frame)
