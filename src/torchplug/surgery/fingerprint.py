"""Know a base again: its names and shapes, the classes that carry plugs, and its values."""

import ctypes
import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from torchplug.errors import UsageError, explain
from torchplug.surgery.attach import HOLDER, is_plugged

_EQUIVALENT = {"SyncBatchNorm": "BatchNorm2d"}
"""Training on several devices swaps these, which changes no weight."""


@dataclass(frozen=True, kw_only=True)
class Fingerprint:
    """What must be equal for plugs to fit, and a hash that tells whether the weights are too."""

    host: str
    """Class name of the model."""

    classes: Mapping[str, str]
    """Class name of each module that carries plugs, by path."""

    tensors: Mapping[str, tuple[int, ...]]
    """Shape of every parameter and buffer of the base, by name."""

    values: str
    """SHA-256 over names, types and contents of these tensors."""

    def find_difference(self, other: "Fingerprint") -> str | None:
        """Return the first thing in which ``other`` is another model, in words; None if it fits.

        The weights' values may differ: plugs fit any base of the same form.
        """
        for path, wanted in self.classes.items():
            found = other.classes.get(path)
            if found is None:
                return f"no module at {path}, where the file has a {wanted}"
            if found != wanted:
                return f"a {found} at {path}, where the file has a {wanted}"
        return _compare_shapes(self.tensors, other.tensors)


def _compare_shapes(
    wanted: Mapping[str, tuple[int, ...]], found: Mapping[str, tuple[int, ...]]
) -> str | None:
    for name, shape in wanted.items():
        if name not in found:
            return f"no tensor {name}, which the file's base has"
        if found[name] != shape:
            return f"{name} of shape {found[name]}, where the file's base has {shape}"
    extra = next((name for name in found if name not in wanted), None)
    return None if extra is None else f"a tensor {extra}, which the file's base does not have"


def take_fingerprint(model: nn.Module, paths: Iterable[str]) -> Fingerprint:
    """Take the fingerprint of the base under ``model``; ``paths`` are those that carry plugs.

    Raises:
        UsageError: if a tensor has no values to hash.
    """
    modules = dict(model.named_modules(remove_duplicate=False))
    state = base_state(model)
    return Fingerprint(
        host=type(model).__name__,
        classes={
            path: _name_class(modules[carrier])
            for path in paths
            if (carrier := path.partition("!")[0]) in modules
        },
        tensors={name: tuple(tensor.shape) for name, tensor in state.items()},
        values=hash_tensors(state),
    )


def base_state(model: nn.Module) -> dict[str, Tensor]:
    """Return the tensors of the host's own state: those of no plug."""
    holders = tuple(
        join(path, HOLDER) + "."
        for path, module in model.named_modules(remove_duplicate=False)
        if is_plugged(module)
    )
    return {
        name: value
        for name, value in model.state_dict().items()
        if isinstance(value, Tensor) and not name.startswith(holders)
    }


def join(*names: str) -> str:
    """Join parts of a path by dots; the model itself has an empty path.

    >>> join("", "layer1")
    'layer1'
    """
    return ".".join(name for name in names if name)


def _name_class(module: nn.Module) -> str:
    name = type(module).__name__
    return _EQUIVALENT.get(name, name)


def hash_tensors(tensors: Mapping[str, Tensor]) -> str:
    """Return the SHA-256 over names, types, shapes and contents, whatever their order.

    Raises:
        UsageError: if a tensor has no values here: on the meta device, or sharded.
    """
    digest = hashlib.sha256()
    for name in sorted(tensors):
        tensor = to_plain(name, tensors[name])
        digest.update(f"{name}\0{tensor.dtype}\0{tuple(tensor.shape)}\0".encode())
        digest.update(view_bytes(tensor))
    return digest.hexdigest()


def to_plain(name: str, tensor: Tensor) -> Tensor:
    """Return the values as an ordinary contiguous tensor in main memory.

    Raises:
        UsageError: if there are no values to copy.
    """
    is_plain = type(tensor) in {Tensor, nn.Parameter, nn.Buffer}
    if not is_plain or tensor.is_meta or tensor.layout is not torch.strided:
        kind = "meta tensor" if tensor.is_meta else type(tensor).__name__
        text = explain(
            "a file of plugs needs the values of every tensor",
            f"{name}, a {kind} of layout {tensor.layout}",
            "load the weights first, and gather what is sharded",
        )
        raise UsageError(text)
    return tensor.detach().cpu().contiguous().resolve_conj().resolve_neg()


def view_bytes(tensor: Tensor) -> Any:
    """Return the memory of a contiguous tensor as a buffer, without numpy and without a copy.

    The tensor must outlive the buffer.
    """
    size = tensor.numel() * tensor.element_size()
    return (ctypes.c_ubyte * size).from_address(tensor.data_ptr()) if size else b""
