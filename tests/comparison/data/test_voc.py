"""Masks and boxes as PASCAL VOC lays them out."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import torchplug as tp
from tests.comparison.data.conftest import draw
from torchplug.comparison.data import TaskData, load_data


def write_voc(root: Path, masks: TaskData, *, lists: bool = True) -> None:
    """Twelve scenes with palette masks; the first eight train, the others are held out."""
    palette = np.random.default_rng(0).integers(0, 256, 768).tolist()
    for i in range(12):
        for folder in ("JPEGImages", "SegmentationClass"):
            (root / folder).mkdir(parents=True, exist_ok=True)
        draw(masks.train[i]).save(root / "JPEGImages" / f"{i}.jpg")
        mask = Image.fromarray(masks.train[i][1].numpy(), mode="P")
        mask.putpalette(palette)
        mask.save(root / "SegmentationClass" / f"{i}.png")
    if lists:
        folder = root / "ImageSets" / "Segmentation"
        folder.mkdir(parents=True)
        (folder / "train.txt").write_text("\n".join(map(str, range(8))) + "\n")
        (folder / "val.txt").write_text("\n".join(map(str, range(8, 12))))
        (folder / "trainval.txt").write_text("\n".join(map(str, range(12))))


def test_masks_are_read_value_for_value(tmp_path: Path, masks: TaskData) -> None:
    write_voc(tmp_path, masks)
    data = load_data(f"voc/{tmp_path}", task="segmentation", image_size=48)
    assert len(data.train) + len(data.validation) == 8
    for i in range(4):
        assert torch.equal(data.test[i][1], masks.train[8 + i][1])
    highest = max(int(masks.train[i][1].max()) for i in range(12))
    assert data.classes == tuple(map(str, range(highest + 1)))


def test_the_digest_follows_masks(tmp_path: Path, masks: TaskData) -> None:
    write_voc(tmp_path, masks)
    before = load_data(f"voc/{tmp_path}", task="segmentation", image_size=48)
    path = tmp_path / "SegmentationClass" / "8.png"
    values = np.array(Image.open(path))
    values[:4] = 255
    Image.fromarray(values).save(path)
    after = load_data(f"voc/{tmp_path}", task="segmentation", image_size=48)
    assert after.digest != before.digest
    assert (after.test[0][1][:4] == 255).all()


def test_without_lists_the_set_is_divided_and_classes_are_named(
    tmp_path: Path, masks: TaskData
) -> None:
    write_voc(tmp_path, masks, lists=False)
    (tmp_path / "classes.txt").write_text("\n".join(masks.classes))
    data = load_data(f"voc/{tmp_path}", task="segmentation")
    assert data.classes == masks.classes
    assert (len(data.train), len(data.validation), len(data.test)) == (6, 1, 5)
    assert data.shape == (1, 3, 256, 256)
    groups = {"group_pattern": r"(\d)\.jpg"}
    assert load_data(f"voc/{tmp_path}", task="segmentation", options=groups).digest != data.digest


def test_parts_may_be_folders(tmp_path: Path, masks: TaskData) -> None:
    for part, count, skip in (("train", 6, 0), ("val", 3, 6), ("test", 3, 9)):
        for folder, at in (("images", 0), ("masks", 1)):
            (tmp_path / folder / part).mkdir(parents=True)
            for i in range(skip, skip + count):
                item = masks.train[i]
                image = draw(item) if at == 0 else Image.fromarray(item[1].numpy())
                name = f"{i}.jpg" if at == 0 else f"{i}_mask.png"
                image.save(tmp_path / folder / part / name)
    data = load_data(f"voc/{tmp_path}", task="segmentation", image_size=48)
    assert [len(data.train), len(data.validation), len(data.test)] == [6, 3, 3]
    assert torch.equal(data.test[2][1], masks.train[9][1])  # after 10 and 11


def test_images_of_other_shapes_are_padded_and_the_rim_ignored(
    tmp_path: Path, masks: TaskData
) -> None:
    write_voc(tmp_path, masks)
    image, mask = masks.train[8]
    draw((image[:, :24], 0)).save(tmp_path / "JPEGImages" / "8.jpg", quality=100)
    Image.fromarray(mask[:24].numpy()).save(tmp_path / "SegmentationClass" / "8.png")
    data = load_data(f"voc/{tmp_path}", task="segmentation", image_size=48)
    picture, drawn = data.test[0]
    assert torch.equal(drawn[12:36], mask[:24])
    assert (drawn[:12] == 255).all()
    assert (drawn[36:] == 255).all()
    assert (picture[:, :12] == 114).all()


def black_and_white(root: Path) -> None:
    for path in (root / "SegmentationClass").iterdir():
        values = np.array(Image.open(path)) > 0
        Image.fromarray(values.astype(np.uint8) * 255).save(path)


MASK = "SegmentationClass/3.png"
BREAKS: dict[str, Callable[[Path], object]] = {
    "size": lambda root: Image.open(root / MASK).resize((40, 48)).save(root / MASK),
    "colors": lambda root: Image.open(root / MASK).convert("RGB").save(root / MASK),
    "missing": lambda root: (root / MASK).unlink(),
    "broken": lambda root: (root / MASK).write_bytes((root / MASK).read_bytes()[:50]),
    "list": lambda root: (root / "ImageSets/Segmentation/val.txt").write_text("8\n99\n"),
    "range": lambda root: (root / "classes.txt").write_text("a\nb\n"),
    "black and white": black_and_white,
    "gone": lambda root: (root / "SegmentationClass").rename(root / "gone"),
}


@pytest.mark.parametrize(
    ("how", "words"),
    [
        ("size", r"a mask must have the size of its image: got .*3\.png of 40 x 48 pixels for an"),
        ("colors", r"one class number a pixel: got .*3\.png of mode RGB"),
        ("missing", r"needs a mask of its name: got none for .*3\.jpg; add a mask called 3\.png"),
        ("broken", r"every image must be readable: got .*3\.png"),
        ("list", r"each image of .*val\.txt must be there: got no image 99"),
        ("range", r"class numbers from 0 to 1, and 255 for ignored pixels: got \d+ in .*\.png"),
        ("black and white", r"masks with nothing but \[0, 255\]; set the 255"),
        ("gone", "lie in SegmentationClass or masks"),
    ],
)
def test_what_is_wrong_with_masks_is_named(
    tmp_path: Path, masks: TaskData, how: str, words: str
) -> None:
    write_voc(tmp_path, masks)
    BREAKS[how](tmp_path)
    with pytest.raises(tp.UsageError, match=words):
        load_data(f"voc/{tmp_path}", task="segmentation")


def write_annotations(root: Path, scenes: TaskData) -> None:
    """VOC counts pixels from 1 and includes the last one."""
    (root / "Annotations").mkdir()
    for i in range(12):
        target = scenes.train[i][1]
        objects = ""
        for box, label in zip(target["boxes"].int().tolist(), target["labels"], strict=True):
            x1, y1, x2, y2 = box
            corners = (
                f"<xmin>{x1 + 1}</xmin><ymin>{y1 + 1}</ymin><xmax>{x2}</xmax><ymax>{y2}</ymax>"
            )
            name = scenes.classes[int(label)]
            objects += f"<object><name>{name}</name><bndbox>{corners}</bndbox></object>"
        difficult = "<object><name>0</name><difficult>1</difficult></object>"
        path = root / "Annotations" / f"{i}.xml"
        path.write_text(f"<annotation>{objects}{difficult}</annotation>")


def test_boxes_of_voc_are_those_that_were_written(
    tmp_path: Path, masks: TaskData, scenes: TaskData
) -> None:
    write_voc(tmp_path, masks, lists=False)
    write_annotations(tmp_path, scenes)
    folder = tmp_path / "ImageSets" / "Main"
    folder.mkdir(parents=True)
    (folder / "trainval.txt").write_text("\n".join(map(str, range(8))))
    (folder / "test.txt").write_text("\n".join(map(str, range(8, 12))))
    options = {"classes": list(scenes.classes)}
    data = load_data(f"voc/{tmp_path}", task="detection", image_size=48, options=options)
    for i in range(4):
        assert torch.equal(data.test[i][1]["boxes"], scenes.train[8 + i][1]["boxes"])
        assert torch.equal(data.test[i][1]["labels"], scenes.train[8 + i][1]["labels"])
    with pytest.raises(tp.UsageError, match=r"objects are of the classes 0: got '\d' in"):
        load_data(f"voc/{tmp_path}", task="detection", options={"classes": 1})
    (tmp_path / "Annotations" / "2.xml").write_text("<annotation>")
    with pytest.raises(tp.UsageError, match=r"an annotation of its name: got .*2\.xml"):
        load_data(f"voc/{tmp_path}", task="detection")


def test_voc_is_not_for_classification(tmp_path: Path) -> None:
    with pytest.raises(tp.UsageError, match="for segmentation and detection: got classification"):
        load_data(f"voc/{tmp_path}")
