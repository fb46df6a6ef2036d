"""Shards that webdataset wrote are read sample for sample, in any order."""

import gzip
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import torchplug as tp
from tests.comparison.data.conftest import draw
from torchplug.comparison.data import LazyItems, TaskData, assemble, load_data

webdataset = pytest.importorskip("webdataset")
Scans = tuple[np.ndarray, np.ndarray]


def write_shards(root: Path, scans: Scans, names: list[str], **extra: Any) -> None:
    """Ten scans of 0 and 1 a shard."""
    root.mkdir(parents=True, exist_ok=True)
    kept = np.flatnonzero(scans[1] < 2)
    for number, name in enumerate(names):
        with webdataset.TarWriter(str(root / name)) as writer:
            for i in kept[10 * number : 10 * number + 10]:
                image = draw((torch.from_numpy(scans[0][i])[None], 0))
                sample = {"__key__": f"scan{i:04d}", "png": image, "cls": int(scans[1][i])}
                writer.write({**sample, **extra})


SHARDS = ["train-0000.tar", "train-0001.tar", "val-0000.tar", "test-0000.tar"]


def test_samples_are_those_that_webdataset_reads(tmp_path: Path, scans: Scans) -> None:
    write_shards(tmp_path, scans, SHARDS)
    data = load_data(f"wds/{tmp_path}", image_size=8)
    assert (len(data.train), len(data.validation), len(data.test)) == (20, 10, 10)
    stream = webdataset.WebDataset(str(tmp_path / "test-0000.tar"), shardshuffle=False)
    theirs = list(stream.decode("torchrgb8").to_tuple("png", "cls"))
    assert len(theirs) == 10
    for (image, label), (picture, number) in zip(data.test, theirs, strict=True):
        assert torch.equal(image, torch.as_tensor(picture))
        assert label == number


@pytest.mark.parametrize(
    "pattern",
    ["{}/train-{{0000..0001}}.tar", "{}/train-*.tar", "{0}/train-0000.tar::{0}/train-0001.tar"],
)
def test_shards_without_a_split_are_divided(tmp_path: Path, scans: Scans, pattern: str) -> None:
    write_shards(tmp_path, scans, SHARDS)
    (tmp_path / "classes.txt").write_text("zero\none\n")
    data = load_data(f"wds/{pattern.format(tmp_path)}")
    assert (len(data.train), len(data.validation), len(data.test)) == (10, 2, 8)
    assert data.classes == ("zero", "one")


