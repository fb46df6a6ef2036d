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

_ARGUMENTS = [*["const float*"] * 2, *["float*"] * 2, *["int64_t"] * 5]
_log = logging.getLogger(__name__)


@torch.library.custom_op("torchplug::pool_project", mutates_args=(), device_types="cpu")
def pool_project(x: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
    """Return sums of ``x`` over blocks of positions, and its channels weighed by ``weights``.

    One pass where a mean and a product of matrices take two. No gradient.

    Args:
        x: a map ``(N, C, P)`` of float32, contiguous.
        weights: ``(C, K)``, contiguous.

    Returns:
        The sums ``(N, blocks, C)``, and ``(N, K, P)``.

    >>> sums, y = pool_project(torch.ones(1, 2, 6), torch.ones(2, 3))
    >>> sums.sum(1).tolist(), y.shape
    ([[6.0, 6.0]], torch.Size([1, 3, 6]))
    """
    sums, y = _allocate(x, weights)
    if not _run("pool_project", x, weights, sums, y, x.shape[2]):
        sums.zero_()[:, 0] = x.sum(2)
        torch.matmul(weights.mT, x, out=y)
    return sums, y


@torch.library.custom_op("torchplug::pool_project_last", mutates_args=(), device_types="cpu")
def pool_project_last(x: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
    """Return what ``pool_project`` does for a map whose channels lie together.

    Args:
        x: a map ``(N, P, C)`` of float32, contiguous.
        weights: ``(C, K)``, contiguous.

    Returns:
        The sums ``(N, blocks, C)``, and ``(N, P, K)``.

    >>> sums, y = pool_project_last(torch.ones(1, 6, 2), torch.ones(2, 3))
    >>> sums.sum(1).tolist(), y.shape
    ([[6.0, 6.0]], torch.Size([1, 6, 3]))
    """
    sums, y = _allocate_last(x, weights)
    if not _run("pool_project_last", x, weights, sums, y, x.shape[1]):
        sums.zero_()[:, 0] = x.sum(1)
        torch.matmul(x, weights, out=y)
    return sums, y


@pool_project.register_fake
def _allocate(x: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
    samples, channels, positions = x.shape
    sums = x.new_empty(samples, _count_blocks(positions), channels)
    return sums, x.new_empty(samples, weights.shape[1], positions)


@pool_project_last.register_fake
def _allocate_last(x: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
    samples, positions, channels = x.shape
    sums = x.new_empty(samples, _count_blocks(positions), channels)
    return sums, x.new_empty(samples, positions, weights.shape[1])


def _count_blocks(positions: int) -> int:
    return (positions + BLOCK - 1) // BLOCK


def _run(name: str, x: Tensor, weights: Tensor, sums: Tensor, y: Tensor, positions: int) -> bool:
    """Fill ``sums`` and ``y`` by the kernel of this name, and tell whether there is one."""
    kernel = _build(name)
    if kernel is None:
        return False
    samples, blocks, channels = sums.shape
    x, weights = x.contiguous(), weights.contiguous()
    kernel(x, weights, sums, y, samples, channels, weights.shape[1], positions, blocks)
    return True


@functools.cache
def _build(name: str) -> Callable[..., Any] | None:
    """Return a kernel, or None where it cannot be built; PyTorch keeps it on disk."""
    source = Path(__file__).with_name(f"{name}.cpp").read_text(encoding="utf-8")
    try:
        from torch._inductor.codecache import CppPythonBindingsCodeCache

        kernel: Callable[..., Any] = CppPythonBindingsCodeCache.load_pybinding(_ARGUMENTS, source)
    except Exception as error:  # no compiler, or a release that builds in another way
        _log.info("the plain form runs in the place of %s.cpp: %s", name, error)
        return None
    return kernel
