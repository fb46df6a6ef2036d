"""The result of a comparison: a table, and sentences."""

import dataclasses
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from torchplug.comparison.gathering import Gathered, gain_by_image, gather
from torchplug.comparison.spec import BASELINE, Comparison, Variant
from torchplug.comparison.statistics import (
    LEAST_MARGIN,
    Difference,
    Interval,
    choose_margin,
    compare_variants,
    mean_interval,
)
from torchplug.comparison.verdict import Verdict, explain_sample, judge, say_failed, show

POINTS = "points"
PERCENTAGES = frozenset({"accuracy", "miou", "dice", "map", "map50"})
"""Metrics of the built-in tasks, whose differences are percentage points."""


@dataclass(frozen=True, kw_only=True)
class Latency:
    """Time of one forward, measured with all arms in turn."""

    milliseconds: float
    ratio: float
    """To the baseline: the median of paired ratios."""

    low: float
    high: float
    """Quartiles of the paired ratios."""


@dataclass(frozen=True, kw_only=True)
class Row:
    """One arm: the baseline, a variant, or a control."""

    variant: str
    control: str | None
    of: str
    """The variant that a control belongs to."""

    places: str
    """Where it is plugged, such as ``3 x bottleneck``."""

    parameters: int
    """Of the whole network, start gates included."""

    added: int
    """To the baseline."""

    flops: int
    """Of one image, two for each multiply-add."""

    memory: int | None
    """Bytes kept for the backward pass of one image."""

    latency: Latency | None
    seconds: float | None
    """Mean training time of a trial."""

    values: tuple[float, ...]
    """The metric, one value for each seed that counts."""

    mean: float | None
    """``None`` for an arm that failed in most seeds."""

    interval: Interval | None
    difference: Difference | None
    """To the baseline; a gain is above zero."""

    lead: Difference | None
    """Of a control: how far the variant it belongs to is ahead of it."""

    verdict: Verdict | None
    metrics: Mapping[str, float]
    """Means of all metrics."""

    classes: Mapping[str, float]
    """Means of the metric of each class."""

    statuses: Mapping[str, int]
    """How many trials ended how."""

    stopped: str
    """Why it has fewer seeds than the baseline, such as ``for futility after 5 seeds``."""


@dataclass(frozen=True, kw_only=True)
class ComparisonResult:
    """All rows, the baseline first; printing it gives a table with the verdicts below."""

    rows: tuple[Row, ...]
    metric: str
    goal: str
    unit: str
    """``points``, or nothing where the metric has a unit of its own."""

    seeds: tuple[int, ...]
    """The seeds that count: those that every variant finished."""

    dropped: Mapping[int, str]
    """Seeds left out for all variants, each with the reason."""

    margin: float
    tested: int
    note: str
    directory: Path

    @property
    def baseline(self) -> Row:
        """The first row."""
        return self.rows[0]

    @property
    def variants(self) -> tuple[Row, ...]:
        """The rows of what was compared."""
        return tuple(row for row in self.rows[1:] if row.control is None)

    @property
    def controls(self) -> tuple[Row, ...]:
        """The rows of the controls, the baseline again among them."""
        return tuple(row for row in self.rows if row.control is not None)

    @property
    def winners(self) -> tuple[str, ...]:
        """Variants that beat the baseline, before their controls were asked."""
        return tuple(row.variant for row in self.variants if row.verdict and row.verdict.wins)

    def __str__(self) -> str:
        header = ("variant", "plugged", "params", "MFLOPs", self.metric, "difference", "p (Holm)")
        lines = [header, *(self.cells(row) for row in self.rows)]
        widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
        table = [
            "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
            for line in lines
        ]
        said = [f"{row.variant}: {row.verdict.sentence}" for row in self.rows if row.verdict]
        dropped = [f"seed {seed} left out for all: {why}" for seed, why in self.dropped.items()]
        return "\n".join([*table, "", *said, *dropped, "", self.note])

    __repr__ = __str__  # what a cell of a notebook shows

    def cells(self, row: Row) -> tuple[str, ...]:
        """Return the texts of a row of the printed table."""
        d = row.difference
        mean = "-"
        if row.mean is not None and row.interval is not None:
            low, high = (show(x, self.unit) for x in (row.interval.low, row.interval.high))
            mean = f"{show(row.mean, self.unit)} [{low}, {high}]"
        gain = "-"
        if d is not None:
            low, high = (show(x, self.unit, sign=True) for x in (d.interval.low, d.interval.high))
            gain = f"{show(d.mean, self.unit, sign=True)} [{low}, {high}]"
        p = f"{d.p_corrected:.2g}" if d and row.control is None else "-"
        flops = f"{row.flops / 1e6:.2f}" if row.flops else "-"
        parameters = f"{row.parameters:,}" if row.parameters else "-"
        return (row.variant, row.places, parameters, flops, mean, gain, p)

    def to_dict(self) -> dict[str, Any]:
        """Return the result as plain data, as ``summary.json`` holds it."""
        content = dataclasses.asdict(self)
        del content["directory"]
        return content | {"winners": list(self.winners)}


