"""What was plugged, remembered by the model itself: plain data on the module that was plugged.

A conversion that replaces a module also removes the plug on it, in silence. The record lies on the
root, which such conversions keep; it follows deepcopy and pickle and is no part of the state dict.
"""

from collections.abc import Iterable, Iterator
from typing import Any

from torch import nn

from torchplug.surgery.parts import Parts
from torchplug.surgery.plan import PlannedPlug

_MEMORY = "_torchplug_memory"

Entry = dict[str, Any]
"""One plug: path, name, module (its key), type (its class), role, stage, channels.

One that was merged has ``merged`` besides: nothing of it is attached, on purpose.
"""


def name_class(module: nn.Module) -> str:
    """Return the name of a module's class, the host's own where it carries plugs."""
    return getattr(type(module), "_torchplug_class", type(module)).__qualname__


def describe_base(model: nn.Module) -> dict[str, str]:
    """Return class and parameter shapes of every module of the base by path."""
    parts = Parts(model)
    return {
        path: " ".join([name_class(module), *map(_shape, module.parameters(recurse=False))])
        for path, module in model.named_modules()
        if not parts.is_plug(path)
    }


def _shape(tensor: Any) -> str:
    return "x".join(map(str, tensor.shape))


def remember(model: nn.Module, plugs: Iterable[tuple[PlannedPlug, nn.Module]]) -> None:
    """Note plugs that were attached to ``model``, and what its base looked like at the first."""
    old = model.__dict__.get(_MEMORY, {"plugs": [], "base": describe_base(model)})
    new = [
        {
            "path": planned.path,
            "name": planned.name,
            "module": planned.module,
            "type": type(module).__qualname__,
            "role": planned.role,
            "stage": planned.stage,
            "channels": planned.channels,
        }
        for planned, module in plugs
    ]
    again = {(entry["path"], entry["name"]) for entry in new}  # lost before, attached anew
    kept = [entry for entry in old["plugs"] if (entry["path"], entry["name"]) not in again]
    model.__dict__[_MEMORY] = {**old, "plugs": kept + new}


def forget(
    model: nn.Module, name: str | None = None, steps: Iterable[tuple[str, str]] | None = None
) -> None:
    """Strike out plugs that were taken out: all, those of one name, or these (path, name).

    Merged ones stay: they are weights of the base, which nothing takes out again.
    """
    pairs = None if steps is None else set(steps)
    for prefix, module in list(_remembering(model)):
        memory = module.__dict__[_MEMORY]
        kept = [
            entry
            for entry in memory["plugs"]
            if entry.get("merged")
            or (pairs is not None and (prefix + entry["path"], entry["name"]) not in pairs)
            or name not in {None, entry["name"]}
        ]
        if kept:
            module.__dict__[_MEMORY] = {**memory, "plugs": kept}
        else:
            del module.__dict__[_MEMORY]


def mark_merged(model: nn.Module, steps: Iterable[tuple[str, str]]) -> None:
    """Note that these (path, name) became weights of the base, which is described anew there."""
    pairs = set(steps)
    for prefix, module in _remembering(model):
        memory = module.__dict__[_MEMORY]
        plugs = [
            {**entry, "merged": True} if (prefix + entry["path"], entry["name"]) in pairs else entry
            for entry in memory["plugs"]
        ]
        now = describe_base(module)
        base = {
            path: now.get(path, text) if any(prefix + path == at for at, _ in pairs) else text
            for path, text in memory["base"].items()
        }
        module.__dict__[_MEMORY] = {**memory, "plugs": plugs, "base": base}


def recall(model: nn.Module) -> list[Entry]:
    """Return what should be attached to ``model`` or a part of it, with paths seen from it."""
    return [entry for entry in _recall_all(model) if not entry.get("merged")]


def recall_merged(model: nn.Module) -> list[Entry]:
    """Return the plugs that were merged into the base, with paths seen from ``model``."""
    return [entry for entry in _recall_all(model) if entry.get("merged")]


def _recall_all(model: nn.Module) -> list[Entry]:
    return [
        {**entry, "path": prefix + entry["path"]}
        for prefix, module in _remembering(model)
        for entry in module.__dict__[_MEMORY]["plugs"]
    ]


def recall_base(model: nn.Module) -> dict[str, str]:
    """Return what the base looked like when it was plugged, with paths seen from ``model``."""
    return {
        (prefix + path).removesuffix("."): text
        for prefix, module in _remembering(model)
        for path, text in module.__dict__[_MEMORY]["base"].items()
    }


def _remembering(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    for path, module in model.named_modules():
        if _MEMORY in module.__dict__:
            yield f"{path}." if path else "", module
