"""Paired statistics of variants against a baseline, by scipy and statsmodels.

A seed is a block: it fixes initial weights, order and augmentation for all variants, so what is
analyzed are the differences within seeds. The mean paired difference has a t interval; the exact
sign-flip permutation test is its check; Holm's method corrects over the family of variants. A
bootstrap over seeds never decides: with three to five seeds its intervals are far too short.

Both libraries are imported where they are used: they take two seconds, and trials need neither.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from torchplug.comparison.planning import ALPHA, minimum_detectable, seeds_for

LEAST_MARGIN = 0.2
"""Percentage points: smaller differences are taken to be of no practical interest."""

_BOOTSTRAP_CHUNK = 100
_EXACT_SEEDS = 16
"""Up to this many seeds all sign flips are enumerated, above it 10,000 to 100,000 are drawn."""

_MOST_FLIPS, _FEWEST_FLIPS = 100_000, 10_000
_SIGNS, _SIGNS_AT_ONCE = 10_000_000, 1_000_000
"""Signs drawn for one variant: with a thousand seeds fewer flips do."""

Array = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class Interval:
    """A two-sided interval, in the unit of the metric."""

    low: float
    high: float


@dataclass(frozen=True, kw_only=True)
class Difference:
    """A variant against the baseline, over the same seeds, in the unit of the metric.

    Differences are gains: above zero the variant is the better one, whether the metric is to be
    large or small.
    """

    mean: float
    """Over the seeds."""

    interval: Interval
    """95 % paired t interval, not corrected."""

    corrected_interval: Interval
    """At the level that Bonferroni's split of 5 % gives each variant: wider, for the verdict."""

    p: float
    """Paired t test."""

    p_flip: float
    """Exact sign-flip permutation test."""

    p_corrected: float
    """Holm over the variants, of the larger of both p values."""

    p_equivalent: float
    """Two one-sided tests against the margin, Holm over the variants."""

    wins: float
    """Share of seeds in which the variant is ahead, ties counted half."""

    detectable: float
    """The difference that these seeds would have found with 80 % probability."""

    seeds_for_margin: int | None
    """Seeds that would find a difference of the margin with 80 % probability."""

    generality: Interval | None
    """95 % bootstrap interval over seeds and test images: the claim beyond this test set.
    ``None`` where the metric is not a mean over images."""


def mean_interval(values: Sequence[float], level: float = 1 - ALPHA) -> Interval:
    """Return the t interval of a mean.

    >>> interval = mean_interval([98.0, 99.0, 100.0])
    >>> round(interval.low, 2), round(interval.high, 2)
    (96.52, 101.48)
    """
    from scipy import stats

    array = np.asarray(values, dtype=float)
    error = array.std(ddof=1) / math.sqrt(len(array))
    reach = float(stats.t.ppf(0.5 + level / 2, len(array) - 1) * error)
    center = float(array.mean())
    return Interval(low=center - reach, high=center + reach)


def choose_margin(baseline: Sequence[float], least: float = LEAST_MARGIN) -> float:
    """Return the default margin: ``least``, or one standard error of the baseline if larger."""
    array = np.asarray(baseline, dtype=float)
    return max(least, float(array.std(ddof=1) / math.sqrt(len(array))))


def compare_variants(
    gains: Sequence[Sequence[float]],
    margin: float,
    images: Iterable[Array | None] | None = None,
) -> list[Difference]:
    """Judge the paired gains of each variant of one family, seed by seed.

    Args:
        gains: for each variant, its gain over the baseline in every seed.
        margin: the smallest difference worth having.
        images: for each variant, the gain in every seed and test image, ``(seeds, images)``, whose
            mean is the gain; ``None`` where there is no such thing. Read one at a time: each may
            have millions of numbers.
    """
    differences = [np.asarray(gain, dtype=float) for gain in gains]
    family = len(differences)
    flips = [flip_test(d) for d in differences]
    tests = [t_test(d) for d in differences]
    corrected = _holm([max(pair) for pair in zip(tests, flips, strict=True)])
    equivalent = _holm([equivalence_test(d, margin) for d in differences])
    wide = [None if each is None else bootstrap_both(each) for each in images or [None] * family]
    return [
        Difference(
            mean=float(d.mean()),
            interval=mean_interval(d.tolist()),
            corrected_interval=mean_interval(d.tolist(), 1 - ALPHA / family),
            p=tests[i],
            p_flip=flips[i],
            p_corrected=corrected[i],
            p_equivalent=equivalent[i],
            wins=float((d > 0).mean() + (d == 0).mean() / 2),
            detectable=detectable_difference(d, family),
            seeds_for_margin=seeds_needed(d, margin, family),
            generality=wide[i],
        )
        for i, d in enumerate(differences)
    ]


def t_test(differences: Array) -> float:
    """Return p of the paired t test; equal differences in all seeds are certain."""
    from scipy import stats

    if _is_constant(differences):
        return 1.0 if abs(differences[0]) < 1e-12 else 0.0
    return float(stats.ttest_1samp(differences, 0.0).pvalue)


