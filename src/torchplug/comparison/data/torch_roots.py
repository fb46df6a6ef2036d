"""Read a data set as torchvision unpacks it under a local root; nothing is ever downloaded."""

import hashlib
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from torchplug.comparison.data.options import DataOptions
from torchplug.comparison.data.samples import WHOLE, ArraySource, FileSource, Listing, Sample
from torchplug.comparison.data.voc import list_voc
from torchplug.comparison.spec import TaskName
from torchplug.errors import UsageError, explain, import_extra, nearest


@dataclass(frozen=True)
class _Root:
    """How a class of ``torchvision.datasets`` is asked for its parts."""

    maker: str
    parts: Mapping[str, Mapping[str, Any]]


_BY_TRAIN = {"train": {"train": True}, "test": {"train": False}}
_TRAIN_TEST = {part: {"split": part} for part in ("train", "test")}
_TRAIN_VAL = {"train": {"split": "train"}, "validation": {"split": "val"}}
_ALL_THREE = _TRAIN_VAL | {"test": {"split": "test"}}

ROOTS = {
    "cifar10": _Root("CIFAR10", _BY_TRAIN),
    "cifar100": _Root("CIFAR100", _BY_TRAIN),
    "mnist": _Root("MNIST", _BY_TRAIN),
    "fashion_mnist": _Root("FashionMNIST", _BY_TRAIN),
    "kmnist": _Root("KMNIST", _BY_TRAIN),
    "qmnist": _Root("QMNIST", _BY_TRAIN),
    "usps": _Root("USPS", _BY_TRAIN),
    "svhn": _Root("SVHN", _TRAIN_TEST),
    "stl10": _Root("STL10", _TRAIN_TEST),
    "gtsrb": _Root("GTSRB", _TRAIN_TEST),
    "food101": _Root("Food101", _TRAIN_TEST),
    "stanford_cars": _Root("StanfordCars", _TRAIN_TEST),
    "flowers102": _Root("Flowers102", _ALL_THREE),
    "dtd": _Root("DTD", _ALL_THREE),
    "fgvc_aircraft": _Root("FGVCAircraft", _ALL_THREE),
    "country211": _Root(
        "Country211",
        {"train": {"split": "train"}, "validation": {"split": "valid"}, "test": {"split": "test"}},
    ),
    "oxford_pets": _Root(
        "OxfordIIITPet", {"train": {"split": "trainval"}, "test": {"split": "test"}}
    ),
    "imagenet": _Root("ImageNet", _TRAIN_VAL),
    "imagenette": _Root("Imagenette", _TRAIN_VAL),
    "places365": _Root(
        "Places365", {"train": {"split": "train-standard"}, "validation": {"split": "val"}}
    ),
    "eurosat": _Root("EuroSAT", {WHOLE: {}}),
    "sun397": _Root("SUN397", {WHOLE: {}}),
}
NAMES = (*ROOTS, "voc")


def list_torch(rest: str, task: TaskName, options: DataOptions) -> Listing:
    """Return ``NAME:ROOT``: the data set NAME of torchvision under ROOT."""
    name, colon, path = rest.partition(":")
    name = name.lower()
    if name not in NAMES:
        rule = f"torchvision's sets are {', '.join(NAMES)}"
        raise UsageError(explain(rule, repr(name), nearest(name, NAMES)))
    if not colon or not path:
        fix = f"name it after a colon: torch/{name}:path/to/root"
        raise UsageError(explain("a set of torchvision lies under a root", repr(rest), fix))
    if name == "voc":
        return list_voc(str(_find_voc(Path(path), options)), task, options)
    if task != "classification":
        text = explain(
            f"{name} is for classification",
            task,
            "use torch/voc:ROOT, or name the layout of your own data: voc/, yolo/, coco/",
        )
        raise UsageError(text)
    return _list_root(f"torch/{name}:{path}", ROOTS[name], Path(path), options)


def _find_voc(root: Path, options: DataOptions) -> Path:
    folder = root / "VOCdevkit" / f"VOC{options.year}"
    if folder.is_dir():
        return folder
    fix = "name the folder that holds VOCdevkit, and the year as an option: year = '2012'"
    raise UsageError(explain("VOC lies under its root as torchvision unpacks it", str(root), fix))


def _list_root(name: str, root: _Root, path: Path, options: DataOptions) -> Listing:
    datasets = import_extra("torchvision.datasets", extra="compare", purpose="torchvision's sets")
    maker = getattr(datasets, root.maker)
    parts: dict[str, list[Sample]] = {}
    hashed = hashlib.sha256()
    classes = options.classes
    images = None
    for part, asked in root.parts.items():
        try:
            data = maker(path, **asked)
        except (RuntimeError, OSError) as error:
            raise UsageError(_explain_missing(name, maker, path, error)) from error
        classes = classes or tuple(map(str, getattr(data, "classes", ())))
        if isinstance(getattr(data, "data", None), list | type(None)):
            parts[part] = _list_files(data, part, path)
            continue
        images, labels = _read_arrays(data)
        hashed.update(images.tobytes())
        parts[part] = [
            Sample(f"{part}/{index:06d}", ArraySource(images, index), label, images[0].size)
            for index, label in enumerate(labels)
        ]
    if not classes:
        highest = max(int(str(each.target)) for samples in parts.values() for each in samples)
        classes = tuple(str(label) for label in range(highest + 1))
    if images is None:
        return Listing(name, classes, parts, published=True)
    channels, side = (1 if images.ndim == 3 else 3), images.shape[1]
    return Listing(name, classes, parts, channels, hashed.hexdigest(), side, published=True)


def _read_arrays(data: Any) -> tuple[NDArray[np.uint8], list[int]]:
    """Return images ``(N, H, W)`` or ``(N, H, W, 3)`` and labels."""
    images = np.asarray(data.data)
    if images.ndim == 4 and images.shape[1] == 3:
        images = images.transpose(0, 2, 3, 1)
    labels = data.targets if hasattr(data, "targets") else data.labels
    labels = np.asarray(labels)
    if labels.ndim == 2:  # of QMNIST: the class, and where it came from
        labels = labels[:, 0]
    return np.ascontiguousarray(images, dtype=np.uint8), labels.astype(int).tolist()


def _list_files(data: Any, part: str, root: Path) -> list[Sample]:
    rows = next(
        (getattr(data, name) for name in ("samples", "_samples", "imgs") if hasattr(data, name)),
        None,
    )
    if rows is None:
        paths = data._image_files if hasattr(data, "_image_files") else data._images
        rows = list(zip(paths, data._labels, strict=True))
    samples = []
    for place, label in rows:
        path = Path(place)
        key = f"{part}/{Path(os.path.relpath(path, root)).as_posix()}"
        samples.append(Sample(key, FileSource(str(path)), int(label), path.stat().st_size))
    return samples


def _explain_missing(name: str, maker: Any, root: Path, error: Exception) -> str:
    folder = getattr(maker, "base_folder", maker.__name__)
    folder = folder if isinstance(folder, str) else maker.__name__
    kind = name.partition(":")[0]
    return explain(
        f"{kind} must lie under its root as torchvision unpacks it",
        f"{root} without a whole {folder} ({str(error).splitlines()[0]})",
        f"name the folder that holds it: {kind}:path/to/root",
    )
