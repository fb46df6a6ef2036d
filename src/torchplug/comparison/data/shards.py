"""Read webdataset shards: tars whose members of one name belong together.

::

    train-0000.tar, train-0001.tar, val-0000.tar …      or one list, which is divided here
    key.jpg + key.cls                 the class as a number, or key.json with "label"
    key.jpg + key.mask.png            for segmentation
    key.jpg + key.json                {"boxes": [[x1, y1, x2, y2], …], "labels": […]}
    classes.txt                       names by number, beside the shards

Shards are made to be streamed; here they are indexed once, and then read in any order by seeking,
so that every epoch has the order that the seed asks for.
"""

import dataclasses
import itertools
import json
import re
import tarfile
from pathlib import Path
from typing import Any

import numpy as np

from torchplug.comparison.data.options import DataOptions, read_names
from torchplug.comparison.data.pixels import measure_image
from torchplug.comparison.data.samples import WHOLE, Boxes, Listing, Sample, TarSource, part_of
from torchplug.comparison.spec import TaskName
from torchplug.errors import UsageError, explain, nearest

_IMAGES = ("jpg", "jpeg", "png", "webp", "ppm", "pgm", "bmp", "tif", "tiff")
_MASKS = ("mask.png", "seg.png", "mask.pgm")
_LABELS = ("label", "cls", "class")


def list_shards(pattern: str, task: TaskName, options: DataOptions) -> Listing:
    """Return the samples of a folder of tars, of a glob, or of ``name-{0000..0009}.tar``."""
    shards = _find_shards(pattern)
    parts: dict[str, list[Path]] = {}
    for shard in shards:
        parts.setdefault(_find_part(shard) or WHOLE, []).append(shard)
    if WHOLE in parts and len(parts) > 1:
        rule = "either all shards have a part in their name, or none"
        got = f"{parts[WHOLE][0].name} beside others"
        raise UsageError(explain(rule, got, "rename it, such as train-0000.tar"))
    if len(parts) == 1:
        parts = {WHOLE: shards}
    classes = options.classes or read_names(shards[0].parent)
    options = dataclasses.replace(options, classes=classes)
    samples = {
        part: [
            _read_sample(shard, key, members, task, options)
            for shard in files
            for key, members in _index(shard).items()
        ]
        for part, files in parts.items()
    }
    return Listing(pattern, classes or _count_classes(samples), samples)


def _find_shards(pattern: str) -> list[Path]:
    found: list[Path] = []
    for name in itertools.chain.from_iterable(_expand(each) for each in pattern.split("::")):
        path = Path(name)
        if path.is_dir():
            found += sorted(path.rglob("*.tar"))
        elif "*" in name or "?" in name or "[" in name:
            found += sorted(Path(path.anchor).glob(str(path.relative_to(path.anchor))))
        else:
            found.append(path)
    missing = next((path for path in found if not path.is_file()), None)
    if missing is not None or not found:
        fix = "give a folder, a glob, or braces such as train-{0000..0009}.tar"
        raise UsageError(explain("wds/ names tars that exist", str(missing or pattern), fix))
    return found


def _expand(pattern: str) -> list[str]:
    """Expand braces as shells do.

    >>> _expand("a-{08..10}.{x,y}")
    ['a-08.x', 'a-08.y', 'a-09.x', 'a-09.y', 'a-10.x', 'a-10.y']
    """
    match = re.search(r"\{([^{}]*)\}", pattern)
    if match is None:
        return [pattern]
    span = re.fullmatch(r"(\d+)\.\.(\d+)", match[1])
    if span:
        numbers = range(int(span[1]), int(span[2]) + 1)
        choices = [str(number).zfill(len(span[1])) for number in numbers]
    else:
        choices = match[1].split(",")
    rest = _expand(pattern[match.end() :])
    return [pattern[: match.start()] + choice + end for choice in choices for end in rest]


def _find_part(shard: Path) -> str | None:
    words = [*re.split(r"[-_.]", shard.stem), shard.parent.name]
    return next((part for part in map(part_of, words) if part), None)


def _index(shard: Path) -> dict[str, dict[str, TarSource]]:
    """Return the places of the members, by key and by what follows the first dot."""
    found: dict[str, dict[str, TarSource]] = {}
    try:
        with tarfile.open(shard, "r:") as file:
            for member in file:
                folder, _, name = member.name.removeprefix("./").rpartition("/")
                key, dot, suffix = name.partition(".")
                if member.isfile() and key and dot:
                    place = TarSource(str(shard), member.offset_data, member.size, member.name)
                    found.setdefault(f"{folder}/{key}".lstrip("/"), {})[suffix.lower()] = place
    except (tarfile.TarError, OSError, EOFError) as error:
        raise UsageError(_explain_broken(shard, error)) from error
    length = shard.stat().st_size
    if any(each.offset + each.size > length for key in found.values() for each in key.values()):
        raise UsageError(_explain_broken(shard, "it ends within a member"))
    if not found:
        raise UsageError(explain("a shard holds samples", f"none in {shard}", "remove the file"))
    return found


