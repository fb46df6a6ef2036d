"""Boxes as YOLO lays them out."""

from pathlib import Path

import pytest
import torch
from PIL import Image

import torchplug as tp
from tests.comparison.data.conftest import draw
from torchplug.comparison.data import TaskData, load_data

PARTS = {"train": range(8), "val": range(8, 12), "test": range(12, 16)}


def write_yolo(root: Path, scenes: TaskData, *, layout: str = "images/{}") -> None:
    """Sixteen scenes; the last one shows nothing and has no label file."""
    for part, indices in PARTS.items():
        images = root / layout.format(part)
        labels = root / layout.replace("images", "labels").format(part)
        for folder in (images, labels):
            folder.mkdir(parents=True, exist_ok=True)
        for i in indices:
            image, target = scenes.train[i]
            draw((image, 0)).save(images / f"{i:02d}.png")
            lines = []
            for (x1, y1, x2, y2), label in zip(
                target["boxes"].tolist(), target["labels"].tolist(), strict=True
            ):
                shares = [(x1 + x2) / 96, (y1 + y2) / 96, (x2 - x1) / 48, (y2 - y1) / 48]
                lines.append(f"{label} " + " ".join(f"{share:.6f}" for share in shares))
            if i != 15:
                (labels / f"{i:02d}.txt").write_text("\n".join(lines) + "\n")


def write_head(root: Path, scenes: TaskData, text: str = "") -> Path:
    head = root / "data.yaml"
    names = "\n".join(f"  {i}: '{name}'" for i, name in enumerate(scenes.classes))
    head.write_text(text or f"path: {root}\ntrain: images/train\nval: images/val\nnames:\n{names}")
    return head


def check_boxes(data: TaskData, scenes: TaskData, indices: range) -> None:
    assert len(data.test) == len(indices)
    for mine, i in zip(range(len(indices)), indices, strict=True):
        image, target = data.test[mine]
        assert torch.equal(image, scenes.train[i][0].expand(3, 48, 48))
        if i == 15:
            assert target["boxes"].shape == (0, 4)
            assert target["labels"].shape == (0,)
        else:
            assert torch.allclose(target["boxes"], scenes.train[i][1]["boxes"], atol=1e-3)
            assert torch.equal(target["labels"], scenes.train[i][1]["labels"])


def test_boxes_are_those_that_were_written(tmp_path: Path, scenes: TaskData) -> None:
    write_yolo(tmp_path, scenes)
    head = write_head(tmp_path, scenes)
    data = load_data(f"yolo/{tmp_path}", task="detection", image_size=48)
    assert data.classes == scenes.classes
    check_boxes(data, scenes, PARTS["val"])  # the file names no test: what is held out is the test
    same = load_data(f"yolo/{head}", task="detection", image_size=48)
    assert same.digest == data.digest
    with head.open("a") as file:
        file.write("\ntest: images/test\n")
    three = load_data(f"yolo/{tmp_path}", task="detection", image_size=48)
    assert (len(three.train), len(three.validation)) == (8, 4)
    check_boxes(three, scenes, PARTS["test"])


def test_layouts_of_ultralytics_are_understood(tmp_path: Path, scenes: TaskData) -> None:
    """A file that ultralytics reads is read alike; its own reader is the oracle."""
    pytest.importorskip("ultralytics")
    from ultralytics.data.utils import verify_image_label

    write_yolo(tmp_path, scenes)
    write_head(tmp_path, scenes)
    data = load_data(f"yolo/{tmp_path}", task="detection", image_size=48)
    for mine, i in enumerate(PARTS["val"]):
        places = (str(tmp_path / kind / "val" / f"{i:02d}.{end}") for kind, end in FILES)
        found = verify_image_label((*places, "", False, 10, 0, 0, False))
        rows = torch.from_numpy(found[1])
        corners = torch.cat([rows[:, 1:3] - rows[:, 3:] / 2, rows[:, 1:3] + rows[:, 3:] / 2], 1)
        assert torch.allclose(data.test[mine][1]["boxes"], corners * 48, atol=1e-3)
        assert data.test[mine][1]["labels"].tolist() == rows[:, 0].int().tolist()


FILES = (("images", "png"), ("labels", "txt"))


@pytest.mark.parametrize("layout", ["images/{}", "{}/images"])
def test_folders_alone_are_enough(tmp_path: Path, scenes: TaskData, layout: str) -> None:
    write_yolo(tmp_path, scenes, layout=layout)
    (tmp_path / "classes.txt").write_text("\n".join(scenes.classes))
    data = load_data(f"yolo/{tmp_path}", task="detection", image_size=48)
    assert data.classes == scenes.classes
    check_boxes(data, scenes, PARTS["test"])