def summarize(
    comparison: Comparison,
    arms: Sequence[Variant],
    records: Iterable[Mapping[str, Any]],
    costs: Mapping[str, Mapping[str, Any]],
    directory: Path,
    *,
    seconds: Mapping[tuple[str, int], float] | None = None,
    stopped: Mapping[str, str] | None = None,
) -> ComparisonResult:
    """Turn the records of all trials into a result.

    Args:
        comparison: what was asked.
        arms: all that was run: baseline, variants, controls.
        records: of the trials, in any order.
        costs: places, parameters, FLOPs, memory and latency of each arm, as far as known.
        directory: of the run.
        seconds: training time of each trial by arm and seed.
        stopped: why an arm has fewer seeds than the baseline.

    Raises:
        UsageError: if fewer than two seeds are left.
        TorchplugError: if variants of one seed did not start from the same base weights.
    """
    gathered = gather(comparison, arms, records, stopped or {})
    unit = _find_unit(comparison, gathered)
    base = gathered.values(BASELINE, gathered.seeds)
    margin = comparison.margin
    if margin is None:
        margin = choose_margin(base.tolist(), LEAST_MARGIN if unit else 0.0)
    analysis = _Analysis(comparison, arms, gathered, margin, unit)
    facts = [_state_facts(arm, gathered, costs, seconds or {}, stopped or {}) for arm in arms]
    rows = [Row(**fact, **analysis.judge(arm)) for arm, fact in zip(arms, facts, strict=True)]
    tested = gathered.trials[BASELINE][gathered.seeds[0]].tested
    share = float(base.mean()) if analysis.has_errors else None
    return ComparisonResult(
        rows=tuple(rows),
        metric=_find_metric(comparison, gathered),
        goal=comparison.goal,
        unit=unit,
        seeds=gathered.seeds,
        dropped=gathered.dropped,
        margin=margin,
        tested=tested,
        note=explain_sample(len(gathered.seeds), tested, share, len(comparison.variants)),
        directory=directory,
    )


def _find_metric(comparison: Comparison, gathered: Gathered) -> str:
    first = gathered.trials[BASELINE][gathered.seeds[0]]
    return comparison.metric or next(iter(first.metrics), "metric")


def _find_unit(comparison: Comparison, gathered: Gathered) -> str:
    metric = _find_metric(comparison, gathered)
    return POINTS if metric in PERCENTAGES and not comparison.command else ""


