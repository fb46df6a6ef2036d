"""Sets of Hugging Face that save_to_disk wrote are read row for row."""

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import torchplug as tp
from tests.comparison.data.conftest import draw
from torchplug.comparison.data import LazyItems, TaskData, assemble, load_data

datasets = pytest.importorskip("datasets")
Scans = tuple[np.ndarray, np.ndarray]


def write_scans(root: Path, scans: Scans, *, split: bool = True, label: Any = None) -> Any:
    features = datasets.Features(
        {
            "image": datasets.Image(),
            "label": label or datasets.ClassLabel(names=["zero", "one"]),
            "writer": datasets.Value("string"),
        }
    )
    kept = np.flatnonzero(scans[1] < 2)[:60]
    names = np.array(["zero", "one"])
    rows = {
        "image": [Image.fromarray(scans[0][i]) for i in kept],
        "label": (names[scans[1][kept]] if label else scans[1][kept]).tolist(),
        "writer": [f"w{i % 6}" for i in range(60)],
    }
    table = datasets.Dataset.from_dict(rows, features=features)
    if split:
        parts = {"train": range(40), "validation": range(40, 45), "test": range(45, 60)}
        table = datasets.DatasetDict({part: table.select(rows) for part, rows in parts.items()})
    table.save_to_disk(str(root))
    return table


def test_rows_are_those_that_were_saved(tmp_path: Path, scans: Scans) -> None:
    table = write_scans(tmp_path / "set", scans)
    data = load_data(f"hfds/{tmp_path / 'set'}", image_size=8)
    assert data.classes == ("zero", "one")
    for part in ("train", "validation", "test"):
        items = getattr(data, part)
        assert len(items) == len(table[part])
        for (image, label), row in zip(items, table[part], strict=True):
            gray = torch.from_numpy(np.array(row["image"]))
            assert torch.equal(image, gray.expand(3, 8, 8))
            assert label == row["label"]


def test_one_table_is_divided_and_groups_kept(tmp_path: Path, scans: Scans) -> None:
    write_scans(tmp_path / "set", scans, split=False)
    name = f"hfds/{tmp_path / 'set'}"
    data = load_data(name)
    assert (len(data.train), len(data.validation), len(data.test)) == (30, 6, 24)
    grouped = load_data(name, options={"group": "writer"})
    sizes = [len(grouped.train), len(grouped.validation), len(grouped.test)]
    assert all(size % 10 == 0 for size in sizes)  # six writers of ten
    with pytest.raises(tp.UsageError, match="the column of the group: got writr; did you mean 'wr"):
        load_data(name, options={"group": "writr"})


