"""Small sets in the layouts that users have, written by the libraries that write them."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from torchplug.comparison.data import TaskData, load_data


@pytest.fixture(scope="session")
def scans() -> tuple[np.ndarray, np.ndarray]:
    """Real scans ``(N, 8, 8)`` of bytes with their digits, in scikit-learn's order."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    return np.round(digits.images * 255 / 16).astype(np.uint8), digits.target


@pytest.fixture(scope="session")
def scenes() -> TaskData:
    return load_data("digits", task="detection")


@pytest.fixture(scope="session")
def masks() -> TaskData:
    return load_data("digits", task="segmentation")


def write_classes(
    root: Path, scans: tuple[np.ndarray, np.ndarray], *, count: int = 20, skip: int = 0
) -> None:
    """Write a folder a class: ``count`` scans of 0 and of 1, as RGB PNG of 24 x 16."""
    for label in (0, 1):
        for i, image in enumerate(scans[0][scans[1] == label][skip : skip + count]):
            path = root / str(label) / f"{i}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(image).convert("RGB").resize((24, 16)).save(path)


def draw(item: Any) -> Image.Image:
    """The image of an item, as RGB."""
    return Image.fromarray(item[0][0].numpy()).convert("RGB")
