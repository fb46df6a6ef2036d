"""The arguments of a forward as data: what a plan keeps of the example it was made with.

Shapes and types, no contents: some places show themselves only when the model runs, and a file of
plugs can then be loaded without being told on what. Equal data give equal arguments.
"""

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from torchplug.surgery.trace import Arguments

LARGEST = 2**26
"""Numbers in all tensors of an example: a file must not ask for all memory."""

_DTYPES = {
    str(dtype).removeprefix("torch."): dtype
    for dtype in (
        *(torch.float64, torch.float32, torch.float16, torch.bfloat16),
        *(torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8, torch.bool),
    )
}
_MOST_NODES = 1000
_LONGEST_TEXT = 1000
_CONTAINERS: dict[str, Any] = {"list": list, "tuple": tuple}

Specimen = dict[str, Any]


def describe(arguments: Arguments) -> Specimen | None:
    """Return the arguments as JSON, or None where they hold what JSON and tensors do not say."""
    try:
        specimen = {"args": _describe(list(arguments[0])), "kwargs": _describe(dict(arguments[1]))}
    except TypeError:
        return None
    return specimen if is_specimen(specimen) else None


def _describe(value: Any) -> Any:
    if isinstance(value, Tensor):
        return {"shape": list(value.shape), "dtype": str(value.dtype).removeprefix("torch.")}
    for name, kind in _CONTAINERS.items():
        if type(value) is kind:
            return {name: [_describe(part) for part in value]}
    if type(value) is dict:
        return {"dict": {name: _describe(part) for name, part in value.items()}}
    if value is None or type(value) in {bool, int, float, str}:
        return {"value": value}
    raise TypeError(type(value).__name__)


def is_specimen(value: Any) -> bool:
    """Whether a value of a file is what :func:`describe` returns, of a sane size."""
    if type(value) is not dict or value.keys() != {"args", "kwargs"}:
        return False
    if not (_has(value["args"], "list") and _has(value["kwargs"], "dict")):
        return False
    try:
        sizes = [*_sizes(value["args"]), *_sizes(value["kwargs"])]
    except (AttributeError, TypeError, ValueError):
        return False
    return len(sizes) <= _MOST_NODES and sum(sizes) <= LARGEST


def _has(node: Any, kind: str) -> bool:
    return type(node) is dict and node.keys() == {kind}


def _sizes(node: Any) -> list[int]:
    """How many numbers each part holds; raises where it is none."""
    if type(node) is not dict:
        raise TypeError("a part is an object")
    if node.keys() == {"shape", "dtype"}:
        shape = node["shape"]
        is_shape = type(shape) is list and len(shape) <= 8
        if not is_shape or not all(type(n) is int and 0 <= n <= LARGEST for n in shape):
            raise ValueError("a shape is a list of numbers")
        if type(node["dtype"]) is not str or node["dtype"] not in _DTYPES:
            raise ValueError("a type of numbers")
        return [math.prod(shape)]
    ((kind, content),) = node.items()
    if kind in _CONTAINERS and type(content) is list:
        return [0, *(size for part in content for size in _sizes(part))]
    if kind == "dict" and type(content) is dict:
        return [0, *(size for part in content.values() for size in _sizes(part))]
    if kind == "value" and _is_scalar(content):
        return [0]
    raise ValueError(f"unknown part {kind!r}")


def _is_scalar(value: Any) -> bool:
    if type(value) is float:
        return math.isfinite(value)
    if type(value) is str:
        return len(value) <= _LONGEST_TEXT
    return value is None or type(value) is bool or (type(value) is int and abs(value) < 2**63)


def rebuild(specimen: Mapping[str, Any], model: nn.Module) -> Arguments:
    """Return arguments of the described shapes on the model's device.

    Real numbers are drawn from a fixed seed in the model's own type, whole ones are zero.

    >>> specimen = describe(((torch.zeros(1, 3, 8, 8), [1]), {}))
    >>> (x, numbers), _ = rebuild(specimen, nn.Conv2d(3, 3, 1))
    >>> x.shape, numbers
    (torch.Size([1, 3, 8, 8]), [1])
    """
    weights = [p for p in model.parameters() if p.is_floating_point()]
    like = weights[0] if weights else torch.empty(0)
    generator = torch.Generator().manual_seed(0)
    args = _rebuild(specimen["args"], like, generator)
    return tuple(args), _rebuild(specimen["kwargs"], like, generator)


def _rebuild(node: Mapping[str, Any], like: Tensor, generator: torch.Generator) -> Any:
    if "shape" in node:
        dtype = _DTYPES[node["dtype"]]
        if not dtype.is_floating_point:
            return torch.zeros(node["shape"], dtype=dtype, device=like.device)
        return torch.randn(node["shape"], generator=generator).to(like)
    ((kind, content),) = node.items()
    if kind == "value":
        return content
    if kind == "dict":
        return {name: _rebuild(part, like, generator) for name, part in content.items()}
    return _CONTAINERS[kind](_rebuild(part, like, generator) for part in content)
