"""How long models take, compared fairly: in turn, on one thread, by paired ratios.

What is timed one after the other differs by what else the machine did meanwhile. Here every round
runs all models, forwards and backwards in turn, and a ratio is taken within a round.
"""

import math
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from statistics import median
from typing import Any

import torch
from torch import nn

from torchplug.analysis.preserve import one_thread, preserving, step_back
from torchplug.errors import UsageError, explain
from torchplug.surgery.trace import read_example

FEWEST_REPEATS = 5


@dataclass(frozen=True)
class Latency:
    """The time of one call, and its ratio to the first model's."""

    milliseconds: float
    """Median over the rounds."""

    ratio: float
    """Median over the rounds of this model's time over the first one's in the same round."""

    low: float
    """First quartile of these ratios."""

    high: float
    """Third quartile of these ratios."""


def measure_latency(
    models: Mapping[str, nn.Module],
    example: Any,
    *,
    repeats: int = 11,
    seconds: float = 0.02,
    backward: bool = False,
) -> dict[str, Latency]:
    """Time models against the first of them.

    Args:
        models: by name; each is left as it was: modes, gradients, buffers, random state.
        example: the shape of a batch, a tensor, or the arguments of the forward, for all models.
        repeats: rounds, at least 5; each runs all models.
        seconds: least time of one model in one round; a faster one is called several times.
        backward: time a step of training (forward in training mode, backward) and not a forward in
            evaluation mode without gradients.

    Returns:
        The latency of each model for the whole batch, in milliseconds, in the order of ``models``.

    Raises:
        UsageError: if there is no model, or there are too few rounds.

    >>> found = measure_latency({"a": nn.Linear(8, 8), "b": nn.Linear(8, 8)}, (1, 8), seconds=0.0)
    >>> found["a"].ratio, list(found)
    (1.0, ['a', 'b'])
    """
    if not models:
        raise UsageError(explain("a measurement needs a model", "none", "pass one or more"))
    if repeats < FEWEST_REPEATS:
        rule = f"a median of paired ratios needs {FEWEST_REPEATS} rounds"
        raise UsageError(explain(rule, f"repeats={repeats}", f"pass {FEWEST_REPEATS} or more"))
    with ExitStack() as stack:
        stack.enter_context(one_thread())
        timers = {}
        for name, model in models.items():
            stack.enter_context(preserving(model))
            timers[name] = _make_timer(model, example, backward, seconds)
        times: dict[str, list[float]] = {name: [] for name in timers}
        for turn in range(repeats):
            names = list(timers) if turn % 2 == 0 else list(timers)[::-1]
            for name in names:
                times[name].append(timers[name]())
    reference = next(iter(times.values()))
    return {name: _summarize(own, reference) for name, own in times.items()}


def _make_timer(
    model: nn.Module, example: Any, backward: bool, seconds: float
) -> Callable[[], float]:
    """Return a function that times one call in seconds; the first calls are not counted."""
    args, kwargs = read_example(example, model)
    device = next((p.device for p in model.parameters()), torch.device("cpu"))
    model.train(backward)

    def call() -> None:
        with torch.set_grad_enabled(backward):
            output = model(*args, **kwargs)
            if backward:
                step_back(output)

    def time_calls(count: int) -> float:
        _wait(device)
        start = time.perf_counter()
        for _ in range(count):
            call()
        _wait(device)
        return (time.perf_counter() - start) / count

    time_calls(1)
    count = max(1, math.ceil(seconds / max(time_calls(1), 1e-9)))
    return lambda: time_calls(count)


def _wait(device: torch.device) -> None:
    """Let a device finish what it was asked for."""
    if device.type not in {"cpu", "meta"}:
        torch.accelerator.synchronize(device)


def _summarize(own: list[float], reference: list[float]) -> Latency:
    ratios = sorted(mine / theirs for mine, theirs in zip(own, reference, strict=True))
    low, high = (_quantile(ratios, share) for share in (0.25, 0.75))
    return Latency(1000 * median(own), median(ratios), low, high)


def _quantile(values: list[float], share: float) -> float:
    """Interpolate linearly between the sorted values."""
    place = share * (len(values) - 1)
    below = math.floor(place)
    above = min(below + 1, len(values) - 1)
    return values[below] + (place - below) * (values[above] - values[below])
