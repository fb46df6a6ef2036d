"""What is in two parts at once is told; what only looks alike is not."""

import warnings
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageEnhance

from tests.comparison.data.conftest import draw, write_classes
from torchplug.comparison.data import DataWarning, TaskData, assemble, load_data

Scans = tuple[np.ndarray, np.ndarray]


def write_scenes(root: Path, scenes: TaskData) -> None:
    """Sixteen scenes a class and part; what the class means does not matter here."""
    for part, first in (("train", 0), ("test", 32)):
        for i in range(32):
            path = root / part / ("a" if i % 2 else "b") / f"{i}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            draw(scenes.train[first + i]).save(path)


def test_distinct_images_are_no_twins(tmp_path: Path, scenes: TaskData, scans: Scans) -> None:
    write_scenes(tmp_path / "scenes", scenes)
    write_classes(tmp_path / "digits", scans, count=150)  # many of one shape: the hard case
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for name in ("scenes", "digits"):
            assert load_data(str(tmp_path / name)).notes == ()


@pytest.mark.parametrize("change", ["jpeg", "scaled", "brighter"])
def test_nearly_the_same_image_in_two_parts_is_told(
    tmp_path: Path, scenes: TaskData, change: str
) -> None:
    write_scenes(tmp_path, scenes)
    image = draw(scenes.train[5])
    target = tmp_path / "test" / "a" / "copy.jpg"
    if change == "jpeg":
        image.save(target, quality=75)
    elif change == "scaled":
        image.resize((75, 75), Image.Resampling.BICUBIC).save(target)
    else:
        ImageEnhance.Brightness(image).enhance(0.8).save(target, quality=95)
    with pytest.warns(DataWarning, match=r"1 test images are nearly.*test/a/copy\.jpg and train"):
        data = load_data(str(tmp_path))
    assert "results will look better" in data.notes[0]


def test_exact_copies_are_found_where_images_are_not_held(
    tmp_path: Path, scenes: TaskData, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(assemble, "MEMORY_LIMIT", 0)
    write_scenes(tmp_path, scenes)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        load_data(str(tmp_path))
    source = tmp_path / "train" / "a" / "5.png"
    (tmp_path / "test" / "b" / "other.png").write_bytes(source.read_bytes())
    pair = r"test/b/other\.png and train/a/5\.png"
    with pytest.warns(DataWarning, match=f"1 test images are copies of a training image.*{pair}"):
        load_data(str(tmp_path))


def test_workers_do_not_look_again(tmp_path: Path, scenes: TaskData) -> None:
    write_scenes(tmp_path, scenes)
    draw(scenes.train[5]).save(tmp_path / "test" / "a" / "copy.png")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        load_data(str(tmp_path), check=False)