class _Analysis:
    """The paired differences of all arms, computed once."""

    def __init__(
        self,
        comparison: Comparison,
        arms: Sequence[Variant],
        gathered: Gathered,
        margin: float,
        unit: str,
    ) -> None:
        self.gathered, self.margin, self.unit = gathered, margin, unit
        self.sign = 1.0 if comparison.goal == "max" else -1.0
        self.has_errors = False
        names = [
            arm.name
            for arm in arms[1:]
            if arm.control is None and len(gathered.finished(arm.name)) > 1
        ]
        family = [name for name in names if name not in gathered.broken]
        self.family = max(len(family), 1)
        self.differences = dict(zip(family, self._compare(family), strict=True))
        self.leads: dict[str, Difference] = {}
        for arm in arms:
            if arm.control is not None and len(self._shared(arm.name, BASELINE)) > 1:
                (self.differences[arm.name],) = self._compare([arm.name])
                if arm.of in self.differences and len(self._shared(arm.of, arm.name)) > 1:
                    self.leads[arm.name] = self._lead(arm.of, arm.name)
        self.of = {arm.name: arm.of for arm in arms if arm.control in {"parameters", "placebo"}}

    def _shared(self, first: str, second: str) -> list[int]:
        return sorted({*self.gathered.finished(first)} & {*self.gathered.finished(second)})

    def _compare(self, names: Sequence[str]) -> list[Difference]:
        gains = []
        for name in names:
            seeds = self._shared(name, BASELINE)
            ours, base = (self.gathered.values(arm, seeds) for arm in (name, BASELINE))
            gains.append((self.sign * (ours - base)).tolist())
            first = self.gathered.trials[name][seeds[0]]
            self.has_errors = self.has_errors or first.errors is not None
        images = (gain_by_image(self.gathered, n, self._shared(n, BASELINE)) for n in names)
        return compare_variants(gains, self.margin, images) if names else []

    def _lead(self, variant: str, control: str) -> Difference:
        seeds = self._shared(variant, control)
        ours, theirs = (self.gathered.values(arm, seeds) for arm in (variant, control))
        (lead,) = compare_variants([(self.sign * (ours - theirs)).tolist()], self.margin)
        return lead

    def judge(self, arm: Variant) -> dict[str, Any]:
        """Return what a row says of an arm's numbers."""
        broken = self.gathered.broken.get(arm.name)
        seeds = [] if broken else self.gathered.finished(arm.name)
        values = self.gathered.values(arm.name, seeds)
        d = self.differences.get(arm.name)
        verdict = say_failed(broken) if broken else None
        if d is not None:
            mine = [name for name in self.leads if self.of.get(name) == arm.name]
            verdict = judge(
                d,
                seeds=len(values),
                family=1 if arm.control else self.family,
                margin=self.margin,
                unit=self.unit,
                controls={name: self.leads[name] for name in mine},
            )
        return {
            "values": tuple(values.tolist()),
            "mean": float(values.mean()) if len(values) else None,
            "interval": mean_interval(values.tolist()) if len(values) > 1 else None,
            "difference": d,
            "lead": self.leads.get(arm.name),
            "verdict": verdict,
        }


def _state_facts(
    arm: Variant,
    gathered: Gathered,
    costs: Mapping[str, Mapping[str, Any]],
    seconds: Mapping[tuple[str, int], float],
    stopped: Mapping[str, str],
) -> dict[str, Any]:
    cost = costs.get(arm.name, {})
    latency = cost.get("latency")
    seeds = gathered.finished(arm.name)
    trials = [gathered.trials[arm.name][seed] for seed in seeds]
    times = [seconds[arm.name, seed] for seed in seeds if (arm.name, seed) in seconds]
    return {
        "variant": arm.name,
        "control": arm.control,
        "of": arm.of,
        "places": cost.get("places", "-"),
        "parameters": cost.get("parameters", 0),
        "added": cost.get("added", 0),
        "flops": cost.get("flops", 0),
        "memory": cost.get("memory"),
        "latency": Latency(**latency) if latency else None,
        "seconds": float(np.mean(times)) if times else None,
        "metrics": _average([trial.metrics for trial in trials]),
        "classes": _average([trial.classes for trial in trials]),
        "statuses": gathered.statuses(arm.name),
        "stopped": stopped.get(arm.name, ""),
    }


def _average(values: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Return the mean of each name over all trials that have it."""
    names = dict.fromkeys(name for each in values for name in each)
    return {
        name: float(np.mean([each[name] for each in values if each.get(name) is not None]))
        for name in names
        if any(each.get(name) is not None for each in values)
    }


def to_json(result: ComparisonResult) -> str:
    """Return ``summary.json``."""
    return json.dumps(result.to_dict(), indent=1, sort_keys=True) + "\n"