def test_a_large_set_is_read_by_seeking_and_can_be_sent(
    tmp_path: Path, scans: Scans, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_shards(tmp_path, scans, SHARDS)
    held = load_data(f"wds/{tmp_path}", image_size=8)
    monkeypatch.setattr(assemble, "MEMORY_LIMIT", 0)
    lazy = pickle.loads(pickle.dumps(load_data(f"wds/{tmp_path}", image_size=8)))
    assert isinstance(lazy.train, LazyItems)
    assert lazy.digest == held.digest
    for index in (19, 0, 7):
        assert torch.equal(lazy.train[index][0], held.train[index][0])
        assert lazy.train[index][1] == held.train[index][1]


def test_groups_and_classes_come_from_json(tmp_path: Path, scans: Scans) -> None:
    with webdataset.TarWriter(str(tmp_path / "a.tar")) as writer:
        for i in range(60):
            label = ["no", "yes"][i % 2]
            content = {"label": label, "patient": i % 6}
            writer.write({"__key__": f"{i}", "png": draw_scan(scans, i), "json": content})
    options = {"classes": ["no", "yes"], "group": "patient"}
    data = load_data(f"wds/{tmp_path / 'a.tar'}", options=options, image_size=8)
    sizes = [len(data.train), len(data.validation), len(data.test)]
    assert sum(sizes) == 60
    assert all(size % 10 == 0 for size in sizes)  # six patients of ten
    assert set(data.train.labels.tolist()) == {0, 1}
    with pytest.raises(tp.UsageError, match=r"has the group 'patiens': got 0 of .*'patient'"):
        load_data(f"wds/{tmp_path / 'a.tar'}", options={**options, "group": "patiens"})
    with pytest.raises(tp.UsageError, match=r"got 'no' in 0 of .*; name the classes as an option"):
        load_data(f"wds/{tmp_path / 'a.tar'}")


def draw_scan(scans: Scans, index: int) -> Any:
    return draw((torch.from_numpy(scans[0][index])[None], 0))


def test_masks_and_boxes_are_read(tmp_path: Path, masks: TaskData, scenes: TaskData) -> None:
    for name, first in (("train-0.tar", 0), ("test-0.tar", 12)):
        with webdataset.TarWriter(str(tmp_path / name)) as writer:
            for i in range(first, first + 12):
                target = {key: value.tolist() for key, value in scenes.train[i][1].items()}
                sample = {"__key__": f"{i:02d}", "png": draw(masks.train[i]), "json": target}
                writer.write({**sample, "mask.png": masks.train[i][1].numpy()})
    detected = load_data(f"wds/{tmp_path}", task="detection", image_size=48)
    with pytest.raises(tp.UsageError, match="the classes of masks must be named"):
        load_data(f"wds/{tmp_path}", task="segmentation")
    (tmp_path / "classes.txt").write_text("\n".join(masks.classes))
    segmented = load_data(f"wds/{tmp_path}", task="segmentation", image_size=48)
    for i in range(12):
        assert torch.equal(segmented.test[i][1], masks.train[12 + i][1])
        for key in ("boxes", "labels"):
            assert torch.equal(detected.test[i][1][key], scenes.train[12 + i][1][key])


@pytest.mark.parametrize(
    ("how", "words"),
    [
        ("cut", r"a whole, uncompressed tar: got .*train-0001\.tar"),
        ("packed", r"a whole, uncompressed tar: got .*train-0001\.tar.*gunzip"),
        ("gone", r"wds/ names tars that exist: got .*train-0002\.tar"),
        ("unnamed", r"a part in their name, or none: got other\.tar beside others"),
        ("bare", r"each sample of a shard has a class: got scan\d+ of .*with png; write it as"),
        ("no image", r"each sample of a shard has an image .*got x of .* with cls"),
        ("broken", r"every image must be readable: got .*train-0001\.tar:x\.png"),
        ("label", r"labels count from 0 to 1.*got 7 in train-0001\.tar/x"),
        ("word", r"a class is a number from 0, or one of the names.*got 'cat' in x"),
    ],
)
def test_what_is_wrong_is_named(tmp_path: Path, scans: Scans, how: str, words: str) -> None:
    write_shards(tmp_path, scans, SHARDS)
    shard, pattern, options = tmp_path / "train-0001.tar", str(tmp_path), {}
    if how == "cut":
        shard.write_bytes(shard.read_bytes()[:3000])
    elif how == "packed":
        shard.write_bytes(gzip.compress(shard.read_bytes()))
    elif how == "gone":
        pattern += "/train-{0000..0002}.tar"
    elif how == "unnamed":
        shard.rename(tmp_path / "other.tar")
    elif how == "bare":
        write_bare(shard, scans)
    else:
        options = {"classes": 2}
        cls = {"label": b"7", "word": b"cat"}.get(how, b"1")
        image = {} if how == "no image" else {"png": draw_scan(scans, 0)}
        image = {"png": b"not an image"} if how == "broken" else image
        with webdataset.TarWriter(str(shard), encoder=how != "broken") as writer:
            writer.write({"__key__": "x", "cls": cls, **image})
    with pytest.raises(tp.UsageError, match=words):
        load_data(f"wds/{pattern}", options=options)


def write_bare(shard: Path, scans: Scans) -> None:
    with webdataset.TarWriter(str(shard)) as writer:
        writer.write({"__key__": "scan0", "png": draw_scan(scans, 0)})
