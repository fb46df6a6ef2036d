"""Which variants were stopped early, as a function of the records alone."""

from collections.abc import Mapping
from dataclasses import dataclass

from torchplug.comparison.futility import is_futile
from torchplug.comparison.result import PERCENTAGES
from torchplug.comparison.spec import BASELINE, Comparison
from torchplug.comparison.statistics import LEAST_MARGIN, choose_margin


@dataclass(frozen=True)
class Known:
    """What a driver keeps in mind of a record."""

    status: str
    value: float | None


def find_futile_stop(
    comparison: Comparison, variant: str, known: Mapping[tuple[str, int], Known]
) -> tuple[int, ...] | None:
    """Return the seeds after which a variant was stopped for futility, or ``None``.

    Seeds are looked at in their order, up to the first that is not there yet: in which order trials
    ended, and who ran them, makes no difference.
    """
    base: list[float] = []
    gains: list[float] = []
    sign = 1.0 if comparison.goal == "max" else -1.0
    for index, seed in enumerate(comparison.seeds):
        ours, theirs = known.get((variant, seed)), known.get((BASELINE, seed))
        if ours is None or theirs is None:
            return None
        if ours.value is None or theirs.value is None:
            continue  # a seed that one of them did not finish is no pair
        base.append(theirs.value)
        gains.append(sign * (ours.value - theirs.value))
        if len(gains) > 1 and is_futile(gains, _choose_margin(comparison, base)):
            return comparison.seeds[: index + 1]
    return None


def _choose_margin(comparison: Comparison, base: list[float]) -> float:
    if comparison.margin is not None:
        return comparison.margin
    in_points = not comparison.command and comparison.metric in {"", *PERCENTAGES}
    return choose_margin(base, LEAST_MARGIN if in_points else 0.0)
