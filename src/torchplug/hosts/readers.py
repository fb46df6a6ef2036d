"""What timm, torchvision, segmentation_models_pytorch and ultralytics say of their own models.

Each reader looks at attributes and names only: no library is imported here.
"""

from collections.abc import Sequence
from typing import Any

from torch import nn

from torchplug.surgery.metadata import Roles, register_reader


def read_timm(module: nn.Module) -> Roles:
    """Stage ends from ``feature_info``, which every timm backbone with stages has.

    >>> from torch import nn
    >>> read_timm(nn.ReLU())
    {}
    """
    info: Any = getattr(module, "feature_info", None)
    entries = getattr(info, "info", info)
    if not isinstance(entries, (list, tuple)):  # blocks have a method of this name
        return {}
    names = [str(entry["module"]) for entry in entries]
    if hasattr(module, "incre_modules"):  # HRNet lists stages that return several maps at once
        return {"stage": _children(module, "incre_modules.{}", 4, first=0)}
    # a network that was cut down to its features has its children flattened
    names = [name if _has(module, name) else name.replace(".", "_") for name in names]
    return {"stage": [name for name in names if _has(module, name)]}


def read_torchvision(module: nn.Module) -> Roles:
    """Stage ends from the names of ResNet and DenseNet, kept where a network is dilated."""
    for pattern in ("layer{}", "features.denseblock{}"):
        names = _children(module, pattern, 4)
        if len(names) > 1:
            return {"stage": names}
    return {}


def read_smp(module: nn.Module) -> Roles:
    """Stage ends of an encoder from its list of indices, or as torchvision, whose class it is."""
    indices: Any = getattr(module, "_out_indexes", None)
    container = next((name for name in ("_blocks", "features") if _has(module, name)), None)
    if isinstance(indices, list) and container is not None:
        return {"stage": [f"{container}.{index}" for index in indices]}
    return read_torchvision(module)


def read_ultralytics(module: nn.Module) -> Roles:
    """Backbone end from the ``yaml`` that the model was built from."""
    yaml = getattr(module, "yaml", None)
    if not isinstance(yaml, dict) or not yaml.get("backbone"):
        return {}
    return {"backbone_end": [f"model.{len(yaml['backbone']) - 1}"]}


def _children(module: nn.Module, pattern: str, most: int, *, first: int = 1) -> Sequence[str]:
    names = [pattern.format(number) for number in range(first, first + most)]
    return [name for name in names if _has(module, name)]


def _has(module: nn.Module, path: str) -> bool:
    try:
        module.get_submodule(path)
    except AttributeError:
        return False
    return True


def register_readers() -> None:
    """Enter the readers of this file; importing :mod:`torchplug.hosts` does it."""
    register_reader("timm", read_timm)
    register_reader("torchvision", read_torchvision)
    register_reader("segmentation_models_pytorch", read_smp)
    register_reader("ultralytics", read_ultralytics)
