"""Kernels in C++ that PyTorch's compiler builds: what it leaves far above the floor.

Who runs ``torch.compile`` for a processor has a C++ compiler, so PyTorch is still all that is
needed. Where there is none after all (another backend), the plain form runs.
"""

import functools
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

BLOCK = 192
"""Positions that a core reads at a time: those of 16 channels fit in its innermost cache."""

_POINTERS = ["const float*"] * 2 + ["float*"] * 2
_log = logging.getLogger(__name__)


def count_blocks(positions: int) -> int:
    """Return the number of blocks of ``positions``."""
    return (positions + BLOCK - 1) // BLOCK


@torch.library.custom_op("torchplug::pool_project", mutates_args=(), device_types="cpu")
def pool_project(x: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
    """Return sums of ``x`` over blocks of positions, and its channels weighed by ``weights``.

    One pass where a mean and a product of matrices take two. No gradient.

    Args:
        x: a contiguous map ``(N, C, P)`` of float32.
        weights: ``(C, K)``, contiguous.

    Returns:
        The sums ``(N, blocks, C)``, and ``(N, K, P)``.

    >>> sums, y = pool_project(torch.ones(1, 2, 6), torch.ones(2, 3))
    >>> sums.sum(1).tolist(), y.shape
    ([[6.0, 6.0]], torch.Size([1, 3, 6]))
    """
    sums, y = _allocate(x, weights)
    run = _build()
    if run is None:
        sums.zero_()[:, 0] = x.sum(2)
        torch.matmul(weights.mT, x, out=y)
    else:
        x, weights = x.contiguous(), weights.contiguous()
        run(x, weights, sums, y, *x.shape[:2], *y.shape[1:], sums.shape[1])
    return sums, y


@pool_project.register_fake
def _allocate(x: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
    samples, channels, positions = x.shape
    sums = x.new_empty(samples, count_blocks(positions), channels)
    return sums, x.new_empty(samples, weights.shape[1], positions)


@functools.cache
def _build() -> Callable[..., Any] | None:
    """Return the kernel, or None where it cannot be built; PyTorch keeps it on disk."""
    source = Path(__file__).with_name("pool_project.cpp").read_text(encoding="utf-8")
    try:
        from torch._inductor.codecache import CppPythonBindingsCodeCache

        run: Callable[..., Any] = CppPythonBindingsCodeCache.load_pybinding(
            [*_POINTERS, *["int64_t"] * 5], source
        )
    except Exception as error:  # no compiler, or a release that builds in another way
        _log.info("the plain form runs in the place of pool_project.cpp: %s", error)
        return None
    return run
