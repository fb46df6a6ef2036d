"""Sets without a split are divided by rule: stratified, whole groups, the same everywhere."""

from collections import Counter

import numpy as np
import pytest

import torchplug as tp
from torchplug.comparison.data.dividing import divide, split_off
from torchplug.comparison.data.samples import Boxes, FileSource, Sample, find_parts


def make(index: int, label: int, group: str | None = None) -> Sample:
    return Sample(f"{label}/{index}.png", FileSource("nowhere"), label, 1, group)


def test_each_class_keeps_its_share() -> None:
    samples = [make(i, label) for label, count in ((0, 100), (1, 10)) for i in range(count)]
    parts = divide({"all": samples}, "set")
    for part, share in (("train", 0.5), ("validation", 0.1), ("test", 0.4)):
        counts = Counter(sample.target for sample in parts[part])
        assert counts == {0: round(100 * share), 1: round(10 * share)}


def test_the_split_follows_names_and_not_order() -> None:
    samples = [make(i, i % 2) for i in range(60)]
    first = {sample.key for sample in divide({"all": samples}, "set")["test"]}
    again = {sample.key for sample in divide({"all": samples[::-1]}, "set")["test"]}
    assert first == again
    assert first != {sample.key for sample in samples[: len(first)]}


def test_one_more_image_moves_few() -> None:
    samples = [make(i, 0) for i in range(100)]
    first = {sample.key for sample in divide({"all": samples}, "set")["test"]}
    more = {sample.key for sample in divide({"all": [*samples, make(100, 0)]}, "set")["test"]}
    assert len(first ^ more) <= 2


def test_groups_stay_together_and_shares_are_near() -> None:
    rng = np.random.default_rng(0)
    samples = [
        make(i, int(rng.integers(3)), f"patient {int(rng.integers(40))}") for i in range(400)
    ]
    parts = divide({"all": samples}, "set")
    members = [{sample.group for sample in parts[part]} for part in parts]
    assert sum(map(len, members)) == len(set().union(*members))
    assert 0.3 < len(parts["test"]) / 400 < 0.5
    assert 0.05 < len(parts["validation"]) / 400 < 0.15
    for label in range(3):
        whole = sum(sample.target == label for sample in samples)
        held = sum(sample.target == label for sample in parts["test"])
        assert 0.25 < held / whole < 0.55


def test_images_with_boxes_are_divided_by_their_rarest_class() -> None:
    def boxes(*labels: int) -> Boxes:
        return Boxes(np.zeros((len(labels), 4), np.float32), np.array(labels, np.int64), (8, 8))

    samples = [
        Sample(f"{i}.png", FileSource("nowhere"), boxes(0, 1) if i < 10 else boxes(0), 1)
        for i in range(100)
    ]
    for purpose in ("test", "validation", "another", "one more"):  # not by chance
        _, taken = split_off(samples, 0.4, "set", purpose)
        assert sum(len(sample.target.labels) == 2 for sample in taken) == 4


def test_given_parts_are_kept_and_the_missing_one_is_taken_from_train() -> None:
    train = [make(i, i % 2) for i in range(80)]
    test = [make(i + 80, i % 2) for i in range(20)]
    parts = divide({"train": train, "test": test}, "set")
    assert parts["test"] == test
    assert len(parts["validation"]) == 10
    only = divide({"train": train, "validation": test}, "set")
    assert only["test"] == test


@pytest.mark.parametrize(
    ("parts", "words"),
    [
        ({"test": [make(0, 0)]}, "needs training images: got 1 for test"),
        ({"all": []}, "needs training images: got 0 for all"),
        ({"all": [make(0, 0), make(0, 1)]}, "several images of each class"),
        ({"all": [make(i, 0, "one") for i in range(9)]}, "9 images in 1 groups"),
    ],
)
def test_what_cannot_be_divided_is_told(parts: dict[str, list[Sample]], words: str) -> None:
    with pytest.raises(tp.UsageError, match=words):
        divide(parts, "set")


def test_parts_are_known_by_the_names_that_people_use() -> None:
    assert find_parts({"train2017": 1, "val2017": 1}) == {
        "train": "train2017",
        "validation": "val2017",
    }
    assert find_parts({"Training": 1, "Validation": 1, "Testing": 1, "docs": 1}) == {
        "train": "Training",
        "validation": "Validation",
        "test": "Testing",
    }
    assert find_parts({"dev": 1, "val": 1, "train": 1})["validation"] == "val"
