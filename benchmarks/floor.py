"""The floor: what the arithmetic and the compulsory traffic of a module take on this machine."""

import functools

import torch

from benchmarks.contest import find_clock


@functools.cache
def multiply_rate(device: str, dtype: torch.dtype) -> float:
    """Return the FLOPs per second of a large matrix product."""
    side = 1024 if device == "cpu" else 8192
    a, b = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))
    return 2 * side**3 / _best(lambda: a @ b, device)


@functools.cache
def copy_rate(device: str) -> float:
    """Return the bytes per second, read and written, of a copy far larger than the caches."""
    source = torch.zeros(2**26, device=device)
    target = torch.zeros_like(source)
    return 2 * source.numel() * source.element_size() / _best(lambda: target.copy_(source), device)


def find_floor(flops: float, moved: float, *, device: str, dtype: torch.dtype) -> float:
    """Return the larger of the two times, in seconds."""
    return max(flops / multiply_rate(device, dtype), moved / copy_rate(device))


def _best(step: object, device: str) -> float:
    clock, times = find_clock(device), []
    for _ in range(10):
        start = clock()
        step()  # type: ignore[operator]
        if device != "cpu":
            torch.cuda.synchronize()
        times.append(clock() - start)
    return min(times)
