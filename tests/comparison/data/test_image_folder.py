"""A folder of images is read whole, split once, and named when it is broken."""

import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import torchplug as tp
from tests.comparison.data.conftest import write_classes
from torchplug.comparison.data import DataWarning, LazyItems, assemble, load_data

Scans = tuple[np.ndarray, np.ndarray]


def test_a_folder_without_a_split_is_split_and_with_one_is_kept(
    tmp_path: Path, scans: Scans
) -> None:
    write_classes(tmp_path / "whole", scans)
    whole = load_data(str(tmp_path / "whole"), image_size=12)
    assert whole.classes == ("0", "1")
    assert (len(whole.train), len(whole.validation), len(whole.test)) == (20, 4, 16)
    assert whole.train.images.shape[1:] == (3, 12, 12)

    write_classes(tmp_path / "parts" / "train", scans)
    write_classes(tmp_path / "parts" / "val", scans, count=10, skip=20)
    parts = load_data(f"folder/{tmp_path / 'parts'}", image_size=12)
    assert len(parts.test) == 20
    assert len(parts.train) + len(parts.validation) == 40

    write_classes(tmp_path / "parts" / "test", scans, count=5, skip=30)
    three = load_data(str(tmp_path / "parts"), image_size=12)
    assert (len(three.train), len(three.validation), len(three.test)) == (40, 20, 10)


def test_images_are_those_of_torchvision(tmp_path: Path, scans: Scans) -> None:
    from torchvision.datasets import ImageFolder
    from torchvision.transforms import functional

    for part, skip in (("train", 0), ("val", 20), ("test", 40)):
        write_classes(tmp_path / part, scans, skip=skip)
    data = load_data(str(tmp_path), image_size=8)
    theirs = ImageFolder(str(tmp_path / "test"))
    assert len(theirs) == len(data.test)
    for (image, label), (picture, number) in zip(data.test, theirs, strict=True):
        expected = functional.center_crop(functional.resize(picture, 8), [8, 8])
        assert torch.equal(image, functional.pil_to_tensor(expected))
        assert label == number


def test_the_digest_follows_the_list_of_files(tmp_path: Path, scans: Scans) -> None:
    write_classes(tmp_path / "a", scans)
    write_classes(tmp_path / "elsewhere" / "b", scans)
    before = load_data(str(tmp_path / "a")).digest
    assert load_data(str(tmp_path / "elsewhere" / "b")).digest == before
    assert load_data(str(tmp_path / "a"), check=False).digest == before
    (tmp_path / "a" / "0" / "0.png").rename(tmp_path / "a" / "1" / "moved.png")
    assert load_data(str(tmp_path / "a")).digest != before


