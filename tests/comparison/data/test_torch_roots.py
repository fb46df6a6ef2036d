"""Sets of torchvision are read under a local root, item for item as torchvision reads them.

The layouts are torchvision's own; the files are small, so its checksums are not.
"""

import gzip
import json
import pickle
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision import datasets
from torchvision.transforms.functional import pil_to_tensor

import torchplug as tp
from torchplug.comparison.data import TaskData, load_data
from torchplug.comparison.data.torch_roots import NAMES, ROOTS

Patch = pytest.MonkeyPatch


def write_cifar10(root: Path, patch: Patch) -> None:
    folder = root / "cifar-10-batches-py"
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
        listed = [[name, None] for name, _ in getattr(datasets.CIFAR10, attribute)]
        patch.setattr(datasets.CIFAR10, attribute, listed)
    patch.setattr(datasets.CIFAR10, "meta", {**datasets.CIFAR10.meta, "md5": None})


def write_mnist(folder: Path) -> None:
    raw = folder / "raw"
    raw.mkdir(parents=True)
    rng = np.random.default_rng(0)
    for name, count in (("train", 100), ("t10k", 30)):
        images = rng.integers(0, 256, (count, 28, 28), dtype=np.uint8)
        labels = (np.arange(count) % 10).astype(np.uint8)
        head = struct.pack(">IIII", 0x803, count, 28, 28)
        (raw / f"{name}-images-idx3-ubyte").write_bytes(head + images.tobytes())
        head = struct.pack(">II", 0x801, count)
        (raw / f"{name}-labels-idx1-ubyte").write_bytes(head + labels.tobytes())
        gzip.compress(b"")  # torchvision reads the unpacked files


def write_svhn(root: Path, patch: Patch) -> None:
    from scipy.io import savemat

    rng = np.random.default_rng(0)
    for name in ("train", "test"):
        images = rng.integers(0, 256, (32, 32, 3, 60), dtype=np.uint8)
        savemat(root / f"{name}_32x32.mat", {"X": images, "y": np.arange(60) % 10 + 1})
    listed = {part: ["", f"{part}_32x32.mat", None] for part in ("train", "test")}
    patch.setattr(datasets.SVHN, "split_list", listed)


def write_food101(root: Path, patch: Patch) -> None:
    base = root / "food-101"
    (base / "meta").mkdir(parents=True)
    rng = np.random.default_rng(0)
    for part, count in (("train", 20), ("test", 6)):
        listed: dict[str, list[str]] = {}
        for name in ("apple_pie", "waffles"):
            for i in range(count):
                path = base / "images" / name / f"{part}{i}.jpg"
                path.parent.mkdir(parents=True, exist_ok=True)
                pixels = rng.integers(0, 256, (16, 16, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(path)
                listed.setdefault(name, []).append(f"{name}/{part}{i}")
        (base / "meta" / f"{part}.json").write_text(json.dumps(listed))


WRITERS: dict[str, tuple[Callable[[Path, Patch], None], Callable[[Path], Any], int]] = {
    "cifar10": (write_cifar10, lambda root: datasets.CIFAR10(root, train=False), 32),
    "mnist": (
        lambda root, _: write_mnist(root / "MNIST"),
        lambda root: datasets.MNIST(root, train=False),
        28,
    ),
    "fashion_mnist": (
        lambda root, _: write_mnist(root / "FashionMNIST"),
        lambda root: datasets.FashionMNIST(root, train=False),
        28,
    ),
    "svhn": (write_svhn, lambda root: datasets.SVHN(root, split="test"), 32),
    "food101": (write_food101, lambda root: datasets.Food101(root, split="test"), 16),
}


@pytest.mark.parametrize("name", WRITERS)
def test_a_set_is_read_as_torchvision_reads_it(
    name: str, tmp_path: Path, monkeypatch: Patch
) -> None:
    write, read, side = WRITERS[name]
    write(tmp_path, monkeypatch)
    data = load_data(f"torch/{name}:{tmp_path}", image_size=side)
    theirs = read(tmp_path)
    assert len(data.test) == len(theirs)
    for index, (picture, label) in enumerate(theirs):
        assert torch.equal(data.test[index][0], pil_to_tensor(picture))
        assert data.test[index][1] == label
    assert data.shape[2:] == (side, side)
    assert set(data.train.labels.tolist()) == set(range(len(data.classes)))


def test_the_old_form_is_the_same_and_the_split_fixed(tmp_path: Path, monkeypatch: Patch) -> None:
    write_cifar10(tmp_path, monkeypatch)
    data = load_data(f"cifar10:{tmp_path}")
    assert data.digest == load_data(f"torch/CIFAR10:{tmp_path}").digest
    assert (len(data.train), len(data.validation), len(data.test)) == (180, 20, 40)
    assert data.shape == (1, 3, 32, 32)
    assert data.classes[3] == "class 3"
    file = tmp_path / "cifar-10-batches-py" / "test_batch"
    batch = pickle.loads(file.read_bytes())
    batch["data"][0, 0] ^= 1  # one bit of one pixel
    file.write_bytes(pickle.dumps(batch))
    assert load_data(f"cifar10:{tmp_path}").digest != data.digest


def test_only_voc_has_masks(tmp_path: Path) -> None:
    with pytest.raises(tp.UsageError, match="cifar10 is for classification: got segmentation"):
        load_data(f"cifar10:{tmp_path}", task="segmentation")


def test_voc_lies_below_its_devkit(tmp_path: Path, masks: TaskData) -> None:
    from tests.comparison.data.test_voc import write_voc

    with pytest.raises(tp.UsageError, match="the folder that holds VOCdevkit"):
        load_data(f"torch/voc:{tmp_path}", task="segmentation")
    write_voc(tmp_path / "VOCdevkit" / "VOC2012", masks)
    data = load_data(f"voc:{tmp_path}", task="segmentation", image_size=48)
    theirs = datasets.VOCSegmentation(tmp_path, year="2012", image_set="val")
    assert len(data.test) == len(theirs)
    for (image, mask), (picture, drawn) in zip(data.test, theirs, strict=True):
        assert torch.equal(image, pil_to_tensor(picture))
        assert torch.equal(mask, pil_to_tensor(drawn)[0])
    assert data.classes[:2] == ("background", "aeroplane")


@pytest.mark.parametrize("name", ROOTS)
def test_every_name_is_a_class_of_torchvision(name: str) -> None:
    import inspect

    maker = getattr(datasets, ROOTS[name].maker)
    for asked in ROOTS[name].parts.values():
        assert set(asked) <= set(inspect.signature(maker.__init__).parameters) | {"split"}
    assert name in NAMES
    with pytest.raises(tp.UsageError, match=f"torch/{name} must lie under its root"):
        load_data(f"torch/{name}:/nowhere")