def test_a_large_set_is_read_row_by_row_and_can_be_sent(
    tmp_path: Path, scans: Scans, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_scans(tmp_path / "set", scans)
    held = load_data(f"hfds/{tmp_path / 'set'}", image_size=8)
    monkeypatch.setattr(assemble, "MEMORY_LIMIT", 0)
    lazy = pickle.loads(pickle.dumps(load_data(f"hfds/{tmp_path / 'set'}", image_size=8)))
    assert isinstance(lazy.test, LazyItems)
    assert lazy.digest == held.digest
    assert all(torch.equal(a[0], b[0]) for a, b in zip(lazy.test, held.test, strict=True))


def test_names_of_classes_may_be_text(tmp_path: Path, scans: Scans) -> None:
    write_scans(tmp_path / "set", scans, label=datasets.Value("string"))
    data = load_data(f"hfds/{tmp_path / 'set'}")
    assert data.classes == ("one", "zero")
    assert data.test[0][1] == data.classes.index(
        datasets.load_from_disk(str(tmp_path / "set"))["test"][0]["label"]
    )
    with pytest.raises(tp.UsageError, match="classes are zero, two: got 'one'"):
        load_data(f"hfds/{tmp_path / 'set'}", options={"classes": ["zero", "two"]})


def write_scenes(root: Path, masks: TaskData, scenes: TaskData) -> None:
    rows = []
    for i in range(20):
        boxes, labels = (scenes.train[i][1][key].tolist() for key in ("boxes", "labels"))
        bbox = [[x1, y1, x2 - x1, y2 - y1] for x1, y1, x2, y2 in boxes]
        drawn = Image.fromarray(masks.train[i][1].numpy())
        objects = {"bbox": bbox, "category": labels}
        rows.append({"image": draw(masks.train[i]), "mask": drawn, "objects": objects})
    objects = {
        "bbox": datasets.Sequence(datasets.Sequence(datasets.Value("float32"), length=4)),
        "category": datasets.Sequence(datasets.ClassLabel(names=list(scenes.classes))),
    }
    images = {"image": datasets.Image(), "mask": datasets.Image()}
    features = datasets.Features({**images, "objects": objects})
    table = datasets.Dataset.from_list(rows, features=features)
    parts = {"train": range(12), "test": range(12, 20)}
    datasets.DatasetDict({part: table.select(rows) for part, rows in parts.items()}).save_to_disk(
        str(root)
    )


def test_masks_and_boxes_are_read(tmp_path: Path, masks: TaskData, scenes: TaskData) -> None:
    write_scenes(tmp_path / "set", masks, scenes)
    name = f"hfds/{tmp_path / 'set'}"
    with pytest.raises(tp.UsageError, match="the classes of masks must be named"):
        load_data(name, task="segmentation")
    options = {"classes": list(masks.classes)}
    segmented = load_data(name, task="segmentation", image_size=48, options=options)
    detected = load_data(name, task="detection", image_size=48)
    assert detected.classes == scenes.classes
    for i in range(8):
        assert torch.equal(segmented.test[i][0], masks.train[12 + i][0].expand(3, 48, 48))
        assert torch.equal(segmented.test[i][1], masks.train[12 + i][1])
        for key in ("boxes", "labels"):
            assert torch.equal(detected.test[i][1][key], scenes.train[12 + i][1][key])


@pytest.mark.parametrize(
    ("how", "words"),
    [
        ("no set", "a folder written by save_to_disk"),
        ("no train", "needs training images: got test, extra"),
        ("unlabelled", "labels count from 0 to 1, one for each class: got -1 in test/000000"),
        ("column", "a column of the label: got columns image, label, writer and label = 'lable'"),
        ("empty", "every row has an image in column 'image': got none in row 2 of train"),
        ("unseen", "needs training images: got none of one, which held-out images show"),
        ("broken", "every image must be readable: got row 2 of train, column 'image'"),
    ],
)
def test_what_is_wrong_is_named(tmp_path: Path, scans: Scans, how: str, words: str) -> None:
    table = write_scans(tmp_path / "set", scans)
    options = {}
    if how == "no set":
        (tmp_path / "other").mkdir()
    elif how == "no train":
        renamed = {"test": table["test"], "extra": table["train"]}
        datasets.DatasetDict(renamed).save_to_disk(str(tmp_path / "other"))
    elif how == "unlabelled":
        table["test"] = table["test"].map(lambda row: {"label": -1})
        table.save_to_disk(str(tmp_path / "other"))
    elif how == "unseen":
        table["train"] = table["train"].filter(lambda row: row["label"] == 0)
        table.save_to_disk(str(tmp_path / "other"))
    elif how in {"broken", "empty"}:
        raw = table["train"].cast_column("image", datasets.Image(decode=False)).to_list()
        raw[2]["image"]["bytes"] = raw[2]["image"]["bytes"][:40]
        raw[2]["image"] = None if how == "empty" else raw[2]["image"]
        features = table["train"].features
        table["train"] = datasets.Dataset.from_list(raw, features=features)
        table.save_to_disk(str(tmp_path / "other"))
    else:
        options = {"label": "lable"}
        table.save_to_disk(str(tmp_path / "other"))
    with pytest.raises(tp.UsageError, match=words):
        load_data(f"hfds/{tmp_path / 'other'}", options=options)
