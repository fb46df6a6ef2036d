"""Data is read whole, split once, and named when it is broken."""

import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import torchplug as tp
from tests.comparison.test_run import write_folder
from torchplug.comparison.data import load_data


def test_digits_are_split_by_class_and_always_alike() -> None:
    data, again = load_data("digits"), load_data("digits")
    assert data.digest == again.digest
    for part in ("train", "validation", "test"):
        assert torch.equal(getattr(data, part).images, getattr(again, part).images)
        shares = torch.bincount(getattr(data, part).labels) / len(getattr(data, part))
        assert (shares - 0.1).abs().max() < 0.02
    images = torch.cat([data.train.images, data.validation.images, data.test.images])
    assert len(images) == 1797
    assert data.shape == (1, 1, 8, 8)


def test_training_statistics_are_those_of_the_training_images() -> None:
    data = load_data("digits")
    mean, deviation = data.statistics()
    images = data.train.images.double()
    assert mean.item() == pytest.approx(images.mean().item())
    assert deviation.item() == pytest.approx(images.std(correction=0).item())


def test_a_folder_without_a_split_is_split_and_with_one_is_kept(tmp_path: Path) -> None:
    write_folder(tmp_path / "whole")
    whole = load_data(str(tmp_path / "whole"), image_size=12)
    assert whole.classes == ("0", "1")
    assert (len(whole.train), len(whole.validation), len(whole.test)) == (20, 4, 16)
    assert whole.train.images.shape[1:] == (3, 12, 12)

    for part in ("train", "val"):
        write_folder(tmp_path / "parts" / part)
    parts = load_data(str(tmp_path / "parts"), image_size=12)
    assert len(parts.test) == 40
    assert len(parts.train) + len(parts.validation) == 40


def test_the_digest_follows_the_list_of_files(tmp_path: Path) -> None:
    write_folder(tmp_path / "a")
    before = load_data(str(tmp_path / "a")).digest
    (tmp_path / "a" / "0" / "0.png").rename(tmp_path / "a" / "1" / "moved.png")
    assert load_data(str(tmp_path / "a")).digest != before


def test_an_unreadable_image_is_named(tmp_path: Path) -> None:
    write_folder(tmp_path)
    broken = tmp_path / "1" / "3.png"
    broken.write_bytes(broken.read_bytes()[:60])
    with pytest.raises(tp.UsageError, match=r"every image must be readable.*1/3\.png"):
        load_data(str(tmp_path))


def test_a_folder_without_classes_says_what_it_found(tmp_path: Path) -> None:
    with pytest.raises(tp.UsageError, match=r"one sub-folder a class.*with nothing"):
        load_data(str(tmp_path))
    (tmp_path / "notes").mkdir()
    with pytest.raises(tp.UsageError, match=r"one sub-folder a class.*with notes"):
        load_data(str(tmp_path))


def test_parts_with_other_classes_are_refused(tmp_path: Path) -> None:
    for part in ("train", "test"):
        write_folder(tmp_path / part)
    (tmp_path / "test" / "1").rename(tmp_path / "test" / "one")
    with pytest.raises(tp.UsageError, match="must have the same classes"):
        load_data(str(tmp_path))


def test_classes_of_one_image_cannot_be_split(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        Image.new("RGB", (8, 8)).save(tmp_path / name / "x.png")
    with pytest.raises(tp.UsageError, match="several images of each class"):
        load_data(str(tmp_path))


def test_cifar_is_read_from_a_local_root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The layout is CIFAR-10's own; the files are small, so torchvision's checksums are not."""
    from torchvision.datasets import CIFAR10

    folder = tmp_path / "cifar-10-batches-py"
    folder.mkdir()
    rng = np.random.default_rng(0)
    names = [*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"]
    for name in names:
        batch = {
            "data": rng.integers(0, 256, (40, 3072), dtype=np.uint8),
            "labels": [*range(10)] * 4,
        }
        (folder / name).write_bytes(pickle.dumps(batch))
    labels = pickle.dumps({"label_names": [f"class {i}" for i in range(10)]})
    (folder / "batches.meta").write_bytes(labels)
    for attribute in ("train_list", "test_list"):
        listed = [[name, None] for name, _ in getattr(CIFAR10, attribute)]
        monkeypatch.setattr(CIFAR10, attribute, listed)
    monkeypatch.setattr(CIFAR10, "meta", {**CIFAR10.meta, "md5": None})

    data = load_data(f"cifar10:{tmp_path}")
    assert (len(data.train), len(data.validation), len(data.test)) == (176, 24, 40)
    assert data.shape == (1, 3, 32, 32)
    assert data.classes[3] == "class 3"
