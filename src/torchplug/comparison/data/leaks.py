"""Find what is in two parts at once: groups, copies, and images that are nearly the same.

A test image that the training has seen makes every variant look better than it is. What is found is
told, not repaired: only the owner of the data knows which of two to keep.
"""

import hashlib
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from torchplug.comparison.data.samples import FileSource, Sample, TarSource

_SIDE = 16
_ALIKE = 0.998
"""Correlation of two thumbnails from which images count as nearly the same."""

_PAIRS = 200_000_000
"""Pairs that are compared at most: seconds on one core."""

_BLOCK = 2048


def find_shared_groups(parts: Mapping[str, list[Sample]]) -> str:
    """Return a sentence on the groups that are in several parts, or nothing."""
    members = {
        part: {sample.group for sample in samples if sample.group is not None}
        for part, samples in parts.items()
    }
    held_out = members["validation"] | members["test"]
    shared = sorted((members["train"] & held_out) | (members["validation"] & members["test"]))
    if not shared:
        return ""
    return (
        f"{len(shared)} groups are in several parts, such as {shared[0]!r}: results will look "
        "better than they are; divide the parts by group"
    )


def find_twins(parts: Mapping[str, list[Sample]], items: Mapping[str, Any]) -> str:
    """Return a sentence on held-out images that nearly equal a training image, or nothing.

    Compared are thumbnails of 16 x 16 gray values without their mean and contrast: the same picture
    compressed again, scaled, or brightened is found; a mirrored or cropped one is not.
    """
    known = _thumbnails(items["train"].images)
    for part in ("test", "validation"):
        images = items[part].images
        most = max(_PAIRS // len(known), 1)
        step = max(-(-len(images) // most), 1)
        twins = _match(_thumbnails(images[::step]), known)
        if twins:
            mine, theirs = twins[0]
            text = _tell(len(twins), part, "nearly the same as")
            pair = f"{parts[part][mine * step].key} and {parts['train'][theirs].key}"
            return f"{text}, such as {pair}"
    return ""


def _thumbnails(images: Tensor) -> Tensor:
    """Return ``(N, 256)`` values of unit length."""
    rows = []
    for block in torch.split(images, _BLOCK):
        gray = block.float().mean(1, keepdim=True)
        small = nn.functional.interpolate(gray, (_SIDE, _SIDE), mode="area").flatten(1)
        rows.append(small - small.mean(1, keepdim=True))
    return nn.functional.normalize(torch.cat(rows), dim=1)


def _match(images: Tensor, known: Tensor) -> list[tuple[int, int]]:
    found = []
    for start in range(0, len(images), _BLOCK):
        best, where = (images[start : start + _BLOCK] @ known.T).max(1)
        hits = (best > _ALIKE).nonzero().flatten()
        found += [(start + int(hit), int(where[hit])) for hit in hits]
    return found


def find_copies(parts: Mapping[str, list[Sample]]) -> str:
    """Return a sentence on held-out files that equal a training file byte by byte, or nothing.

    For sets too large to be held in memory; only files of one size are read.
    """
    sizes = {sample.size for sample in parts["train"]}
    for part in ("test", "validation"):
        mine = [sample for sample in parts[part] if sample.size in sizes]
        wanted = {sample.size for sample in mine}
        theirs = {
            _hash_file(sample): sample.key for sample in parts["train"] if sample.size in wanted
        }
        pairs = [(sample.key, theirs.get(_hash_file(sample))) for sample in mine]
        copies = [(key, other) for key, other in pairs if other is not None]
        if copies:
            text = _tell(len(copies), part, "copies of")
            return f"{text}, such as {copies[0][0]} and {copies[0][1]}"
    return ""


def _hash_file(sample: Sample) -> bytes:
    source = sample.image
    if isinstance(source, FileSource):
        with open(source.path, "rb") as file:  # noqa: PTH123 - hashlib wants the file itself
            return hashlib.file_digest(file, "sha256").digest()
    if isinstance(source, TarSource):
        return hashlib.sha256(source.read()).digest()
    return sample.key.encode()  # kept elsewhere: not compared


def _tell(count: int, part: str, relation: str) -> str:
    return (
        f"{count} {part} images are {relation} a training image: results will look better than "
        "they are; keep such images in one part by naming a group"
    )