def flip_test(differences: Array) -> float:
    """Return p of the sign-flip permutation test: exact up to 16 seeds.

    With n seeds it cannot be below 2 / 2**n, which is 0.0625 for five.

    >>> flip_test(np.array([0.3, 0.2, 0.5, 0.1, 0.4]))
    0.0625
    """
    count = len(differences)
    if count > _EXACT_SEEDS:
        return _draw_flips(differences)
    from scipy import stats

    result = stats.permutation_test(
        (differences, np.zeros(count)),
        lambda x, y, axis: np.mean(x - y, axis=axis),
        permutation_type="samples",
        vectorized=True,
        n_resamples=2**count,
    )
    return float(result.pvalue)


def _draw_flips(differences: Array) -> float:
    """Return the same p from drawn signs, a part at a time: all at once would need gigabytes."""
    count, total = len(differences), float(differences.sum())
    draws = min(max(_SIGNS // count, _FEWEST_FLIPS), _MOST_FLIPS)
    least = abs(total) * (1 - 1e-9)
    part = max(_SIGNS_AT_ONCE // count, 1)
    hits = 0
    for start in range(0, draws, part):
        kept = _draw_signs(min(part, draws - start), count, start)
        hits += int((np.abs(2 * (kept @ differences) - total) >= least).sum())
    return (hits + 1) / (draws + 1)  # what was observed is one of the flips


@lru_cache(maxsize=16)
def _draw_signs(draws: int, count: int, start: int) -> NDArray[np.uint8]:
    """Return which signs are kept: the same for all variants, which saves most of it."""
    return np.random.default_rng((0, start)).integers(0, 2, (draws, count), dtype=np.uint8)


def equivalence_test(differences: Array, margin: float) -> float:
    """Return p of the two one-sided tests that the difference lies within the margin."""
    if _is_constant(differences):
        # without spread there is no t test: what is left is that every seed lies within
        return 0.5 ** len(differences) if abs(differences[0]) < margin else 1.0
    from statsmodels.stats.weightstats import ttost_paired

    p, _, _ = ttost_paired(differences, np.zeros(len(differences)), -margin, margin)
    return float(p)


def _is_constant(differences: Array) -> bool:
    return bool(np.ptp(differences) < 1e-12)


def _holm(values: Sequence[float]) -> list[float]:
    """Correct p values by Holm, 1979: the smallest times their number, the next by one less.

    statsmodels does the same and collects garbage each time, which takes seconds beside torch.
    """
    p = np.asarray(values, dtype=float)
    order = np.argsort(p)
    steps = np.maximum.accumulate(p[order] * np.arange(len(p), 0, -1)).clip(max=1.0)
    corrected = np.empty_like(p)
    corrected[order] = steps
    return [float(each) for each in corrected]


def detectable_difference(differences: Array, family: int) -> float:
    """Return the difference found with 80 % probability, at the corrected level."""
    return minimum_detectable(len(differences), family, float(np.std(differences, ddof=1)))


def seeds_needed(differences: Array, margin: float, family: int) -> int | None:
    """Return the number of seeds that would find a difference of ``margin``."""
    return seeds_for(margin, family, float(np.std(differences, ddof=1)))


def bootstrap_both(gains: Array, resamples: int = 2000) -> Interval:
    """Return the 95 % interval of the mean gain when seeds and test images are drawn anew.

    The split is fixed, so the t interval speaks of these test images; this one speaks of others
    of the same kind too.

    Args:
        gains: of every seed and image, ``(seeds, images)``.
        resamples: how often both are drawn.
    """
    seeds, images = gains.shape
    # images without any difference only dilute: all of them are drawn as one
    told = gains[:, np.any(gains != 0, axis=0)].astype(np.float32)
    means = []
    for part in range(0, resamples, _BOOTSTRAP_CHUNK):  # all at once would need gigabytes
        rows = _draw_seeds(seeds, part)
        columns = _draw_images(images, told.shape[1], part)
        totals = ((rows @ told) * columns).sum(1, dtype=np.float64)
        means.append(totals / (seeds * images))
    low, high = np.quantile(means, [0.025, 0.975])
    return Interval(low=float(low), high=float(high))


@lru_cache(maxsize=64)
def _draw_seeds(seeds: int, part: int) -> NDArray[np.float32]:
    """Return how often each seed is drawn: the same for all variants, which saves most of it."""
    rng = np.random.default_rng((1, part))
    drawn = rng.multinomial(seeds, np.full(seeds, 1 / seeds), size=_BOOTSTRAP_CHUNK)
    return drawn.astype(np.float32)


@lru_cache(maxsize=64)
def _draw_images(images: int, told: int, part: int) -> NDArray[np.float32]:
    """Return how often each of the ``told`` images is drawn, where all others count as one."""
    shares = np.full(told + 1, 1 / images)
    shares[-1] = max(1 - told / images, 0.0)
    rng = np.random.default_rng((2, part))
    drawn = rng.multinomial(images, shares, size=_BOOTSTRAP_CHUNK)
    return drawn[:, :-1].astype(np.float32)
