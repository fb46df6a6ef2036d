"""What the sections and figures of a report look at: a run, its words, and its series."""

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from torchplug.comparison import Comparison, ComparisonResult, Run
from torchplug.comparison.result import Row
from torchplug.comparison.statistics import Interval, mean_interval
from torchplug.comparison.store import read_json
from torchplug.reporting.language import Wording

Array = NDArray[np.float64]

FINISHED = "finished"
MOST_SERIES = 8
"""Lines in a figure that eyes can tell apart; the table has them all."""


def clean(text: str) -> str:
    r"""Return a text without characters that move the cursor, turn the direction, or vanish.

    >>> clean("se\x1b[31m\u202e")
    'se�[31m�'
    """
    return "".join(character if character.isprintable() else "�" for character in text)


@dataclass(frozen=True)
class Effect:
    """A paired difference to the baseline in one metric."""

    mean: float
    interval: Interval


@dataclass(frozen=True)
class View:
    """A run as the report sees it."""

    run: Run
    say: Wording

    @property
    def result(self) -> ComparisonResult:
        """The rows and what was decided."""
        return self.run.result

    @property
    def comparison(self) -> Comparison:
        """The specification."""
        return self.run.comparison

    @property
    def baseline(self) -> Row:
        """The row that all others are compared with."""
        return self.result.rows[0]

    @property
    def variants(self) -> tuple[Row, ...]:
        """The rows that the comparison is about."""
        return self.result.variants

    @property
    def controls(self) -> tuple[Row, ...]:
        """The rows that say what a difference means."""
        return self.result.controls

    @cached_property
    def shown(self) -> tuple[Row, ...]:
        """The baseline, and as many variants as a figure can hold: those surest to differ."""
        whole = [row for row in self.variants if row.mean is not None]
        surest = sorted(whole, key=lambda row: row.difference.p if row.difference else 2.0)
        chosen = {row.variant for row in surest[: MOST_SERIES - 1]}
        return (self.baseline, *[row for row in whole if row.variant in chosen])

    @property
    def hides_some(self) -> bool:
        """Whether figures show fewer variants than there are."""
        return len(self.shown) < len(self.variants) + 1

    @property
    def unit(self) -> str:
        """What differences are counted in, in the language of the report."""
        return self.say("unit.points") if self.result.unit == "points" else self.result.unit

    def amount(self, number: str) -> str:
        """Return a number with its unit, if there is one."""
        return self.say("unit.amount", amount=number, unit=self.unit) if self.unit else number

    def with_unit(self, label: str) -> str:
        """Return the label of an axis with its unit, if there is one."""
        return self.say("unit.of", label=label, unit=self.unit) if self.unit else label

    @property
    def limits(self) -> tuple[float, float] | None:
        """The least and the most that a metric can be, where that is known."""
        return (0.0, 100.0) if self.result.unit else None

    @cached_property
    def digits(self) -> int:
        """How many digits differences need: points have two, small units more."""
        means = [abs(row.mean) for row in self.result.rows if row.mean is not None]
        return 2 if self.result.unit or max(means, default=1.0) >= 100 else 4

    @cached_property
    def metrics(self) -> tuple[str, ...]:
        """The metric that decides, and then the others."""
        others = [name for name in self.baseline.metrics if name != self.result.metric]
        return (self.result.metric, *others)

    def metric_name(self, metric: str) -> str:
        """Return a metric as readers know it."""
        return self.say.word("metric", metric)

    def axis_name(self, metric: str) -> str:
        """Return a metric with its unit, for an axis."""
        name = self.metric_name(metric)
        return self.say("unit.of", label=name, unit="%") if self.unit else name

    @cached_property
    def _records(self) -> Mapping[str, Mapping[int, Mapping[str, Any]]]:
        by_variant: dict[str, dict[int, Mapping[str, Any]]] = defaultdict(dict)
        for record in self.run.records:
            by_variant[record["variant"]][record["seed"]] = record
        return by_variant

    def record_of(self, variant: str, seed: int) -> Mapping[str, Any] | None:
        """Return the record of one trial, whether it counts or not."""
        return self._records.get(variant, {}).get(seed)

    def records_of(self, variant: str) -> dict[int, Mapping[str, Any]]:
        """Return the records that count, by seed, in the order of the seeds."""
        found = self._records.get(variant, {})
        kept = {seed: found[seed] for seed in self.result.seeds if seed in found}
        return {seed: record for seed, record in kept.items() if record["status"] == FINISHED}

    def values_of(self, row: Row, metric: str) -> dict[int, float]:
        """Return one value a seed; none for an arm that failed."""
        if row.mean is None:
            return {}
        records = self.records_of(row.variant)
        if metric == self.result.metric:
            return dict(zip(records, row.values, strict=True))
        found = {
            seed: (record.get("metrics") or {}).get(metric) for seed, record in records.items()
        }
        return {seed: float(value) for seed, value in found.items() if value is not None}

    def mean_of(self, row: Row, metric: str) -> float | None:
        """Return the mean over the seeds."""
        return row.mean if metric == self.result.metric else row.metrics.get(metric)

    def interval_of(self, row: Row, metric: str) -> Interval | None:
        """Return the 95 % interval of the mean."""
        if metric == self.result.metric:
            return row.interval
        values = list(self.values_of(row, metric).values())
        return mean_interval(values) if len(values) > 1 else None

    def effect_of(self, row: Row, metric: str) -> Effect | None:
        """Return the paired gain; only that of the metric that decides has a verdict."""
        if row.difference is None:
            return None
        if metric == self.result.metric:
            return Effect(row.difference.mean, row.difference.interval)
        return paired_effect(self.values_of(self.baseline, metric), self.values_of(row, metric))

    def read_beside(self, name: str) -> dict[str, Any]:
        """Return what a further file of the run's directory holds; empty if there is none."""
        content = read_json(self.result.directory / name)
        return content if isinstance(content, dict) else {}

    def timing_of(self, variant: str, seed: int) -> Mapping[str, Any]:
        """Return when a trial ran and how long; empty if nobody measured."""
        return self.run.timings.get((variant, seed)) or {}


def paired_effect(baseline: Mapping[int, float], values: Mapping[int, float]) -> Effect | None:
    """Return the mean of the differences over the seeds that both have, with its 95 % interval.

    >>> effect = paired_effect({0: 90.0, 1: 91.0, 2: 92.0}, {0: 90.5, 2: 92.5, 1: 91.5})
    >>> effect.mean, effect.interval.low
    (0.5, 0.5)
    """
    shared = [seed for seed in baseline if seed in values]
    if len(shared) < 2:
        return None
    gains = np.array([values[seed] - baseline[seed] for seed in shared], dtype=float)
    return Effect(float(gains.mean()), mean_interval(gains.tolist()))
