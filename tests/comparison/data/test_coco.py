"""Boxes as COCO lays them out, read as pycocotools reads them."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

import torchplug as tp
from tests.comparison.data.conftest import draw
from torchplug.comparison.data import TaskData, load_data


def write_coco(root: Path, scenes: TaskData, **changes: Any) -> None:
    """Ten scenes to train and six to validate; category ids have gaps, as COCO's have."""
    (root / "annotations").mkdir(parents=True)
    for part, indices in (("train2017", range(10)), ("val2017", range(10, 16))):
        (root / part).mkdir()
        images, annotations = [], []
        for i in indices:
            image, target = scenes.train[i]
            draw((image, 0)).save(root / part / f"{i:012d}.jpg")
            row = {"id": 100 + i, "file_name": f"{i:012d}.jpg", "width": 48, "height": 48}
            images.append({**row, "camera": i % 4})
            for box, label in zip(target["boxes"].tolist(), target["labels"].tolist(), strict=True):
                x1, y1, x2, y2 = box
                drawn = {"bbox": [x1, y1, x2 - x1, y2 - y1], "area": (x2 - x1) * (y2 - y1)}
                ids = {"id": len(annotations) + 1, "image_id": 100 + i}
                annotations.append({**ids, "category_id": 3 * label + 1, "iscrowd": 0, **drawn})
        crowd = {**annotations[0], "id": 9999, "iscrowd": 1}
        # the ids are not in order, as nothing promises it
        categories = [{"id": 3 * k + 1, "name": scenes.classes[k]} for k in reversed(range(10))]
        content = {"images": images, "annotations": [*annotations, crowd]}
        content |= {"categories": categories}
        for key, value in changes.items():
            content[key][0] = {**content[key][0], **value}
        (root / "annotations" / f"instances_{part}.json").write_text(json.dumps(content))


def test_boxes_are_those_of_pycocotools(tmp_path: Path, scenes: TaskData) -> None:
    from pycocotools.coco import COCO

    write_coco(tmp_path, scenes)
    data = load_data(f"coco/{tmp_path}", task="detection", image_size=48)
    assert data.classes == scenes.classes
    assert len(data.train) + len(data.validation) == 10
    theirs = COCO(str(tmp_path / "annotations" / "instances_val2017.json"))
    for index, identity in enumerate(theirs.getImgIds()):
        rows = theirs.loadAnns(theirs.getAnnIds(identity, iscrowd=False))
        boxes = torch.tensor([row["bbox"] for row in rows])
        boxes[:, 2:] += boxes[:, :2]
        names = [theirs.loadCats(row["category_id"])[0]["name"] for row in rows]
        target = data.test[index][1]
        assert torch.equal(target["boxes"], boxes)
        assert [data.classes[label] for label in target["labels"]] == names


def test_other_places_of_files_are_found(tmp_path: Path, scenes: TaskData) -> None:
    write_coco(tmp_path, scenes)
    before = load_data(f"coco/{tmp_path}", task="detection", image_size=48)
    for part in ("train2017", "val2017"):  # as Roboflow writes it
        file = tmp_path / "annotations" / f"instances_{part}.json"
        file.rename(tmp_path / part / "_annotations.coco.json")
    again = load_data(f"coco/{tmp_path}", task="detection", image_size=48)
    assert again.digest == before.digest
    (tmp_path / "images").mkdir()
    for part in ("train2017", "val2017"):
        (tmp_path / part).rename(tmp_path / "images" / part)
        file = tmp_path / "images" / part / "_annotations.coco.json"
        file.rename(tmp_path / f"instances_{part}.json")
    moved = load_data(f"coco/{tmp_path}", task="detection", image_size=48)
    assert torch.equal(moved.test[3][0], before.test[3][0])


def test_one_file_is_divided_and_groups_are_kept(tmp_path: Path, scenes: TaskData) -> None:
    write_coco(tmp_path, scenes)
    (tmp_path / "annotations" / "instances_val2017.json").unlink()
    (tmp_path / "annotations" / "instances_train2017.json").rename(
        tmp_path / "annotations" / "instances_all.json"
    )
    (tmp_path / "train2017").rename(tmp_path / "images")
    data = load_data(f"coco/{tmp_path}", task="detection", options={"group": "camera"})
    assert len(data.train) + len(data.validation) + len(data.test) == 10
    with pytest.raises(tp.UsageError, match=r"must have the group 'camra'.*'camera'"):
        load_data(f"coco/{tmp_path}", task="detection", options={"group": "camra"})


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"annotations": {"bbox": [40, 40, 20, 4]}}, r"inside its image: got \(40, 40, 60, 44\)"),
        ({"annotations": {"bbox": [4, 4, 0, 4]}}, "a width and a height above 0"),
        ({"annotations": {"category_id": 2}}, "category_id is one of 1, 4, .*: got 2 for"),
        ({"annotations": {"image_id": 7}}, "belongs to one of its images: got image_id 7"),
        (
            {"images": {"width": 50}},
            "drawn on the image as it is stored: got .* 48 x 48 .* 50 x 48",
        ),
        ({"images": {"file_name": "lost.jpg"}}, r"must be there: got no lost\.jpg"),
    ],
    ids=str,
)
def test_what_is_wrong_is_named(
    tmp_path: Path, scenes: TaskData, changes: dict[str, Any], words: str
) -> None:
    write_coco(tmp_path, scenes, **changes)
    with pytest.raises(tp.UsageError, match=words):
        load_data(f"coco/{tmp_path}", task="detection")


def test_wrong_files_are_named(tmp_path: Path, scenes: TaskData) -> None:
    with pytest.raises(tp.UsageError, match=r"instances_train\.json and its like: got .* nothing"):
        load_data(f"coco/{tmp_path}", task="detection")
    write_coco(tmp_path, scenes)
    file = tmp_path / "annotations" / "instances_val2017.json"
    content = json.loads(file.read_text())
    file.write_text(json.dumps({**content, "categories": content["categories"][1:]}))
    with pytest.raises(tp.UsageError, match="must have the same categories"):
        load_data(f"coco/{tmp_path}", task="detection")
    file.write_text(json.dumps({"images": []}))
    with pytest.raises(tp.UsageError, match="got no annotations, categories"):
        load_data(f"coco/{tmp_path}", task="detection")
    file.write_text("{")
    with pytest.raises(tp.UsageError, match=r"val2017\.json must be JSON"):
        load_data(f"coco/{tmp_path}", task="detection")
    with pytest.raises(tp.UsageError, match="coco/ is for detection"):
        load_data(f"coco/{tmp_path}", task="segmentation")
