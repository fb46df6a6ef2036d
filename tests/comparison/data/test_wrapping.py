"""A user's own datasets are taken as they are, or told what is missing."""

import pickle
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import Dataset, IterableDataset, Subset, TensorDataset

import torchplug as tp
from torchplug.comparison.data import TaskData, load_data, wrap_datasets


class Own(Dataset[Any]):
    def __init__(self, items: list[Any]) -> None:
        self.items = items

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> Any:
        return self.items[index]


def make(count: int = 40, change: Any = lambda image: image) -> Own:
    generator = torch.Generator().manual_seed(count)
    images = torch.randint(0, 256, (count, 3, 8, 8), generator=generator, dtype=torch.uint8)
    return Own([(change(image), index % 2) for index, image in enumerate(images)])


def test_items_are_those_of_the_dataset() -> None:
    train, test = make(40), make(20)
    data = wrap_datasets(train, test, classes=["cat", "dog"], name="pets")
    assert (data.name, data.classes, data.shape) == ("pets", ("cat", "dog"), (1, 3, 8, 8))
    assert (len(data.train), len(data.validation), len(data.test)) == (34, 6, 20)
    assert all(torch.equal(a[0], b[0]) for a, b in zip(data.test, test, strict=True))
    seen = sorted(image.numpy().tobytes() for image, _ in [*data.train, *data.validation])
    assert seen == sorted(image.numpy().tobytes() for image, _ in train.items)
    assert [data.validation[i][1] for i in range(6)].count(0) == 3
    given = wrap_datasets(train, test, make(10), classes=2)
    assert (len(given.train), len(given.validation)) == (40, 10)
    assert given.classes == ("0", "1")
    assert pickle.loads(pickle.dumps(data)).train[0][1] == data.train[0][1]


@pytest.mark.parametrize(
    "change",
    [
        lambda image: Image.fromarray(image.permute(1, 2, 0).numpy()),
        lambda image: image.float() / 255,
        lambda image: Image.fromarray(image.permute(1, 2, 0).numpy()).convert("RGBA"),
    ],
    ids=["pil", "float", "rgba"],
)
def test_images_may_come_in_other_forms(change: Any) -> None:
    plain = wrap_datasets(make(), make(20), classes=2)
    other = wrap_datasets(make(change=change), make(20, change), classes=2)
    assert other.digest == plain.digest


def test_the_digest_follows_pixels_labels_and_parts() -> None:
    train, test = make(), make(20)
    before = wrap_datasets(train, test, classes=2).digest
    assert wrap_datasets(test, train, classes=2).digest != before
    assert wrap_datasets(train, test, classes=["a", "b"]).digest != before
    test.items[3] = (test.items[3][0] ^ 1, test.items[3][1])
    assert wrap_datasets(train, test, classes=2).digest != before


def test_a_test_can_be_taken_from_the_training() -> None:
    whole = TensorDataset(torch.zeros(40, 1, 8, 8, dtype=torch.uint8), torch.arange(40) % 4)
    data = wrap_datasets(whole, None, classes=4)
    assert (len(data.train), len(data.validation), len(data.test)) == (20, 4, 16)
    subset = Subset(whole, range(20))
    assert len(wrap_datasets(subset, whole, classes=4).test) == 40


def test_targets_of_the_other_tasks_are_taken(masks: TaskData, scenes: TaskData) -> None:
    for data, task in ((masks, "segmentation"), (scenes, "detection")):
        parts = (Subset(data.train, range(30)), Subset(data.test, range(20)))
        own = wrap_datasets(*parts, classes=data.classes, task=task)
        large = wrap_datasets(*parts, classes=data.classes, task=task, image_size=96)
        again = load_data("digits", task=task, image_size=96)
        for index in range(20):
            for mine, theirs in ((own, data), (large, again)):
                assert torch.equal(mine.test[index][0], theirs.test[index][0])
                one, two = mine.test[index][1], theirs.test[index][1]
                one, two = (one, two) if task == "segmentation" else (one["boxes"], two["boxes"])
                assert torch.equal(one, two)


def test_images_of_many_sizes_need_a_size() -> None:
    ragged = Own([(torch.zeros(3, 8 + i % 3, 9, dtype=torch.uint8), i % 2) for i in range(20)])
    with pytest.raises(tp.UsageError, match=r"all images have one size: got \(3, 9, 9\) for item"):
        wrap_datasets(ragged, ragged, classes=2)
    assert wrap_datasets(ragged, ragged, classes=2, image_size=8).test[1][0].shape == (3, 8, 8)


class Random(Own):
    def __getitem__(self, index: int) -> Any:
        return torch.randint(0, 256, (3, 8, 8), dtype=torch.uint8), index % 2


class Stream(IterableDataset[Any]):
    def __iter__(self) -> Iterator[Any]:
        return iter(())


def ones(*shape: int) -> torch.Tensor:
    return torch.ones(shape, dtype=torch.uint8)


def boxes(*corners: float, label: int = 0) -> dict[str, Any]:
    return {"boxes": np.array([corners]), "labels": [label]}


@pytest.mark.parametrize(
    ("train", "task", "words"),
    [
        (Random([0] * 20), "classification", "the same each time it is read"),
        (Stream(), "classification", "collect a stream into a list"),
        (Own([]), "classification", "a dataset has items: got none for train"),
        (
            make(change=lambda image: image.float()),
            "classification",
            "bytes, or floats from 0 to 1",
        ),
        (make(change=lambda image: image[:2]), "classification", r"\(1 or 3, H, W\): got shape"),
        (Own([ones(3, 8, 8)] * 9), "classification", r"an item is \(image, target\): got Tensor"),
        (Own([(ones(3, 8, 8), 2)] * 9), "classification", "from 0 to 1.*got 2 for item 0"),
        (Own([(ones(3, 8, 8), "a")] * 9), "classification", "a classifier is a number: got str"),
        (Own([(ones(3, 8, 8), ones(4, 4))] * 9), "segmentation", "the size of its image"),
        (Own([(ones(3, 8, 8), ones(8, 8) * 7)] * 9), "segmentation", "got 7 in item 0"),
        (
            Own([(ones(3, 8, 8), 1)] * 9),
            "detection",
            'a target is {"boxes": …, "labels": …}: got int',
        ),
        (Own([(ones(3, 8, 8), boxes(0, 0, 12, 4))] * 9), "detection", "must lie inside its image"),
        (Own([(ones(3, 8, 8), boxes(0, 0, 4, 4, label=5))] * 9), "detection", "got 5 for item 0"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_cannot_be_used_is_told(train: Any, task: Any, words: str) -> None:
    with pytest.raises(tp.UsageError, match=words):
        wrap_datasets(train, train, train, classes=2, task=task)
