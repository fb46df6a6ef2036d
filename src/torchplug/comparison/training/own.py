"""A user's own LightningModule and LightningDataModule."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from torchplug.comparison.tasks.base import Score
from torchplug.errors import UsageError, explain, nearest

_LOOKED_AT = 8


@dataclass(frozen=True)
class ModuleData:
    """A ``LightningDataModule`` in the place of a ``TaskData``; made by :func:`wrap_datamodule`."""

    module: Any
    name: str
    task: str
    classes: tuple[str, ...]
    digest: str
    shape: tuple[int, int, int, int]

    @property
    def channels(self) -> int:
        """Of its images."""
        return self.shape[1]

    def statistics(self) -> tuple[Tensor, Tensor]:
        """Return 0 and 1: its images are used as they come."""
        zeros = torch.zeros(self.channels, 1, 1)
        return zeros, zeros + 1


def wrap_datamodule(module: Any, task: str = "classification") -> ModuleData:
    """Return a user's LightningDataModule as data of a comparison.

    ``prepare_data`` and ``setup`` are called once. ``classes`` or ``num_classes`` of the module
    name the classes; only a plain model needs them.

    Raises:
        UsageError: if a batch does not begin with images ``(N, C, H, W)``.
    """
    module.prepare_data()
    for stage in ("fit", "test"):
        module.setup(stage)
    loader = module.train_dataloader()
    first = next(iter(loader[0] if isinstance(loader, list | tuple) else loader))
    images = first[0] if isinstance(first, list | tuple) else first
    if isinstance(images, list | tuple):
        images = torch.stack(list(images[:1]))
    if not isinstance(images, Tensor) or images.ndim != 4:
        text = explain(
            "a batch of a LightningDataModule begins with images (N, C, H, W)",
            f"a {type(images).__name__}",
            "return (images, targets) from its data set",
        )
        raise UsageError(text)
    names = getattr(module, "classes", None) or range(getattr(module, "num_classes", 0))
    return ModuleData(
        module=module,
        name=type(module).__qualname__,
        task=task,
        classes=tuple(map(str, names)),
        digest=_hash(module),
        shape=(1, *images.shape[1:]),
    )


def _hash(module: Any) -> str:
    """Hash what can be seen of the data: numbers of items, and some of those that do not move."""
    hashed = hashlib.sha256(type(module).__qualname__.encode())
    for name in ("val_dataloader", "test_dataloader", "train_dataloader"):
        loaders = getattr(module, name)()
        for loader in loaders if isinstance(loaders, list | tuple) else [loaders]:
            count = len(loader.dataset)
            hashed.update(f"{name} {count}".encode())
            if name != "train_dataloader":  # its items may be augmented
                for index in range(0, count, max(count // _LOOKED_AT, 1)):
                    _add(hashed, loader.dataset[index])
    return hashed.hexdigest()


def _add(hashed: Any, value: Any) -> None:
    if isinstance(value, Tensor):
        content = value.detach().cpu().contiguous()
        hashed.update(content.reshape(-1).view(torch.uint8).numpy().tobytes())
    elif isinstance(value, Mapping):
        for key in sorted(value):
            hashed.update(str(key).encode())
            _add(hashed, value[key])
    elif isinstance(value, list | tuple):
        for each in value:
            _add(hashed, each)
    else:
        hashed.update(repr(value).encode())


def read_score(found: Mapping[str, Any], metric: str) -> Score:
    """Return what a user's module logged in its test, the named metric first.

    Raises:
        UsageError: if it logged no such metric.
    """
    values = {name: float(value) for name, value in found.items()}
    if metric not in values:
        text = explain(
            "a LightningModule logs the metric of the comparison in test_step",
            repr(metric),
            nearest(metric, values) if values else "call self.log(name, value) there",
        )
        raise UsageError(text)
    tested = {name: value for name, value in values.items() if name.startswith("test")}
    return Score({metric: values[metric], **tested}, {})
