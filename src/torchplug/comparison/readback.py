"""Read a run back from its directory, and bring its records to a result."""

import dataclasses
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torchplug.comparison.packing import pack_record
from torchplug.comparison.receipts import DETAILS, find_refused
from torchplug.comparison.result import ComparisonResult, summarize
from torchplug.comparison.spec import BASELINE, FEWEST_SEEDS, Comparison, Variant
from torchplug.comparison.stopping import Known, find_futile_stop
from torchplug.comparison.store import SPECIFICATION, TIMING, Store, read_json
from torchplug.errors import UsageError, explain
from torchplug.surgery import Plan

Record = Mapping[str, Any]
Timing = Mapping[str, Any]


@dataclass(frozen=True)
class Run:
    """A finished run, read back from its directory."""

    comparison: Comparison
    arms: tuple[Variant, ...]
    """All that was run: the baseline, the variants, the controls."""

    result: ComparisonResult
    records: tuple[Record, ...]
    plans: Mapping[str, Plan]
    costs: Mapping[str, Mapping[str, Any]]
    environment: Mapping[str, str]
    timings: Mapping[tuple[str, int], Timing]
    """``seconds`` and more of each trial, by arm and seed."""

    stopped: Mapping[str, str]
    """Why arms have fewer seeds than were asked for."""

    missing: Mapping[str, str]
    """Controls that do not exist, by name, each with the reason."""


def load_run(directory: str | Path) -> Run:
    """Read a run back and summarize it again.

    Raises:
        UsageError: if the directory holds no run, or trials are missing.
    """
    store = Store(Path(directory))
    comparison = read_comparison(store)
    arms = store.read_arms() or comparison.arms
    stopped = read_json(store.root / "stopped.json") or {}
    records = tuple(pack_record(record) for record in read_records(store, comparison, arms))
    timings = read_timings(store, comparison, arms)
    costs = read_json(store.root / "costs.json")
    if costs is None:
        fix = "run the same torchplug compare again: it writes it anew"
        raise UsageError(explain("a report needs the costs", "no whole costs.json", fix))
    missing = read_json(store.root / "missing.json") or {}
    if comparison.command:
        refused = find_refused(arms, records)
        missing |= refused
        records = tuple(record for record in records if record["variant"] not in refused)
        arms = _tell_details(store, (arm for arm in arms if arm.name not in refused))
    plans = {
        variant.name: Plan.from_json(store.plan_path(variant).read_text(encoding="utf-8"))
        for variant in arms
        if variant.plugs and (not comparison.command or store.plan_path(variant).exists())
    }
    environment = read_json(store.root / "environment.json") or {}
    known = {
        (record["variant"], record["seed"]): Known(record["status"], record.get("value"))
        for record in records
    }
    result = conclude(store, comparison, arms, records, known, timings, costs, stopped)
    return Run(
        comparison=comparison,
        arms=arms,
        result=result,
        records=records,
        plans=plans,
        costs=costs,
        environment=environment,
        timings=timings,
        stopped=stopped,
        missing=missing,
    )


def _tell_details(store: Store, arms: Iterable[Variant]) -> tuple[Variant, ...]:
    """Return arms with what a program made of its controls, as others have it from the start."""
    told = read_json(store.root / DETAILS) or {}
    return tuple(
        dataclasses.replace(arm, details={**arm.details, **told.get(arm.name, {})}) for arm in arms
    )


def read_comparison(store: Store) -> Comparison:
    """Return what is compared in a directory.

    Raises:
        UsageError: if it holds no run.
    """
    content = read_json(store.root / SPECIFICATION)
    if content is None:
        fix = "name a directory that torchplug compare wrote, such as runs/demo"
        got = f"{store.root} without a readable {SPECIFICATION}"
        raise UsageError(explain("a report needs the directory of a run", got, fix))
    return Comparison.from_dict(content)


def read_records(
    store: Store, comparison: Comparison, arms: Sequence[Variant]
) -> Iterator[dict[str, Any]]:
    """Yield the records that are there, whole and of this comparison."""
    for variant, seed in comparison.trials(arms):
        record = store.read_record(comparison, variant, seed)
        if record is not None:
            yield record


def read_timings(
    store: Store, comparison: Comparison, arms: Sequence[Variant]
) -> dict[tuple[str, int], Timing]:
    """Return the timing of each trial that has one."""
    found: dict[tuple[str, int], Timing] = {}
    for variant, seed in comparison.trials(arms):
        timing = read_json(store.trial_folder(comparison, variant, seed) / TIMING)
        if isinstance(timing, dict):
            found[variant.name, seed] = pack_record(timing)
    return found


def conclude(
    store: Store,
    comparison: Comparison,
    arms: Sequence[Variant],
    records: Iterable[Record],
    known: Mapping[tuple[str, int], Known],
    timings: Mapping[tuple[str, int], Timing],
    costs: Mapping[str, Mapping[str, Any]],
    stopped: Mapping[str, str],
) -> ComparisonResult:
    """Turn records into the result; of a variant that was stopped, those up to its stop count.

    Raises:
        UsageError: if trials are missing that nothing stopped.
    """
    _check_missing(comparison, arms, known, stopped)
    seeds = tuple(seed for seed in comparison.seeds if (BASELINE, seed) in known)
    if len(seeds) < FEWEST_SEEDS:
        fix = "give it more time: what is there is kept"
        got = f"{len(seeds)} when the budget was spent"
        raise UsageError(explain("a result needs at least 2 seeds of the baseline", got, fix))
    until = {arm.name: _find_last_seeds(comparison, arm, known) for arm in arms}
    return summarize(
        dataclasses.replace(comparison, seeds=seeds),
        arms,
        (record for record in records if record["seed"] in until[record["variant"]]),
        costs,
        store.root,
        seconds={key: float(timing["seconds"]) for key, timing in timings.items()},
        stopped=stopped,
    )


def _find_last_seeds(
    comparison: Comparison, arm: Variant, known: Mapping[tuple[str, int], Known]
) -> tuple[int, ...]:
    """Return the seeds of an arm that count: what had begun beside the last one does not."""
    name = arm.of or arm.name
    if not comparison.futility or name == BASELINE:
        return comparison.seeds
    return find_futile_stop(comparison, name, known) or comparison.seeds


def _check_missing(
    comparison: Comparison,
    arms: Sequence[Variant],
    known: Mapping[tuple[str, int], Known],
    stopped: Mapping[str, str],
) -> None:
    missing = [
        f"{arm.name} seed {seed}"
        for arm, seed in comparison.trials(arms)
        if (arm.name, seed) not in known and arm.name not in stopped
    ]
    if missing:
        shown = ", ".join(missing[:10]) + (f" and {len(missing) - 10} more" * (len(missing) > 10))
        fix = "run the same torchplug compare again: it does what is missing"
        raise UsageError(explain("a report needs all trials", "no " + shown, fix))
