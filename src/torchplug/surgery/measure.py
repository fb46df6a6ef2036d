"""Measure what plugging changed: the output and the cost."""

import contextlib
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from torchplug.surgery.trace import tensors_in

if TYPE_CHECKING:
    from torch.utils.flop_counter import FlopCounterMode


@dataclass(frozen=True)
class Change:
    """How far an output is from the one before."""

    absolute: float
    """Largest absolute difference of an element."""

    relative: float
    """Largest absolute difference over the largest absolute value, of the worst tensor."""


def measure_change(output: Any, expected: Any) -> Change:
    """Compare two outputs tensor by tensor; infinite where their forms differ.

    >>> measure_change((torch.tensor([1.0, 4.5]),), (torch.tensor([1.0, 4.0]),))
    Change(absolute=0.5, relative=0.125)
    """
    pairs = list(zip(tensors_in(output), tensors_in(expected), strict=False))
    if len(tensors_in(output)) != len(tensors_in(expected)):
        return Change(float("inf"), float("inf"))
    absolute = relative = 0.0
    for got, wanted in pairs:
        if got.shape != wanted.shape:
            return Change(float("inf"), float("inf"))
        if not torch.allclose(got, wanted, rtol=0, atol=0, equal_nan=True):
            worst = float((got.double() - wanted.double()).abs().max())
            size = float(wanted.double().abs().max())
            absolute = max(absolute, worst)
            relative = max(relative, worst / size if size > 0 else float("inf"))
    return Change(absolute, relative)


@contextlib.contextmanager
def counting_flops() -> Iterator["FlopCounterMode"]:
    """Count the floating-point operations of what runs inside, two for each multiply-add.

    Convolutions and matrix products count, as ``torch.utils.flop_counter`` defines them.

    >>> with counting_flops() as counter:
    ...     _ = torch.ones(2, 3) @ torch.ones(3, 4)
    >>> counter.get_total_flops()
    48
    """
    # it brings packages along that importing torchplug need not
    from torch.utils.flop_counter import FlopCounterMode, flop_registry

    attention = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
    missing = {} if attention in flop_registry else {attention: _count_attention}  # PyTorch 2.9
    fast_path = torch.backends.mha.get_fastpath_enabled()
    # the fused attention of eval mode is one operator that the counter does not know
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with FlopCounterMode(display=False, custom_mapping=missing) as counter:
            yield counter
    finally:
        torch.backends.mha.set_fastpath_enabled(fast_path)


def _count_attention(
    query: torch.Size, key: torch.Size, value: torch.Size, *_: Any, **_more: Any
) -> int:
    """Return the FLOPs of the scores of all pairs and of the sums that they weigh."""
    return 2 * math.prod(query[:-1]) * key[-2] * (query[-1] + value[-1])