def test_lists_of_files_and_roboflows_paths_are_understood(
    tmp_path: Path, scenes: TaskData
) -> None:
    write_yolo(tmp_path, scenes, layout="{}/images")
    names = ", ".join(scenes.classes)
    (tmp_path / "val.txt").write_text("".join(f"./val/images/{i:02d}.png\n" for i in range(8, 12)))
    write_head(tmp_path, scenes, f"train: ../train/images\nval: val.txt\nnames: [{names}]")
    data = load_data(f"yolo/{tmp_path}", task="detection", image_size=48)
    check_boxes(data, scenes, PARTS["val"])


def test_a_set_without_a_split_is_divided(tmp_path: Path, scenes: TaskData) -> None:
    write_yolo(tmp_path, scenes, layout="images")
    data = load_data(f"yolo/{tmp_path}", task="detection")
    assert len(data.train) + len(data.validation) + len(data.test) == 16
    assert data.shape == (1, 3, 256, 256)


def test_oblong_images_keep_their_boxes_in_place(tmp_path: Path, scenes: TaskData) -> None:
    write_yolo(tmp_path, scenes)
    Image.new("RGB", (96, 48)).save(tmp_path / "images" / "test" / "12.png")
    (tmp_path / "labels" / "test" / "12.txt").write_text("0 0.5 0.5 0.5 0.5\n1 0 0 0.5 0 0.5 1\n")
    data = load_data(f"yolo/{tmp_path}", task="detection", image_size=48)
    image, target = data.test[0]
    # 96 x 48 becomes 48 x 24 with 12 rows of gray above; the second line is a polygon
    assert target["boxes"].tolist() == [[12, 18, 36, 30], [0, 12, 24, 36]]
    assert (image[:, :12] == 114).all()
    assert (image[:, 12:36] == 0).all()


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("0 0.9 0.5 0.4 0.2", r"a box must lie inside its image: got \(.*\) in images/train/03"),
        ("0 24 24 10 10", r"shares of the image, from 0 to 1: got 29 in .*03\.txt; divide"),
        ("0 0.5 0.5 0 0.2", "a width and a height above 0"),
        ("10 0.5 0.5 0.1 0.1", "labels count from 0 to 9.*: got 10 in images/train/03"),
        ("-1 0.5 0.5 0.1 0.1", "labels count from 0 to 9.*: got -1"),
        ("0 0.5 0.5 0.1", r"a label is: class, .*got '0 0.5 0.5 0.1' in line 1 of .*03\.txt"),
        ("cat 0.5 0.5 0.1 0.1", "a label is: class"),
        ("0 nan 0.5 0.1 0.1", "a box must lie inside its image"),
    ],
)
def test_wrong_labels_are_named(tmp_path: Path, scenes: TaskData, line: str, words: str) -> None:
    write_yolo(tmp_path, scenes)
    write_head(tmp_path, scenes)
    (tmp_path / "labels" / "train" / "03.txt").write_text(line)
    with pytest.raises(tp.UsageError, match=words):
        load_data(f"yolo/{tmp_path}", task="detection")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("names: [a]", "must name its train images: got names"),
        ("train: [", "must be YAML"),
        ("train: images/nowhere", "must name folders with images: got .*images/nowhere"),
    ],
)
def test_wrong_heads_are_named(tmp_path: Path, scenes: TaskData, text: str, words: str) -> None:
    write_yolo(tmp_path, scenes)
    write_head(tmp_path, scenes, text)
    with pytest.raises(tp.UsageError, match=words):
        load_data(f"yolo/{tmp_path}", task="detection")


def test_a_broken_image_and_a_missing_layout_are_named(tmp_path: Path, scenes: TaskData) -> None:
    with pytest.raises(tp.UsageError, match=r"YOLO's images lie in images/.*got .* with nothing"):
        load_data(f"yolo/{tmp_path}", task="detection")
    write_yolo(tmp_path, scenes)
    (tmp_path / "images" / "val" / "09.png").write_bytes(b"nothing")
    with pytest.raises(tp.UsageError, match=r"every image must be readable: got .*09\.png"):
        load_data(f"yolo/{tmp_path}", task="detection")
    with pytest.raises(tp.UsageError, match="yolo/ is for detection: got segmentation"):
        load_data(f"yolo/{tmp_path}", task="segmentation")
