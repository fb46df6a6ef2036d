"""Read what ``save_to_disk`` of Hugging Face's ``datasets`` wrote; nothing is fetched."""

import io
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from torchplug.comparison.data.options import DataOptions
from torchplug.comparison.data.pixels import measure_image
from torchplug.comparison.data.samples import WHOLE, Boxes, Listing, Sample, Source, find_parts
from torchplug.comparison.spec import TaskName
from torchplug.errors import UsageError, explain, import_extra, nearest

_BLOCK = 1000


@dataclass(frozen=True, slots=True)
class RowSource:
    """An encoded image in one row of a table."""

    table: Any = field(repr=False)
    """The set with this column only: other columns are not read along."""

    column: str
    index: int
    part: str

    @property
    def name(self) -> str:
        """Part, row and column."""
        return f"row {self.index} of {self.part}, column {self.column!r}"

    def open(self) -> Image.Image:
        """Open the image."""
        stored = self.table[self.index][self.column]
        return Image.open(
            stored["path"] if stored["bytes"] is None else io.BytesIO(stored["bytes"])
        )


def list_hf(path: str, task: TaskName, options: DataOptions) -> Listing:
    """Return the rows of a saved ``Dataset`` or ``DatasetDict``."""
    tables = _load(path)
    first = next(iter(tables.values()))
    columns = _Columns(first.features, task, options, path)
    classes = options.classes or columns.class_names()
    labels = _Labels(classes)
    parts = {
        part: list(columns.read(table, part, labels, options)) for part, table in tables.items()
    }
    if not classes and task == "segmentation":
        rule = "the classes of masks must be named"
        fix = "name them as an option: classes = ['background', …], or their number"
        raise UsageError(explain(rule, f"none for {path}", fix))
    return Listing(path, classes or labels.names(), parts)


def _load(path: str) -> dict[str, Any]:
    datasets = import_extra("datasets", extra="data", purpose="a set of Hugging Face on disk")
    try:
        loaded = datasets.load_from_disk(path)
    except (OSError, ValueError) as error:
        text = explain(
            "hfds/ is a folder written by save_to_disk",
            f"{path} ({str(error).splitlines()[0]})",
            "save it once: dataset.save_to_disk(path)",
        )
        raise UsageError(text) from error
    if not isinstance(loaded, datasets.DatasetDict):
        return {WHOLE: loaded}
    found = find_parts(loaded)
    if "train" not in found:
        fix = "add a split called train, or save one Dataset without splits"
        raise UsageError(explain(f"{path} needs training images", ", ".join(loaded), fix))
    return {part: loaded[name] for part, name in found.items()}


class _Labels:
    """Numbers of classes; names that come as text are numbered in their alphabet."""

    def __init__(self, classes: tuple[str, ...]) -> None:
        self.known = {name: number for number, name in enumerate(classes)}
        self.highest = -1

    def number(self, values: list[Any]) -> list[int]:
        """Return the number of each value."""
        if values and isinstance(values[0], str) and not self.known:
            self.known = {name: number for number, name in enumerate(sorted(set(values)))}
        numbers = []
        for value in values:
            if isinstance(value, str) and value not in self.known:
                rule = f"classes are {', '.join(self.known)}"
                fix = nearest(value, self.known)
                raise UsageError(explain(rule, repr(value), fix))
            numbers.append(self.known[value] if isinstance(value, str) else int(value))
        self.highest = max([self.highest, *numbers])
        return numbers

    def names(self) -> tuple[str, ...]:
        """Return the names of all classes seen."""
        return tuple(self.known) or tuple(str(number) for number in range(self.highest + 1))


