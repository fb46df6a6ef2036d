"""The result of a comparison: a table, and sentences."""

import dataclasses
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from torchplug.comparison.spec import BASELINE, Comparison
from torchplug.comparison.statistics import (
    Difference,
    Interval,
    choose_margin,
    compare_variants,
    mean_interval,
)
from torchplug.comparison.verdict import Verdict, explain_sample, judge
from torchplug.errors import TorchplugError, UsageError, explain


@dataclass(frozen=True, kw_only=True)
class Row:
    """One variant, or the baseline."""

    variant: str
    places: str
    """Where it is plugged, such as ``3 x bottleneck``."""

    parameters: int
    """Of the whole network, start gates included."""

    added: int
    """In modules and gates."""

    flops: int
    """Of one image, two for each multiply-add."""

    accuracies: tuple[float, ...]
    """In percent, one for each seed that all variants finished."""

    mean: float
    interval: Interval
    difference: Difference | None
    verdict: Verdict | None


@dataclass(frozen=True, kw_only=True)
class ComparisonResult:
    """All rows, the baseline first; printing it gives a table with the verdicts below."""

    rows: tuple[Row, ...]
    seeds: tuple[int, ...]
    """The seeds that count: those that every variant finished."""

    dropped: Mapping[int, str]
    """Seeds left out for all variants, each with the reason."""

    margin: float
    tested: int
    note: str
    directory: Path

    def __str__(self) -> str:
        header = ("variant", "plugged", "params", "MFLOPs", "accuracy %", "difference", "p (Holm)")
        lines = [header, *(_cells(row) for row in self.rows)]
        widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
        table = [
            "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
            for line in lines
        ]
        said = [f"{row.variant}: {row.verdict.sentence}" for row in self.rows if row.verdict]
        dropped = [f"seed {seed} left out for all: {why}" for seed, why in self.dropped.items()]
        return "\n".join([*table, "", *said, *dropped, "", self.note])

    def to_dict(self) -> dict[str, Any]:
        """Return the result as plain data, as ``summary.json`` holds it."""
        content = dataclasses.asdict(self)
        del content["directory"]
        return content


def _cells(row: Row) -> tuple[str, ...]:
    d = row.difference
    accuracy = f"{row.mean:.2f} [{row.interval.low:.2f}, {row.interval.high:.2f}]"
    shown = f"{d.mean:+.2f} [{d.interval.low:+.2f}, {d.interval.high:+.2f}]" if d else "-"
    p = f"{d.p_corrected:.2g}" if d else "-"
    flops = f"{row.flops / 1e6:.2f}"
    return (row.variant, row.places, f"{row.parameters:,}", flops, accuracy, shown, p)


def summarize(
    comparison: Comparison,
    records: Sequence[Mapping[str, Any]],
    costs: Mapping[str, Mapping[str, Any]],
    directory: Path,
) -> ComparisonResult:
    """Turn the records of all trials into a result.

    A seed that one variant did not finish is left out for all: to drop it for that variant alone
    would favor the variant. ``costs`` holds places, parameters and FLOPs of each variant.

    Raises:
        UsageError: if fewer than two seeds are left.
        TorchplugError: if variants of one seed did not start from the same base weights.
    """
    names = [arm.name for arm in comparison.arms]
    by_trial = {(record["variant"], record["seed"]): record for record in records}
    dropped = _find_dropped(comparison, by_trial)
    seeds = tuple(seed for seed in comparison.seeds if seed not in dropped)
    if len(seeds) < 2:
        reasons = "; ".join(f"seed {seed}: {why}" for seed, why in dropped.items())
        fix = "lower the learning rate or remove the variant that fails"
        raise UsageError(explain("at least 2 seeds must finish in every variant", reasons, fix))
    kept = {name: [by_trial[name, seed] for seed in seeds] for name in names}
    _check_pairing(kept)
    accuracies = {name: [record["accuracy"] for record in kept[name]] for name in names}
    margin = comparison.margin
    if margin is None:
        margin = choose_margin(accuracies[BASELINE])
    differences = _compare(kept, accuracies, margin)
    rows = [
        _make_row(name, accuracies[name], differences.get(name), len(differences), margin, costs)
        for name in names
    ]
    tested = kept[BASELINE][0]["tested"]
    return ComparisonResult(
        rows=tuple(rows),
        seeds=seeds,
        dropped=dropped,
        margin=margin,
        tested=tested,
        note=explain_sample(len(seeds), tested, rows[0].mean, len(differences)),
        directory=directory,
    )


def _check_pairing(kept: Mapping[str, Sequence[Mapping[str, Any]]]) -> None:
    for records in zip(*kept.values(), strict=True):
        if len({record["base_weights"] for record in records}) != 1:
            seed = records[0]["seed"]
            raise TorchplugError(f"seed {seed} is not paired: variants started from other weights")


def _compare(
    kept: Mapping[str, Sequence[Mapping[str, Any]]],
    accuracies: Mapping[str, Sequence[float]],
    margin: float,
) -> dict[str, Difference]:
    """Compare every variant with the baseline."""
    variants = [name for name in kept if name != BASELINE]
    wrong = {name: _mark_errors(records) for name, records in kept.items()}
    differences = compare_variants(
        accuracies[BASELINE],
        [accuracies[name] for name in variants],
        (wrong[BASELINE], [wrong[name] for name in variants]),
        margin,
    )
    return dict(zip(variants, differences, strict=True))


def _make_row(
    name: str,
    accuracies: Sequence[float],
    d: Difference | None,
    family: int,
    margin: float,
    costs: Mapping[str, Mapping[str, Any]],
) -> Row:
    verdict = judge(d, seeds=len(accuracies), family=family, margin=margin) if d else None
    return Row(
        variant=name,
        accuracies=tuple(accuracies),
        mean=float(np.mean(accuracies)),
        interval=mean_interval(accuracies),
        difference=d,
        verdict=verdict,
        **costs[name],
    )


def _find_dropped(
    comparison: Comparison, by_trial: Mapping[tuple[str, int], Mapping[str, Any]]
) -> dict[int, str]:
    dropped = {}
    for seed in comparison.seeds:
        reasons = []
        for arm in comparison.arms:
            record = by_trial.get((arm.name, seed), {"status": "missing"})
            if record["status"] != "finished":
                reasons.append(f"{arm.name} {record['status']} {record.get('error', '')}".strip())
        if reasons:
            dropped[seed] = ", ".join(reasons)
    return dropped


def _mark_errors(records: Sequence[Mapping[str, Any]]) -> NDArray[np.bool_]:
    """Return which images each record got wrong, ``(seeds, images)``."""
    marks = np.zeros((len(records), records[0]["tested"]), dtype=bool)
    for row, record in enumerate(records):
        marks[row, record["errors"]] = True
    return marks


def to_json(result: ComparisonResult) -> str:
    """Return ``summary.json``."""
    return json.dumps(result.to_dict(), indent=1, sort_keys=True) + "\n"