def test_a_large_folder_is_read_item_by_item(
    tmp_path: Path, scans: Scans, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_classes(tmp_path, scans)
    held = load_data(str(tmp_path), image_size=12)
    monkeypatch.setattr(assemble, "MEMORY_LIMIT", 1000)
    lazy = load_data(str(tmp_path), image_size=12)
    assert isinstance(lazy.train, LazyItems)
    assert lazy.digest == held.digest
    for index in range(len(held.test)):
        assert torch.equal(lazy.test[index][0], held.test[index][0])
        assert lazy.test[index][1] == held.test[index][1]
    for mine, theirs in zip(lazy.statistics(), held.statistics(), strict=True):
        assert torch.equal(mine, theirs)
    (tmp_path / "1" / "3.png").write_bytes(b"no image")
    with pytest.raises(tp.UsageError, match=r"every image must be readable.*1/3\.png"):
        load_data(str(tmp_path))


def test_statistics_of_a_large_set_are_those_of_a_part_of_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from torchplug.comparison.data import task_data

    whole = load_data("digits").statistics()
    monkeypatch.setattr(task_data, "_LOOKED_AT", 300)
    some = load_data("digits").statistics()
    assert some[0] != whole[0]
    assert some[0].item() == pytest.approx(whole[0].item(), rel=0.05)


def test_an_unreadable_image_is_named(tmp_path: Path, scans: Scans) -> None:
    write_classes(tmp_path, scans)
    broken = tmp_path / "1" / "3.png"
    broken.write_bytes(broken.read_bytes()[:60])
    with pytest.raises(tp.UsageError, match=r"every image must be readable.*1/3\.png"):
        load_data(str(tmp_path))


def test_a_folder_without_classes_says_what_it_found(tmp_path: Path) -> None:
    with pytest.raises(tp.UsageError, match=r"one sub-folder a class.*with nothing"):
        load_data(str(tmp_path))
    (tmp_path / "a.png").write_bytes(b"")
    with pytest.raises(tp.UsageError, match=r"one sub-folder a class.*with a\.png"):
        load_data(str(tmp_path))
    (tmp_path / "notes").mkdir()
    with pytest.raises(
        tp.UsageError, match=r"every class folder holds images: got none in .*notes"
    ):
        load_data(str(tmp_path))
    (tmp_path / "data.yaml").write_text("")
    (tmp_path / "notes").rmdir()
    with pytest.raises(tp.UsageError, match=r"another layout, name it: yolo/"):
        load_data(str(tmp_path))


def test_a_folder_with_parts_but_no_train_is_refused(tmp_path: Path, scans: Scans) -> None:
    write_classes(tmp_path / "test", scans)
    with pytest.raises(tp.UsageError, match=r"needs one called train: got .* with test"):
        load_data(str(tmp_path))


def test_parts_with_other_classes_are_refused(tmp_path: Path, scans: Scans) -> None:
    for part in ("train", "test"):
        write_classes(tmp_path / part, scans)
    (tmp_path / "test" / "1").rename(tmp_path / "test" / "one")
    with pytest.raises(tp.UsageError, match="must have the same classes"):
        load_data(str(tmp_path))


def test_classes_of_one_image_cannot_be_split(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        Image.new("RGB", (8, 8)).save(tmp_path / name / "x.png")
    with pytest.raises(tp.UsageError, match="several images of each class"):
        load_data(str(tmp_path))


def test_another_task_is_told_the_layout(tmp_path: Path) -> None:
    (tmp_path / "JPEGImages").mkdir()
    with pytest.raises(tp.UsageError, match=rf"name its layout: voc/{tmp_path}"):
        load_data(str(tmp_path), task="segmentation")


def test_sixteen_bit_images_keep_their_grays(tmp_path: Path) -> None:
    ramp = np.linspace(0, 65535, 16 * 16).reshape(16, 16).astype(np.uint16)
    for label in ("a", "b"):
        (tmp_path / label).mkdir()
        for i in range(10):
            Image.fromarray(ramp).save(tmp_path / label / f"{i}.png")
    with pytest.warns(DataWarning):
        images = load_data(str(tmp_path), image_size=16).train.images
    assert images[0, 0].flatten().tolist() == (ramp >> 8).flatten().tolist()


def test_pictures_taken_upright_are_turned_upright(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # turned by a quarter
    for label in ("a", "b"):
        (tmp_path / label).mkdir()
        for i in range(5):
            pixels = np.zeros((8, 8, 3), np.uint8)
            pixels[:2] = 50 * i + 20
            Image.fromarray(pixels).save(tmp_path / label / f"{i}.png", exif=exif)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DataWarning)
        image = load_data(str(tmp_path), image_size=8).train.images[0, 0]
    assert image[0, -1] > 0  # what was the top is the right side
    assert image[0, 0] == 0


def write_groups(root: Path, scans: Scans) -> None:
    write_classes(root, scans)
    rows = [f"{label}/{i}.png,p{i % 5}" for label in (0, 1) for i in range(20)]
    (root / "metadata.csv").write_text("file_name,patient\n" + "\n".join(rows))


def group_of(sample: str) -> int:
    return int(Path(sample).stem) % 5


@pytest.mark.parametrize(
    "options", [{"group": "patient"}, {"group_pattern": r"/\d*?([0-9])\.png"}], ids=str
)
def test_groups_are_not_divided(tmp_path: Path, scans: Scans, options: dict[str, str]) -> None:
    write_groups(tmp_path, scans)
    listing = load_data(str(tmp_path), options=options, image_size=8)
    free = load_data(str(tmp_path), image_size=8)
    assert listing.digest != free.digest
    sizes = [len(listing.train), len(listing.validation), len(listing.test)]
    assert sum(sizes) == 40
    assert all(size % 4 == 0 for size in sizes)  # a group has 4 or 8 images here


def test_groups_that_are_in_two_parts_are_told(tmp_path: Path, scans: Scans) -> None:
    for part, skip in (("train", 0), ("test", 20)):
        write_classes(tmp_path / part, scans, skip=skip)
    options = {"group_pattern": r"(\d+)\.png"}
    with pytest.warns(DataWarning, match="20 groups are in several parts, such as '0'"):
        data = load_data(str(tmp_path), options=options)
    assert data.notes[0].startswith("20 groups")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"grup": "patient"}, "did you mean 'group'"),
        ({"group": "pacient"}, "must have the columns file_name and pacient.*'patient'"),
        ({"group_pattern": "("}, "a regular expression"),
        ({"group_pattern": "a"}, "has one group: got 0"),
        ({"group_pattern": "x(y)"}, "must match each path: got '0/"),
    ],
    ids=str,
)
def test_wrong_options_are_told(
    tmp_path: Path, scans: Scans, options: dict[str, str], words: str
) -> None:
    write_groups(tmp_path, scans)
    with pytest.raises(tp.UsageError, match=words):
        load_data(str(tmp_path), options=options)


def test_a_group_needs_its_table(tmp_path: Path, scans: Scans) -> None:
    write_groups(tmp_path, scans)
    table = tmp_path / "metadata.csv"
    table.write_text(table.read_text().replace("1/7.png", "1/seven.png"))
    with pytest.raises(tp.UsageError, match=r"name each image: got no row for 1/7\.png"):
        load_data(str(tmp_path), options={"group": "patient"})
    table.unlink()
    with pytest.raises(tp.UsageError, match=r"no such file in .*; write metadata\.csv"):
        load_data(str(tmp_path), options={"group": "patient"})
