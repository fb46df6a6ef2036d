"""Augmentation depends on (stream, epoch, index of the item) and on nothing else."""

import pytest
import torch

from tests.comparison.training.conftest import make_data
from torchplug.comparison.tasks.choose import get_task
from torchplug.comparison.training.augment import augment_batch, draw, make_transform
from torchplug.comparison.training.loaders import (
    Batches,
    BatchReader,
    InOrder,
    Preparation,
    Shuffled,
)

KINDS = ["shift_flip", "scale_flip", "trivial"]


def make_reader(task: str, augment: str, stream: int = 0) -> BatchReader:
    data = make_data(task, 16, 4)
    transform = make_transform(augment, task, data.shape[2:], [30])
    mean, deviation = data.statistics()
    preparation = Preparation(get_task(task), augment, mean, deviation, transform, widen=False)
    return BatchReader(data.train, preparation, stream)


@pytest.mark.parametrize("kind", KINDS)
def test_an_item_is_the_same_in_any_batch(kind: str) -> None:
    reader = make_reader("classification", kind)
    alone = reader[3, [5]][0][0]
    among = reader[3, [0, 5, 9]]
    torch.rand(7)  # the global generator must not matter
    assert torch.equal(among[0][1], alone)
    assert among[2] == [0, 5, 9]
    assert torch.equal(reader[3, [5]][0][0], alone)
    others = [reader[4, [5]], make_reader("classification", kind, stream=1)[3, [5]]]
    assert not all(torch.equal(other[0][0], alone) for other in others)


def test_an_evaluation_is_not_augmented() -> None:
    reader = make_reader("classification", "trivial")
    plain = make_reader("classification", "none")
    assert torch.equal(reader[0, [1, 2]][0], plain[0, [1, 2]][0])


def test_reading_leaves_the_global_generator_alone() -> None:
    reader, state = make_reader("classification", "trivial"), torch.get_rng_state()
    reader[1, [0, 1]]
    assert torch.equal(torch.get_rng_state(), state)


def test_a_shift_moves_an_image_and_its_mask_as_a_whole() -> None:
    images = torch.arange(1.0, 65.0).reshape(1, 1, 8, 8).repeat(20, 1, 1, 1)
    moved, masks = augment_batch(images, images[:, 0].byte(), "shift", draw(0, 1, 20))
    assert len({tuple(image.flatten().tolist()) for image in moved}) > 4
    for image, mask in zip(moved[:, 0], masks, strict=True):
        row, column = (int(i) for i in (image == 28).nonzero()[0])
        assert abs(row - 3) <= 1
        assert abs(column - 3) <= 1
        assert image[row + 1, column] == 36
        assert torch.equal(mask == 255, image == 0)
        assert torch.equal(mask[mask != 255].float(), image[image != 0])
    assert augment_batch(images, None, "none", draw(0, 1, 20))[0] is images


def test_half_of_the_images_are_mirrored() -> None:
    images = torch.arange(64.0).reshape(1, 1, 8, 8).repeat(200, 1, 1, 1)
    moved, _ = augment_batch(images, None, "flip", draw(0, 1, 200))
    mirrored = [bool(torch.equal(image, images[0].flip(-1))) for image in moved]
    kept = [bool(torch.equal(image, images[0])) for image in moved]
    assert sum(mirrored) + sum(kept) == 200
    assert 70 < sum(mirrored) < 130


@pytest.mark.parametrize("kind", ["shift_flip", "scale_flip"])
def test_boxes_move_with_what_they_surround(kind: str) -> None:
    """One bright square a canvas: wherever it goes, its box is the bright pixels'."""
    transform = make_transform(kind, "detection", (48, 48), [0])
    assert transform is not None
    seen = 0
    for index in range(12):
        torch.manual_seed(index)
        image = torch.zeros(1, 48, 48, dtype=torch.uint8)
        image[:, 10:30, 20:44] = 255
        target = {"boxes": torch.tensor([[20.0, 10, 44, 30]]), "labels": torch.tensor([3])}
        moved, found = transform(image, target)
        assert moved.shape == image.shape
        assert type(found["boxes"]) is torch.Tensor
        if not len(found["boxes"]):
            continue
        rows, columns = (moved[0] > 127).nonzero(as_tuple=True)
        corners = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
        assert found["boxes"][0].tolist() == pytest.approx([float(c) for c in corners], abs=1.1)
        seen += 1
    assert seen > 5


def test_masks_are_resampled_without_new_classes() -> None:
    reader = make_reader("segmentation", "scale_flip")
    _, masks, _ = reader[1, list(range(16))]
    assert set(masks.unique().tolist()) <= {*range(11), 255}


def test_batches_are_whole_and_depend_on_stream_and_epoch() -> None:
    batches = Batches(10, 4, stream=0)
    first = list(batches)
    assert [epoch for epoch, _ in first] == [1, 1]
    assert len({index for _, rows in first for index in rows}) == 8
    batches.set_epoch(1)
    assert list(batches) != first
    batches.set_epoch(0)
    assert list(batches) == first
    assert list(Batches(10, 4, stream=1)) != first


def test_devices_divide_each_batch() -> None:
    whole = [rows for _, rows in Batches(12, 4, stream=0)]
    parts = [list(Batches(12, 4, 0, rank=rank, world=2)) for rank in (0, 1)]
    joined = [sorted(a + b) for (_, a), (_, b) in zip(*parts, strict=True)]
    assert joined == [sorted(rows) for rows in whole]
    looked = [rows for rank in (0, 1) for _, rows in InOrder(7, 2, rank=rank, world=2)]
    assert sorted(index for rows in looked for index in rows) == list(range(7))
    orders = [list(Shuffled(7, 0, rank=rank, world=2)) for rank in (0, 1)]
    assert len(orders[0]) == len(orders[1]) == 3
    assert not set(orders[0]) & set(orders[1])
