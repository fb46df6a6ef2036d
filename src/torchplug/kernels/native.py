"""Kernels in C++ that PyTorch's compiler builds: what it leaves far above the floor.

Who runs ``torch.compile`` for a processor has a C++ compiler, so PyTorch is still all that is
needed. Where there is none after all (another backend), the plain form runs.
"""

import functools
import logging
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

BLOCK = 192
"""Positions that a core reads at a time: those of 16 channels fit in its innermost cache."""

_ARGUMENTS = [*["const float*"] * 2, *["float*"] * 2, *["int64_t"] * 5]
_log = logging.getLogger(__name__)


@torch.library.custom_op("torchplug::pool_project", mutates_args=(), device_types="cpu")
def pool_project(x: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
    """Return the mean of ``x`` over its positions, and its channels weighed by ``weights``.

    One pass where a mean and a product of matrices take two. No gradient.

    Args:
        x: a map ``(N, C, P)`` of float32, contiguous.
        weights: ``(C, K)``, contiguous.

    Returns:
        The mean ``(N, C)``, and ``(N, K, P)``.

    >>> mean, y = pool_project(torch.ones(1, 2, 6), torch.ones(2, 3))
    >>> mean.tolist(), y.shape
    ([[1.0, 1.0]], torch.Size([1, 3, 6]))
    """
    kernel, y = _build("pool_project"), _describe(x, weights)[1]
    if kernel is None:
        return x.mean(2), torch.matmul(weights.mT, x, out=y)
    return _run(kernel, x, weights, y, x.shape[2]), y


@torch.library.custom_op("torchplug::pool_project_last", mutates_args=(), device_types="cpu")
def pool_project_last(x: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
    """Return what ``pool_project`` does for a map whose channels lie together.

    Args:
        x: a map ``(N, P, C)`` of float32, contiguous.
        weights: ``(C, K)``, contiguous.

    Returns:
        The mean ``(N, C)``, and ``(N, P, K)``.

    >>> mean, y = pool_project_last(torch.ones(1, 6, 2), torch.ones(2, 3))
    >>> mean.tolist(), y.shape
    ([[1.0, 1.0]], torch.Size([1, 6, 3]))
    """
    kernel, y = _build("pool_project_last"), _describe_last(x, weights)[1]
    if kernel is None:
        return x.mean(1), torch.matmul(x, weights, out=y)
    return _run(kernel, x, weights, y, x.shape[1]), y


@pool_project.register_fake
def _describe(x: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
    samples, channels, positions = x.shape
    return x.new_empty(samples, channels), x.new_empty(samples, weights.shape[1], positions)


@pool_project_last.register_fake
def _describe_last(x: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
    samples, positions, channels = x.shape
    return x.new_empty(samples, channels), x.new_empty(samples, positions, weights.shape[1])


def _run(
    kernel: Callable[..., object], x: Tensor, weights: Tensor, y: Tensor, positions: int
) -> Tensor:
    """Fill ``y`` and return the mean; each block of positions leaves a sum of its own."""
    channels, rows = weights.shape
    blocks = (positions + BLOCK - 1) // BLOCK
    sums = x.new_empty(len(x), blocks, channels)
    x, weights = x.contiguous(), weights.contiguous()
    kernel(x, weights, sums, y, len(x), channels, rows, positions, blocks)
    return sums.sum(1) / positions


@functools.cache
def _build(name: str) -> Callable[..., object] | None:
    """Return a kernel, or None where it cannot be built; PyTorch keeps it on disk."""
    source = Path(__file__).with_name(f"{name}.cpp").read_text(encoding="utf-8")
    try:
        from torch._inductor.codecache import CppPythonBindingsCodeCache

        kernel: Callable[..., object] = CppPythonBindingsCodeCache.load_pybinding(
            _ARGUMENTS, source
        )
    except Exception as error:  # no compiler, or a release that builds in another way
        _log.info("the plain form runs in the place of %s.cpp: %s", name, error)
        return None
    return kernel
