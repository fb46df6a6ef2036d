"""What a model keeps for its backward pass."""

from typing import Any

import torch
from torch import Tensor, nn

from torchplug.analysis.preserve import preserving
from torchplug.surgery.trace import read_example


def measure_memory(model: nn.Module, example: Any) -> int:
    """Return the bytes that one forward keeps for the backward pass, weights left out.

    Every storage counts once, however many operations keep it. Custom operators count with what
    they keep. The input counts, and what is used within an operation and freed does not.

    Args:
        model: left as it was. On the ``meta`` device sizes are counted without any memory, so a
            batch of any size can be asked for: ``measure_memory(copy.deepcopy(model).to("meta"),
            (64, 3, 1024, 1024))``.
        example: the shape of a batch, a tensor, or the arguments of the forward. The model runs in
            training mode where it can: batch norm after a global pool needs two images.

    >>> measure_memory(nn.Sequential(nn.Conv2d(1, 4, 1), nn.Sigmoid()), (2, 1, 3, 5))
    600
    """
    args, kwargs = read_example(example, model)
    with preserving(model):
        try:
            return _count(model.train(), args, kwargs)
        except Exception:  # a detector trains with targets, batch norm with two images
            return _count(model.eval(), args, kwargs)


def _count(model: nn.Module, args: Any, kwargs: Any) -> int:
    weights = {_key(tensor) for tensor in (*model.parameters(), *model.buffers())}
    kept: dict[int, int] = {}
    alive: list[Any] = []  # a freed storage's place would be used again

    def keep(tensor: Tensor) -> Tensor:
        key = _key(tensor)
        if key not in weights:
            storage = tensor.untyped_storage()
            kept[key] = storage.nbytes()
            alive.append(storage)
        return tensor

    with torch.enable_grad(), torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        alive.append(model(*args, **kwargs))
    return sum(kept.values())


def _key(tensor: Tensor) -> int:
    """Return what is the same for tensors that share their memory, also on the meta device."""
    return tensor.untyped_storage()._cdata
