"""Change what a host's module receives: the way into a decoder for modules that merge maps.

A semantic embedding refines a fine map by the coarser ones. All of them exist where a decoder
begins, and not before: the encoder makes the coarse map after the fine one. So the plug sits at the
entrance of the module that receives them together, such as a decoder or one of its fusion blocks.
"""

from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from torchplug.surgery.trace import Arguments, evaluating, tensors_in

_CONTAINERS = (list, tuple, dict, OrderedDict)


@dataclass(frozen=True)
class Level:
    """A map that a module receives, and the coarser maps beside it, by their order."""

    low: int
    higher: tuple[int, ...]


class Intake(nn.Module):
    """Refine the maps that a host's module receives, before it runs.

    ``x_l + gain_l * (module_l(x_l, coarser maps …) - x_l)`` with a learned ``gain`` that starts at
    zero, or ``module_l(…)`` itself where ``gated`` is false.

    Args:
        levels: which maps to refine, by the order of the tensors in the arguments.
        modules: one for each level.
        gated: whether the gain is there.
    """

    def __init__(self, levels: list[Level], modules: list[nn.Module], *, gated: bool) -> None:
        super().__init__()
        self.levels = tuple(levels)
        self.embeddings = nn.ModuleList(modules)
        self.gain = nn.Parameter(torch.zeros(len(levels))) if gated else None

    def forward(self, args: Any, kwargs: Any) -> tuple[Any, Any]:
        """Return the arguments with the refined maps in the places of the old ones."""
        tensors = flatten((args, kwargs))
        refined = list(tensors)
        for index, (level, module) in enumerate(zip(self.levels, self.embeddings, strict=True)):
            x = tensors[level.low]
            y = module(x, *(tensors[higher] for higher in level.higher))
            if self.gain is not None:
                y = x + self.gain[index].to(x.dtype) * (y.to(x.dtype) - x)
            refined[level.low] = y
        args, kwargs = _rebuild((args, kwargs), iter(refined))
        return args, kwargs


def flatten(tree: Any) -> list[Tensor]:
    """Return the tensors in plain lists, tuples and dicts, in order."""
    if isinstance(tree, Tensor):
        return [tree]
    if type(tree) not in _CONTAINERS:
        return []
    branches = tree.values() if isinstance(tree, dict) else tree
    return [tensor for branch in branches for tensor in flatten(branch)]


def _rebuild(tree: Any, tensors: Iterator[Tensor]) -> Any:
    """The same nest of containers with other tensors."""
    if isinstance(tree, Tensor):
        return next(tensors)
    if type(tree) not in _CONTAINERS:
        return tree
    if isinstance(tree, dict):
        return type(tree)([(key, _rebuild(branch, tensors)) for key, branch in tree.items()])
    return type(tree)([_rebuild(branch, tensors) for branch in tree])


@dataclass(frozen=True)
class Entrance:
    """A module that receives maps of several sizes."""

    path: str
    shapes: tuple[tuple[int, ...], ...]
    """Of every tensor in its arguments."""

    levels: tuple[Level, ...]
    runs: int
    device: torch.device
    dtype: torch.dtype


def find_entrances(model: nn.Module, arguments: Arguments) -> dict[str, Entrance]:
    """Return every module that receives maps of several sizes, by path, in order of execution.

    The image itself is no such map. The model runs once with hooks, which are taken off again.
    """
    images = tensors_in(arguments)
    found: dict[str, Entrance] = {}
    runs: dict[str, int] = {}

    def watch(path: str) -> Any:
        def look(_: nn.Module, args: Any, kwargs: Any) -> None:
            runs[path] = runs.get(path, 0) + 1
            tensors = flatten((args, kwargs))
            levels = _find_levels(tensors, images)
            if levels and path not in found:
                low = tensors[levels[0].low]
                shapes = tuple(tuple(tensor.shape) for tensor in tensors)
                found[path] = Entrance(path, shapes, levels, 0, low.device, low.dtype)

        return look

    named = [(path, module) for path, module in model.named_modules() if path]
    handles = [m.register_forward_pre_hook(watch(path), with_kwargs=True) for path, m in named]
    try:
        with evaluating(model), torch.no_grad():
            model(*arguments[0], **arguments[1])
    finally:
        for handle in handles:
            handle.remove()
    return {path: _with_runs(entrance, runs[path]) for path, entrance in found.items()}


def _with_runs(entrance: Entrance, runs: int) -> Entrance:
    shapes, levels = entrance.shapes, entrance.levels
    return Entrance(entrance.path, shapes, levels, runs, entrance.device, entrance.dtype)


def _find_levels(tensors: list[Tensor], images: list[Tensor]) -> tuple[Level, ...]:
    maps = [
        (index, tensor.shape[2] * tensor.shape[3])
        for index, tensor in enumerate(tensors)
        if tensor.ndim == 4
        and tensor.is_floating_point()
        and not any(tensor is image for image in images)
    ]
    levels = []
    for low, size in maps:
        coarser = sorted((-other, index) for index, other in maps if other < size)
        if coarser:
            levels.append(Level(low, tuple(index for _, index in coarser)))
    return tuple(levels)


def drop_unused(model: nn.Module, arguments: Arguments, entrance: Entrance) -> tuple[Level, ...]:
    """Return the levels of an entrance whose fine map reaches the model's output.

    A decoder may receive maps that it does not read. Its module would never learn.
    """
    leaves: list[Tensor] = []

    def open_up(_: nn.Module, args: Any, kwargs: Any) -> Any:
        tensors = flatten((args, kwargs))
        leaves[:] = [t.detach().requires_grad_(t.is_floating_point()) for t in tensors]
        return _rebuild((args, kwargs), iter([leaf.clone() for leaf in leaves]))

    module = model.get_submodule(entrance.path)
    handle = module.register_forward_pre_hook(open_up, with_kwargs=True)
    try:
        with evaluating(model), torch.enable_grad():
            outputs = tensors_in(model(*arguments[0], **arguments[1]))
            total = sum(output.float().sum() for output in outputs if output.requires_grad)
        if not isinstance(total, Tensor):
            return entrance.levels  # nothing of the output can be differentiated: keep all
        fine = [leaves[level.low] for level in entrance.levels]
        grads = torch.autograd.grad(total, fine, allow_unused=True)
    finally:
        handle.remove()
    pairs = zip(entrance.levels, grads, strict=True)
    return tuple(level for level, grad in pairs if grad is not None)