class _Columns:
    """Which columns hold what."""

    def __init__(self, features: Any, task: TaskName, options: DataOptions, path: str) -> None:
        self.features, self.path, self.task = features, path, task
        images = [name for name in features if type(features[name]).__name__ == "Image"]
        self.image = self._choose("image", options.image, images, "image")
        if task == "segmentation":
            others = [name for name in images if name != self.image]
            self.target = self._choose("mask", options.mask, others, "mask")
        elif task == "detection":
            self.target = self._choose("objects", options.objects, [], "objects")
        else:
            named = [name for name in features if type(features[name]).__name__ == "ClassLabel"]
            self.target = self._choose("label", options.label, named, "label")

    def _choose(self, what: str, asked: str, candidates: list[str], usual: str) -> str:
        if asked and asked in self.features:
            return asked
        if not asked and usual in self.features:
            return usual
        if not asked and len(candidates) == 1:
            return candidates[0]
        got = f"columns {', '.join(self.features)}" + (f" and {what} = {asked!r}" if asked else "")
        fix = nearest(asked, self.features) if asked else f"name the column: {what} = …"
        raise UsageError(explain(f"{self.path} needs a column of the {what}", got, fix))

    def class_names(self) -> tuple[str, ...]:
        """Return the names that the table brings."""
        feature = self.features[self.target]
        if self.task == "detection":
            objects = getattr(feature, "feature", feature)
            feature = objects[_find_key(objects)]
            feature = getattr(feature, "feature", feature)
        return tuple(getattr(feature, "names", ()))

    def read(
        self, table: Any, part: str, labels: _Labels, options: DataOptions
    ) -> Iterator[Sample]:
        """Yield the samples of one part."""
        if options.group and options.group not in self.features:
            rule = f"{self.path} needs the column of the group"
            raise UsageError(explain(rule, options.group, nearest(options.group, self.features)))
        images = _select(table, self.image)
        groups = table[options.group] if options.group else [None] * len(table)
        sizes = _measure(images, self.image, part)
        drawn = [0] * len(sizes)
        if self.task == "segmentation":
            drawn = _measure(_select(table, self.target), self.target, part)
        targets = self._read_targets(table, part, images, labels)
        rows = zip(sizes, targets, groups, drawn, strict=True)
        for index, (size, target, group, mask_size) in enumerate(rows):
            source = RowSource(images, self.image, index, part)
            name = None if group is None else str(group)
            yield Sample(f"{part}/{index:06d}", source, target, size, name, mask_size)

    def _read_targets(
        self, table: Any, part: str, images: Any, labels: _Labels
    ) -> Iterator[int | Source | Boxes]:
        if self.task == "classification":
            yield from labels.number(list(table[self.target]))
        elif self.task == "segmentation":
            masks = _select(table, self.target)
            yield from (RowSource(masks, self.target, index, part) for index in range(len(masks)))
        else:
            for index, objects in enumerate(table[self.target]):
                frame = measure_image(RowSource(images, self.image, index, part))
                yield _read_boxes(objects, labels, frame)


def _select(table: Any, column: str) -> Any:
    datasets = import_extra("datasets", extra="data", purpose="a set of Hugging Face on disk")
    return table.select_columns([column]).cast_column(column, datasets.Image(decode=False))


def _measure(images: Any, column: str, part: str) -> list[int]:
    """Return the stored size of each image."""
    sizes: list[int] = []
    for start in range(0, len(images), _BLOCK):
        for stored in images[start : start + _BLOCK][column]:
            path = Path(stored["path"] or "") if stored else Path()
            if stored and stored["bytes"] is not None:
                sizes.append(len(stored["bytes"]))
            elif path.is_file():
                sizes.append(path.stat().st_size)
            else:
                rule = f"every row has an image in column {column!r}"
                fix = "remove the row, or save the set with its images embedded"
                raise UsageError(explain(rule, f"none in row {len(sizes)} of {part}", fix))
    return sizes


def _find_key(objects: Any) -> str:
    for key in ("category", "categories", "label", "labels", "category_id"):
        if key in objects:
            return key
    got, fix = ", ".join(objects), "rename the field of the class to category"
    raise UsageError(explain("objects need a field of their class", got, fix))


def _read_boxes(objects: Any, labels: _Labels, frame: tuple[int, int]) -> Boxes:
    """Read ``{"bbox": [[x, y, width, height], …], "category": […]}``, in pixels as in COCO."""
    if isinstance(objects, list):  # a list of structs rather than a struct of lists
        keys = objects[0] if objects else ("bbox", "category")
        objects = {key: [each[key] for each in objects] for key in keys}
    if "bbox" not in objects:
        got, fix = ", ".join(objects), "rename the field of the boxes to bbox"
        raise UsageError(explain("objects need a field bbox: x, y, width, height", got, fix))
    corners = np.array(objects["bbox"], np.float64).reshape(-1, 4)
    corners[:, 2:] += corners[:, :2]
    numbers = labels.number(list(objects[_find_key(objects)]))
    return Boxes(corners.astype(np.float32), np.array(numbers, np.int64), frame)
