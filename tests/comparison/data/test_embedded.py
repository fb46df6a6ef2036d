"""The data that comes along: real scans, alone and in scenes, the same everywhere."""

import pickle
import types
from collections import Counter

import numpy as np
import pytest
import sklearn.datasets
import torch

from torchplug.comparison.data import TaskData, embedded, load_data
from torchplug.comparison.data.dividing import divide

PARTS = ("train", "validation", "test")


def test_digits_are_split_by_class_and_always_alike(scans: tuple[np.ndarray, np.ndarray]) -> None:
    data, again = load_data("digits"), load_data("digits")
    assert data.digest == again.digest
    seen: Counter[bytes] = Counter()
    for part in PARTS:
        items = getattr(data, part)
        assert torch.equal(items.images, getattr(again, part).images)
        shares = torch.bincount(items.labels) / len(items)
        assert (shares - 0.1).abs().max() < 0.02
        seen.update(image.numpy().tobytes() for image in items.images)
    assert seen == Counter(image.tobytes() for image in scans[0])  # each scan once, in one part
    assert data.shape == (1, 1, 8, 8)


def test_items_are_bytes_and_numbers(masks: TaskData, scenes: TaskData) -> None:
    image, label = load_data("digits").train[0]
    assert (image.shape, image.dtype, type(label)) == ((1, 8, 8), torch.uint8, int)
    image, mask = masks.train[3]
    assert (image.shape, image.dtype) == ((1, 48, 48), torch.uint8)
    assert (mask.shape, mask.dtype, masks.classes[0]) == ((48, 48), torch.uint8, "background")
    again, target = scenes.train[3]
    assert torch.equal(image, again)  # masks and boxes are of the same scenes
    assert target["boxes"].dtype == torch.float32
    assert target["labels"].dtype == torch.int64
    assert [len(getattr(scenes, part)) for part in PARTS] == [600, 100, 300]


def test_boxes_are_the_tight_boxes_of_the_masks(masks: TaskData, scenes: TaskData) -> None:
    for index in range(len(masks.test)):
        mask, target = masks.test[index][1], scenes.test[index][1]
        rest = mask.clone()
        assert 1 <= len(target["labels"]) <= 4
        for box, label in zip(target["boxes"].int().tolist(), target["labels"], strict=True):
            x1, y1, x2, y2 = box
            inside = mask[y1:y2, x1:x2] == label + 1
            for side in (inside[0], inside[-1], inside[:, 0], inside[:, -1]):
                assert side.any()
            rest[y1:y2, x1:x2][inside] = 0
        assert not rest.any()  # no ink beside the boxes


def test_digits_in_scenes_differ_in_size_and_are_bright(masks: TaskData, scenes: TaskData) -> None:
    boxes = torch.cat([scenes.train[i][1]["boxes"] for i in range(600)])
    heights = boxes[:, 3] - boxes[:, 1]
    assert heights.quantile(0.95) / heights.quantile(0.05) > 2
    ink, paper = [], []
    for i in range(600):
        image, mask = masks.train[i]
        ink.append(image[0][mask > 0].float().mean())
        paper.append(image[0][mask == 0].float().median())
    assert (torch.stack(ink) > torch.stack(paper) + 50).all()
    labels = torch.cat([scenes.train[i][1]["labels"] for i in range(600)])
    assert torch.bincount(labels).min() > 100


def test_the_ground_is_cluttered_with_ink(masks: TaskData) -> None:
    """A threshold would be enough on a clean canvas: here most of what is inky is no digit."""
    inky, digit = 0, 0
    for i in range(100):
        image, mask = masks.test[i]
        values = image[0].float()
        ground = values.median()
        far = (values - ground).abs() > 0.5 * (values[mask > 0] - ground).abs().mean()
        inky += int(far.sum())
        digit += int((far & (mask > 0)).sum())
    assert 0.3 < digit / inky < 0.75


def test_a_scan_of_the_test_is_in_no_training_scene(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(embedded, "SCENES", {"train": 12, "validation": 4, "test": 12})
    draw_all = embedded._draw_all.__wrapped__
    whole = draw_all()
    digits = sklearn.datasets.load_digits()
    parts = divide(embedded._list_scans().parts, "digits")
    for sample in parts["test"]:  # all test scans become a block of ink
        digits.images[int(sample.key)] = 16
    changed = types.SimpleNamespace(images=digits.images, target=digits.target)
    monkeypatch.setattr(sklearn.datasets, "load_digits", lambda: changed)
    other = draw_all()
    same = [
        [np.array_equal(a.image, b.image) for a, b in zip(whole[p], other[p], strict=True)]
        for p in PARTS
    ]
    assert all(same[0])
    assert all(same[1])
    assert not any(same[2])


def test_scenes_can_be_brought_to_another_size(scenes: TaskData) -> None:
    large = load_data("digits", task="detection", image_size=96)
    assert large.shape == (1, 1, 96, 96)
    assert torch.equal(large.test[0][1]["boxes"], scenes.test[0][1]["boxes"] * 2)


def test_training_statistics_are_those_of_the_training_images(masks: TaskData) -> None:
    for data in (load_data("digits"), masks):
        mean, deviation = data.statistics()
        images = data.train.images.double()
        assert mean.shape == (1, 1, 1)
        assert mean.item() == pytest.approx(images.mean().item())
        assert deviation.item() == pytest.approx(images.std(correction=0).item())


def test_a_data_set_can_be_sent_to_a_worker(scenes: TaskData) -> None:
    copy = pickle.loads(pickle.dumps(scenes))
    assert copy.digest == scenes.digest
    assert torch.equal(copy.test[7][1]["boxes"], scenes.test[7][1]["boxes"])


def test_moving_a_target_does_not_move_the_data(scenes: TaskData) -> None:
    before = scenes.train[0][1]["boxes"].clone()
    scenes.train[0][1]["boxes"].add_(5)
    assert torch.equal(scenes.train[0][1]["boxes"], before)
