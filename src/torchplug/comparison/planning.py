"""How many seeds show how large a difference: power of the paired t test, by statsmodels."""

import math
import warnings
from collections.abc import Sequence
from functools import cache
from typing import Any

import numpy as np

ALPHA = 0.05
POWER = 0.8
_ZERO = 1e-12


def minimum_detectable(seeds: int, family: int, deviation: float) -> float:
    """Return the mean paired difference that is found with 80 % probability.

    Args:
        seeds: paired seeds.
        family: variants that are compared with one baseline; the level is 5 % over them all.
        deviation: standard deviation of the paired differences.

    >>> round(minimum_detectable(10, 1, 0.35), 2)
    0.35
    """
    return _solve(nobs=seeds, alpha=ALPHA / family) * deviation


def seeds_for(effect: float, family: int, deviation: float) -> int | None:
    """Return the number of seeds that finds ``effect`` with 80 % probability.

    ``None`` where the differences have no spread to plan with.

    >>> seeds_for(0.2, 1, 0.35)
    27
    """
    if deviation < _ZERO:
        return None
    needed = _solve(effect_size=effect / deviation, alpha=ALPHA / family)
    return math.ceil(needed) if math.isfinite(needed) else None


def find_power(effects: Sequence[float], seeds: int, family: int, deviation: float) -> list[float]:
    """Return the probability with which each effect is found, for a power curve.

    >>> [round(power, 2) for power in find_power([0.0, 0.35], 10, 1, 0.35)]
    [0.05, 0.8]
    """
    if deviation < _ZERO:
        return [float(effect != 0) for effect in effects]
    solver = _make_solver()
    level = ALPHA / family
    return [float(solver.power(abs(e) / deviation, seeds, level)) for e in effects]


def _make_solver() -> Any:
    from statsmodels.stats.power import TTestPower  # takes a second, and trials do not need it

    return TTestPower()


@cache  # of a hundred variants all ask the same
def _solve(**known: float) -> float:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the solver tells of its trial values
        value = _make_solver().solve_power(power=POWER, alternative="two-sided", **known)
    return float(np.ravel(value)[0])