def _explain_broken(shard: Path, error: object) -> str:
    fix = "copy it anew; a compressed one is unpacked first: gunzip"
    return explain("every shard must be a whole, uncompressed tar", f"{shard} ({error})", fix)


def _read_sample(
    shard: Path, key: str, members: dict[str, TarSource], task: TaskName, options: DataOptions
) -> Sample:
    image = next((members[suffix] for suffix in _IMAGES if suffix in members), None)
    if image is None:
        rule = f"each sample of a shard has an image ({', '.join(_IMAGES)})"
        got = f"{key} of {shard} with {', '.join(members)}"
        raise UsageError(explain(rule, got, "write the image under the same key"))
    content = _read_json(members["json"]) if "json" in members else {}
    target: int | TarSource | Boxes
    if task == "classification":
        target = _read_label(shard, key, members, content, options)
    elif task == "segmentation":
        masks = [members[suffix] for suffix in _MASKS if suffix in members]
        if not masks:
            raise UsageError(_explain_target(shard, key, members, "a mask", "key.mask.png"))
        target = masks[0]
    else:
        target = _read_boxes(shard, key, members, content, image)
    group = None
    if options.group:
        if options.group not in content:
            rule = f"the json of each sample has the group {options.group!r}"
            got = f"{key} of {shard} with {', '.join(content) or 'none'}"
            raise UsageError(explain(rule, got, nearest(options.group, content or ["json"])))
        group = str(content[options.group])
    drawn = target.size if isinstance(target, TarSource) else 0
    return Sample(f"{shard.name}/{key}", image, target, image.size, group, drawn)


def _read_json(place: TarSource) -> dict[str, Any]:
    try:
        content = json.loads(place.read())
    except ValueError as error:
        rule = "json of a shard must be readable"
        raise UsageError(explain(rule, f"{place.name} ({error})", "write it anew")) from error
    return content if isinstance(content, dict) else {}


def _read_label(
    shard: Path,
    key: str,
    members: dict[str, TarSource],
    content: dict[str, Any],
    options: DataOptions,
) -> int:
    if "cls" in members:
        value: Any = members["cls"].read().decode(errors="replace").strip()
    else:
        named = [content[name] for name in (options.label, *_LABELS) if name in content]
        if not named:
            raise UsageError(_explain_target(shard, key, members, "a class", "key.cls"))
        value = named[0]
    if value in options.classes:
        return options.classes.index(value)
    try:
        return int(value)
    except (TypeError, ValueError) as error:
        rule = "a class is a number from 0, or one of the names given as classes"
        got = f"{value!r} in {key} of {shard}"
        raise UsageError(explain(rule, got, "name the classes as an option")) from error


def _read_boxes(
    shard: Path, key: str, members: dict[str, TarSource], content: dict[str, Any], image: TarSource
) -> Boxes:
    if "boxes" not in content or len(content["boxes"]) != len(content.get("labels", ())):
        asked = "boxes and as many labels", 'key.json with "boxes" and "labels"'
        raise UsageError(_explain_target(shard, key, members, *asked))
    corners = np.array(content["boxes"], np.float32).reshape(-1, 4)
    return Boxes(corners, np.array(content["labels"], np.int64), measure_image(image))


def _explain_target(
    shard: Path, key: str, members: dict[str, TarSource], what: str, member: str
) -> str:
    got = f"{key} of {shard} with {', '.join(members)}"
    return explain(f"each sample of a shard has {what}", got, f"write it as {member}")


def _count_classes(parts: dict[str, list[Sample]]) -> tuple[str, ...]:
    highest = -1
    for sample in itertools.chain.from_iterable(parts.values()):
        if isinstance(sample.target, int):
            highest = max(highest, sample.target)
        elif isinstance(sample.target, Boxes):
            highest = max(highest, int(sample.target.labels.max(initial=-1)))
        else:
            rule = "the classes of masks must be named"
            fix = "write classes.txt beside the shards, or name them as an option"
            raise UsageError(explain(rule, "no classes.txt", fix))
    return tuple(str(number) for number in range(highest + 1))
