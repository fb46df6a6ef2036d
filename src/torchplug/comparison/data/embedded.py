"""The data that comes along: scikit-learn's scans of handwritten digits, alone and in scenes."""

import functools
import hashlib

import numpy as np
from numpy.typing import NDArray

from torchplug.comparison.data.canvases import SIDE, Scene, draw_scenes
from torchplug.comparison.data.dividing import divide
from torchplug.comparison.data.samples import PARTS, WHOLE, ArraySource, Boxes, Listing, Sample
from torchplug.comparison.seeds import derive_seed
from torchplug.comparison.spec import TaskName

SCENES = {"train": 600, "validation": 100, "test": 300}
_DIGITS = tuple(str(digit) for digit in range(10))


def list_digits(task: TaskName) -> Listing:
    """Return the 1,797 scans of 8 x 8 pixels, or 1,000 scenes of 48 x 48 made of them."""
    if task == "classification":
        return _list_scans()
    scenes = _draw_all()
    images = np.stack([scene.image for part in PARTS for scene in scenes[part]])
    masks = np.stack([scene.mask for part in PARTS for scene in scenes[part]])
    parts: dict[str, list[Sample]] = {}
    index = 0
    for part in PARTS:
        parts[part] = []
        for number, scene in enumerate(scenes[part]):
            target: ArraySource | Boxes = (
                ArraySource(masks, index)
                if task == "segmentation"
                else Boxes(scene.corners.copy(), scene.labels, (SIDE, SIDE))
            )
            image = ArraySource(images, index)
            parts[part].append(Sample(f"{part}/{number:04d}", image, target, SIDE * SIDE))
            index += 1
    classes = ("background", *_DIGITS) if task == "segmentation" else _DIGITS
    return Listing("digits", classes, parts, 1, _hash(images, masks), SIDE, published=True)


def _list_scans() -> Listing:
    from sklearn.datasets import load_digits  # half a second that other data need not pay

    digits = load_digits()
    # ink is counted from 0 to 16; bytes are what images are
    images = np.round(digits.images * (255 / 16)).astype(np.uint8)
    samples = [
        Sample(f"{index:04d}", ArraySource(images, index), int(label), 64)
        for index, label in enumerate(digits.target)
    ]
    content = _hash(images)
    return Listing("digits", _DIGITS, {WHOLE: samples}, 1, content, 8, published=True)


@functools.cache
def _draw_all() -> dict[str, list[Scene]]:
    """All scenes; scans of the test are in no training scene, nor the other way round."""
    scans = _list_scans()
    scenes = {}
    for part, samples in divide(scans.parts, "digits").items():
        pixels = np.stack([np.asarray(sample.image.open()) for sample in samples]) / 255
        labels = np.array([sample.target for sample in samples], np.int64)
        seed = derive_seed("scenes", part) % 2**32
        scenes[part] = draw_scenes(pixels, labels, SCENES[part], seed)
    return scenes


def _hash(*arrays: NDArray[np.uint8]) -> str:
    return hashlib.sha256(b"".join(array.tobytes() for array in arrays)).hexdigest()
