"""Parameters and floating-point operations."""

from typing import Any

import torch
from torch import nn

from torchplug.surgery.measure import counting_flops
from torchplug.surgery.trace import evaluating, read_example


def count_parameters(model: nn.Module) -> int:
    """Return the number of learned values, shared ones once.

    >>> count_parameters(nn.Linear(3, 2))
    8
    """
    return sum(p.numel() for p in model.parameters())


def count_flops(model: nn.Module, example: Any) -> int:
    """Return the floating-point operations of one forward, two for each multiply-add.

    Convolutions and matrix products count, as ``torch.utils.flop_counter`` defines them; norms,
    activations and pools count nothing. Papers mostly print multiply-adds: half of this.

    Args:
        model: any module; it is left as it was.
        example: the shape of a batch, a tensor, or the arguments of the forward.

    >>> count_flops(nn.Conv2d(3, 8, 1), (1, 3, 4, 4))
    768
    """
    args, kwargs = read_example(example, model)
    with evaluating(model), torch.no_grad(), counting_flops() as counter:
        model(*args, **kwargs)
    return int(counter.get_total_flops())
