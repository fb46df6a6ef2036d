"""What can be said about a data set beside its name."""

import csv
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from torchplug.errors import UsageError, explain, nearest

METADATA = ("metadata.csv", "groups.csv")
_FILE_COLUMNS = ("file_name", "filename", "file", "path", "image")


@dataclass(frozen=True, kw_only=True)
class DataOptions:
    """Options of a data set, all of them optional.

    >>> DataOptions.read({"group": "patient"}).group
    'patient'
    """

    classes: tuple[str, ...] = ()
    """Names by class number, where the set brings none."""

    group: str = ""
    """Column that says what must not be divided, such as a patient: of ``metadata.csv`` beside
    images, of the table of a Hugging Face set, of the json of a shard, of the images of COCO."""

    group_pattern: str = ""
    """The group read from the path of an image instead: what ``(…)`` matches, as in
    ``([^/_]+)_[0-9]+``."""

    image: str = ""
    """Column of the image; the only one with images otherwise."""

    label: str = ""
    """Column of the class; ``label`` or the only one with classes otherwise."""

    mask: str = ""
    """Column of the mask; the other one with images otherwise."""

    objects: str = ""
    """Column of boxes; ``objects`` otherwise."""

    year: str = "2012"
    """Of VOC under a torchvision root."""

    @classmethod
    def read(cls, content: Mapping[str, Any] | None) -> "DataOptions":
        """Return the options, refusing what there is not."""
        content = dict(content or {})
        known = [field.name for field in fields(cls)]
        for key in content:
            if key not in known:
                rule = f"options of data are {', '.join(known)}"
                raise UsageError(explain(rule, repr(key), nearest(key, known)))
        classes = content.pop("classes", ())
        if isinstance(classes, int):
            classes = [str(number) for number in range(classes)]
        if not isinstance(classes, (list, tuple)):
            fix = "pass classes=['cat', 'dog'], or how many there are"
            raise UsageError(explain("classes are a list of names", repr(classes), fix))
        content = {key: str(value) for key, value in content.items()}
        options = cls(classes=tuple(map(str, classes)), **content)
        _compile(options.group_pattern)
        return options


def read_names(root: Path) -> tuple[str, ...]:
    """Return the names of ``classes.txt``, one a line by class number; none without the file."""
    file = root / "classes.txt"
    if not file.is_file():
        return ()
    return tuple(file.read_text(encoding="utf-8").strip().splitlines())


def read_groups(root: Path, keys: Sequence[str], options: DataOptions) -> list[str | None]:
    """Return the group of each image; ``keys`` are paths below ``root``."""
    if options.group_pattern:
        return _match_groups(keys, options.group_pattern)
    if not options.group:
        return [None] * len(keys)
    table = next((root / name for name in METADATA if (root / name).is_file()), None)
    if table is None:
        text = explain(
            f"a group is a column of {METADATA[0]}, which names each image",
            f"group {options.group!r} and no such file in {root}",
            f"write {METADATA[0]} with the columns file_name and {options.group}",
        )
        raise UsageError(text)
    groups = _read_table(table, options.group)
    missing = next((key for key in keys if key not in groups), None)
    if missing is not None:
        text = explain(f"{table} must name each image", f"no row for {missing}", "add the row")
        raise UsageError(text)
    return [groups[key] for key in keys]


def _read_table(table: Path, column: str) -> dict[str, str]:
    with table.open(newline="", encoding="utf-8-sig") as file:
        reader = csv.DictReader(file)
        columns = list(reader.fieldnames or ())
        files = next((name for name in _FILE_COLUMNS if name in columns), None)
        if files is None or column not in columns:
            wanted = "file_name" if files is None else column
            rule = f"{table} must have the columns file_name and {column}"
            fix = f"add the column {wanted!r}" if files is None else nearest(column, columns)
            raise UsageError(explain(rule, ", ".join(columns) or "no columns", fix))
        return {row[files].replace("\\", "/"): row[column] for row in reader}


def _match_groups(keys: Sequence[str], pattern: str) -> list[str | None]:
    compiled = _compile(pattern)
    groups = []
    for key in keys:
        match = compiled.search(key)
        if match is None:
            rule = f"group_pattern {pattern!r} must match each path"
            raise UsageError(explain(rule, repr(key), "make the pattern wider"))
        groups.append(match.group(1))
    return groups


def _compile(pattern: str) -> re.Pattern[str]:
    fix = "write one pair of parentheses around what names the group: ([^/_]+)_[0-9]+"
    try:
        compiled = re.compile(pattern)
    except re.error as error:
        rule = "group_pattern is a regular expression"
        raise UsageError(explain(rule, f"{pattern!r} ({error})", fix)) from error
    if pattern and compiled.groups != 1:
        rule = "group_pattern has one group"
        raise UsageError(explain(rule, f"{compiled.groups} in {pattern!r}", fix))
    return compiled
