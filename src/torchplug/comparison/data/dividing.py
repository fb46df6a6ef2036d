"""Divide a set that comes without a split: by rule, the same on every machine and for every seed.

Within each class the samples are ordered by a hash of their names, and the first ones are held
out: no random state, no stored index file, and a renamed folder above the set changes nothing.
Groups are never divided.
"""

import hashlib
from collections import Counter
from collections.abc import Hashable, Mapping, Sequence

import numpy as np

from torchplug.comparison.data.samples import WHOLE, Boxes, Sample
from torchplug.errors import UsageError, explain

VALIDATION_SHARE, TEST_SHARE = 0.1, 0.4
_FEWEST = 3


def divide(parts: Mapping[str, list[Sample]], name: str) -> dict[str, list[Sample]]:
    """Return train, validation and test; what the set does not divide is divided here.

    Without any held-out part 40 % are the test and 10 % the validation; with one held-out part
    that is the test; validation images are then 10 % of all, taken from the training images.

    Raises:
        UsageError: if there are no training images or too few to divide.
    """
    train = parts.get("train") or parts.get(WHOLE)
    test, validation = parts.get("test"), parts.get("validation")
    if not train:
        fix = "add a part called train, or give all images without parts"
        raise UsageError(explain(f"{name} needs training images", _describe(parts), fix))
    if not test and validation:  # one held-out part: that is the test
        test, validation = validation, None
    if not test:
        train, test = split_off(train, TEST_SHARE, name, "test")
    if not validation:
        # the validation share is one of the whole, as the test share is
        share = min(VALIDATION_SHARE * (len(train) + len(test)) / len(train), 0.5)
        train, validation = split_off(train, share, name, "validation")
    return {"train": train, "validation": validation, "test": test}


def _describe(parts: Mapping[str, list[Sample]]) -> str:
    return ", ".join(f"{len(samples)} for {part}" for part, samples in parts.items()) or "nothing"


def split_off(
    samples: Sequence[Sample], share: float, name: str, purpose: str
) -> tuple[list[Sample], list[Sample]]:
    """Return the rest and what was taken, each in the order of the list."""
    if any(sample.group is not None for sample in samples):
        taken = _take_groups(samples, share, purpose)
    else:
        taken = _take_samples(samples, share, purpose)
    rest = [sample for index, sample in enumerate(samples) if index not in taken]
    if all(isinstance(sample.target, int) for sample in samples):
        _check_classes(samples, rest, name, purpose)
    if not rest or not taken:
        fix = "add images, or bring the split along as train, val and test parts"
        got = f"{len(samples)} images" + _count_groups(samples)
        raise UsageError(explain(f"{name} needs enough images to be split", got, fix))
    return rest, [samples[index] for index in sorted(taken)]


def _take_samples(samples: Sequence[Sample], share: float, purpose: str) -> set[int]:
    strata: dict[Hashable, list[int]] = {}
    kinds = _find_strata(samples)
    for index, kind in enumerate(kinds):
        strata.setdefault(kind, []).append(index)
    taken: set[int] = set()
    for indices in strata.values():
        indices.sort(key=lambda index: _rank(samples[index].key, purpose))
        count = min(max(round(share * len(indices)), 1), len(indices) - 1)
        taken.update(indices[:count])
    return taken


def _find_strata(samples: Sequence[Sample]) -> list[Hashable]:
    """The class of each image; of an image with several objects, its rarest one."""
    seen = [_labels(sample) for sample in samples]
    counts = Counter(label for labels in seen for label in labels)
    kinds: list[Hashable] = [
        min(labels, key=lambda label: (counts[label], label)) if labels else None for labels in seen
    ]
    sizes = Counter(kinds)
    # strata of one or two images would all go the same way
    return [
        kind if sizes[kind] >= _FEWEST or isinstance(sample.target, int) else None
        for kind, sample in zip(kinds, samples, strict=True)
    ]


def _labels(sample: Sample) -> frozenset[int]:
    if isinstance(sample.target, int):
        return frozenset({sample.target})
    if isinstance(sample.target, Boxes):
        return frozenset(sample.target.labels.tolist())
    return frozenset()


def _rank(key: str, purpose: str) -> bytes:
    return hashlib.sha256(f"torchplug\0split\0{purpose}\0{key}".encode()).digest()


def _take_groups(samples: Sequence[Sample], share: float, purpose: str) -> set[int]:
    """Take whole groups, the large ones first, as long as they bring the classes nearer the share.

    A sample without a group is a group of its own.
    """
    groups: dict[str, list[int]] = {}
    for index, sample in enumerate(samples):
        key = f"sample {sample.key}" if sample.group is None else f"group {sample.group}"
        groups.setdefault(key, []).append(index)
    labels = sorted({label for sample in samples for label in _labels(sample)})
    rows = np.array([[label in _labels(sample) for label in labels] for sample in samples])
    counts = np.concatenate([np.ones((len(samples), 1)), rows], axis=1).astype(float)
    goal = counts.sum(0) * share
    weights = 1 / np.maximum(goal, 1)
    held, taken = np.zeros_like(goal), set[int]()
    order = sorted(groups, key=lambda key: (-len(groups[key]), _rank(key, purpose)))
    for key in order:
        added = counts[groups[key]].sum(0)
        gained = (np.abs(goal - held) - np.abs(goal - held - added)) * weights
        fits = len(taken) + len(groups[key]) < len(samples)
        # the smallest group is taken in any case, where all are larger than the share
        if fits and (gained.sum() > 0 or (key == order[-1] and not taken)):
            held, taken = held + added, taken | set(groups[key])
    return taken


def _count_groups(samples: Sequence[Sample]) -> str:
    groups = {sample.group for sample in samples} - {None}
    return f" in {len(groups)} groups" if groups else ""


def _check_classes(
    samples: Sequence[Sample], rest: Sequence[Sample], name: str, purpose: str
) -> None:
    before, after = (
        Counter(label for sample in each for label in _labels(sample)) for each in (samples, rest)
    )
    lost = sorted(label for label in before if not after[label])
    scarce = [label for label, count in before.items() if count == 1] if purpose == "test" else []
    if lost or scarce:
        counts = [before[label] for label in sorted(before)]
        text = explain(
            f"{name} needs several images of each class to be split",
            f"{counts} images a class{_count_groups(samples)}",
            "add images, or bring the split along as train, val and test folders",
        )
        raise UsageError(text)
