"""Time several ways to compute one thing, interleaved in one run."""

import random
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch

Step = Callable[[], object]


@dataclass(frozen=True)
class Timing:
    """Seconds of one contestant."""

    median: float
    best: float
    spread: float
    """Interquartile range over the median: the noise."""


def run_contest(
    steps: Mapping[str, Step],
    *,
    device: str,
    seconds: float,
    warmups: int = 1,
    beside: Mapping[str, Step] | None = None,
) -> dict[str, Timing]:
    """Run every step once a round, in a new order each time, until ``seconds`` are over.

    What else the machine does falls on all of them, and so do the caches that another left; but
    what is measured ``beside`` them, once a round, leaves its caches to nobody.
    """
    order, beside = random.Random(0), beside or {}
    every = {**beside, **steps}
    inner = {name: _inner_loops(step, device, warmups) for name, step in every.items()}
    seen: dict[str, list[float]] = {name: [] for name in every}
    end = time.perf_counter() + seconds
    while time.perf_counter() < end or len(next(iter(seen.values()))) < 3:
        shuffled = order.sample(list(steps), len(steps))
        for name in (*beside, *shuffled):
            if beside and name == shuffled[0]:
                steps[name]()
            seen[name].append(_time(every[name], inner[name], device))
    return {name: _summarize(values) for name, values in seen.items()}


def _inner_loops(step: Step, device: str, warmups: int) -> int:
    for _ in range(warmups):
        step()
    once = max(_time(step, 1, device), 1e-7)
    return max(1, min(1000, int(2e-3 / once)))


def find_clock(device: str) -> Callable[[], float]:
    """Return the clock: where one thread computes, its own.

    It stands while others have the core; on a quiet machine both clocks tell the same.
    """
    alone = device == "cpu" and torch.get_num_threads() == 1
    return time.process_time if alone else time.perf_counter


def _time(step: Step, loops: int, device: str) -> float:
    clock = find_clock(device)
    _wait(device)
    start = clock()
    for _ in range(loops):
        step()
    _wait(device)
    return (clock() - start) / loops


def _wait(device: str) -> None:
    if device.startswith("cuda"):
        torch.cuda.synchronize()


def _summarize(values: list[float]) -> Timing:
    low, median, high = statistics.quantiles(values, n=4)
    return Timing(median=median, best=min(values), spread=(high - low) / median)
