"""The floor: what the arithmetic and the compulsory traffic of a module take on this machine.

Both rates are measured beside the contestants, so that what else the machine does falls on them
too.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch

from benchmarks.contest import Step, Timing


@dataclass(frozen=True)
class Reference:
    """A step that shows a rate."""

    step: Step
    amount: float
    """What the step does, in FLOPs or in bytes."""


def make_references(device: str, dtype: torch.dtype) -> dict[str, Reference]:
    """Return a large matrix product, and a copy far larger than the caches."""
    side, size = (1024, 2**25) if device == "cpu" else (8192, 2**28)
    a, b = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))
    source = torch.ones(size, device=device)
    target = torch.zeros_like(source)
    return {
        "multiply": Reference(lambda: a @ b, 2 * side**3),
        "copy": Reference(lambda: target.copy_(source), source.nbytes + target.nbytes),
    }


def find_floor(
    flops: float, moved: float, references: Mapping[str, Reference], timings: Mapping[str, Timing]
) -> float:
    """Return the larger of the two times, in seconds."""
    wanted = {"multiply": flops, "copy": moved}
    return max(
        amount / references[name].amount * timings[name].median for name, amount in wanted.items()
    )
