"""Bring the records of many trials into the few numbers that are analyzed."""

import dataclasses
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from torchplug.comparison.spec import BASELINE, Comparison, Variant
from torchplug.errors import TorchplugError, UsageError, explain

FINISHED = "finished"
_MISSING = "missing"
_FEWEST = 2
_PAIRED = ("parameters", "placebo")


@dataclass(frozen=True)
class Trial:
    """What a record says, without its curve."""

    status: str
    error: str
    value: float
    metrics: Mapping[str, float]
    classes: Mapping[str, float]
    errors: NDArray[np.int32] | None
    """Test images that are wrong, where an image is right or wrong."""

    items: NDArray[np.float32] | None
    """Score of each test image, where it has one."""

    tested: int
    base_weights: str
    parameters: int

    @classmethod
    def read(cls, record: Mapping[str, Any]) -> "Trial":
        """Read a record."""
        errors, items = record.get("errors"), record.get("items")
        value = record.get("value", record.get("accuracy"))
        return cls(
            status=record["status"],
            error=record.get("error", ""),
            value=float("nan") if value is None else float(value),
            metrics=record.get("metrics") or {"accuracy": record.get("accuracy")},
            classes=record.get("classes") or {},
            errors=None if errors is None else np.asarray(errors, dtype=np.int32),
            items=None if items is None else np.asarray(items, dtype=np.float32),
            tested=int(record.get("tested") or 0),
            base_weights=record.get("base_weights", ""),
            parameters=sum((record.get("parameters") or {}).values()),
        )


Trials = dict[str, dict[int, Trial]]
"""By arm and seed."""


@dataclass(frozen=True)
class Gathered:
    """The trials of a run, with the seeds that count."""

    trials: Trials
    seeds: tuple[int, ...]
    """Seeds that every compared arm finished, but for arms that were stopped."""

    dropped: Mapping[int, str]
    broken: Mapping[str, str]
    """Arms that failed in more than half of their seeds: they have no numbers, only a reason."""

    def finished(self, arm: str) -> list[int]:
        """Return the seeds that count for one arm."""
        mine = self.trials.get(arm, {})
        return [seed for seed in self.seeds if seed in mine and mine[seed].status == FINISHED]

    def values(self, arm: str, seeds: Sequence[int]) -> NDArray[np.float64]:
        """Return the metric of an arm over some seeds."""
        return np.array([self.trials[arm][seed].value for seed in seeds], dtype=float)

    def statuses(self, arm: str) -> dict[str, int]:
        """Count how the trials of an arm ended."""
        return dict(Counter(trial.status for trial in self.trials.get(arm, {}).values()))


def gather(
    comparison: Comparison,
    arms: Sequence[Variant],
    records: Iterable[Mapping[str, Any]],
    stopped: Mapping[str, str],
) -> Gathered:
    """Read the records and find the seeds that count.

    A seed that one arm did not finish is left out for all: to drop it for that arm alone would
    favor the arm. An arm that fails in most seeds says nothing but that; it takes no seed along.

    Raises:
        UsageError: if fewer than two seeds are left.
        TorchplugError: if arms of one seed did not start from the same base weights.
    """
    trials: Trials = {}
    for record in records:
        trials.setdefault(record["variant"], {})[record["seed"]] = Trial.read(record)
    compared = [arm.name for arm in arms if arm.control is None]
    if comparison.command:
        _fail_unpaired(trials, compared, [arm.name for arm in arms if arm.control in _PAIRED])
    broken = {name: why for name in compared[1:] if (why := _find_break(trials.get(name, {})))}
    whole = [name for name in compared if name not in broken]
    dropped = _find_dropped(comparison.seeds, trials, whole, stopped)
    seeds = tuple(seed for seed in comparison.seeds if seed not in dropped)
    if len(seeds) < _FEWEST:
        reasons = "; ".join(f"seed {seed}: {why}" for seed, why in dropped.items())
        diverged = any("diverged" in why for why in dropped.values())
        first = "lower the learning rate" if diverged else "mend what the reason names"
        fix = f"{first}, or remove the variant that fails"
        text = explain("at least 2 seeds must finish in the baseline and a variant", reasons, fix)
        raise UsageError(text)
    _check_pairing(trials, seeds, [arm.name for arm in arms if arm.control != "again"])
    return Gathered(trials, seeds, dropped, broken)


def _find_break(trials: Mapping[int, Trial]) -> str:
    failed = [trial for trial in trials.values() if trial.status != FINISHED]
    if not failed or len(trials) >= 2 * len(failed):
        return ""
    kinds = Counter(trial.status for trial in failed)
    told = " and ".join(f"{kind} in {count}" for kind, count in kinds.items())
    reason = next((f" ({trial.error})" for trial in failed if trial.error), "")
    return f"{told} of {len(trials)} seeds{reason}"


def _find_dropped(
    seeds: Sequence[int], trials: Trials, arms: Sequence[str], stopped: Mapping[str, str]
) -> dict[int, str]:
    dropped = {}
    for seed in seeds:
        reasons = []
        for name in arms:
            trial = trials.get(name, {}).get(seed)
            if trial is None and name in stopped:
                continue
            if trial is None or trial.status != FINISHED:
                told = f"{name} {_MISSING if trial is None else trial.status}"
                reasons.append(f"{told} {trial.error if trial else ''}".strip())
        if reasons:
            dropped[seed] = ", ".join(reasons)
    return dropped


def _fail_unpaired(trials: Trials, compared: Sequence[str], controls: Sequence[str]) -> None:
    """Count a program's control that began with another base as failed: it takes nothing along."""
    for name in controls:
        for seed, trial in trials.get(name, {}).items():
            others = [trials[arm][seed] for arm in compared if seed in trials.get(arm, {})]
            known = {other.base_weights for other in others if other.status == FINISHED}
            if trial.status == FINISHED and known and trial.base_weights not in known:
                why = "it started from other weights of the base"
                trials[name][seed] = dataclasses.replace(trial, status="failed", error=why)


def _check_pairing(trials: Trials, seeds: Sequence[int], arms: Sequence[str]) -> None:
    for seed in seeds:
        found = [trials[arm][seed] for arm in arms if seed in trials.get(arm, {})]
        hashes = {trial.base_weights for trial in found if trial.status == FINISHED}
        if len(hashes) > 1:
            raise TorchplugError(f"seed {seed} is not paired: variants started from other weights")


def gain_by_image(gathered: Gathered, arm: str, seeds: Sequence[int]) -> NDArray[np.float64] | None:
    """Return the gain of an arm over the baseline in every seed and test image, in points."""
    rows = []
    for seed in seeds:
        ours, base = gathered.trials[arm][seed], gathered.trials[BASELINE][seed]
        if ours.errors is not None and base.errors is not None and ours.tested == base.tested > 0:
            row = np.zeros(ours.tested)
            row[base.errors] += 100.0
            row[ours.errors] -= 100.0
        elif ours.items is not None and base.items is not None and ours.items.size:
            row = ours.items.astype(float) - base.items
        else:
            return None
        rows.append(row)
    return np.array(rows)
