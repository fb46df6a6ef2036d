"""What a comparison would do: its trials, their time, and what they can show."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from rich.table import Table
from rich.text import Text

from torchplug.cli.console import console
from torchplug.cli.display import show_time

if TYPE_CHECKING:
    from torchplug.comparison import Comparison
    from torchplug.comparison.arms import Study
    from torchplug.comparison.estimate import Estimate
    from torchplug.comparison.search import Search
    from torchplug.comparison.spec import Variant
    from torchplug.comparison.store import Store
    from torchplug.comparison.studyfile import EngineSettings

_USUAL = {"classification": 0.35, "segmentation": 1.0, "detection": 1.0}
"""Deviations of paired differences, in points: measured on digits, and usual for dense tasks."""
_ENOUGH = 3


def preview(
    comparison: "Comparison",
    settings: "EngineSettings",
    directory: Path,
    search: "Search | None" = None,
) -> None:
    """Print what would be run; nothing is written."""
    from torchplug.comparison.controls import find_controls
    from torchplug.comparison.rehearsal import rehearse
    from torchplug.comparison.session import Inputs
    from torchplug.comparison.store import Store

    workers = settings.place.workers or 1
    study = Inputs(comparison.model, comparison).make_study(check=True)
    store = Store(directory)
    if search is None:  # else the recipe is not known before
        store.check(_identify(comparison, study), study.data.digest)
    asked = find_controls(study, comparison.variants, comparison.controls)
    arms = (*comparison.arms, *(each.arm for each in asked if each.arm is not None))
    costs = rehearse(study, arms, {}).costs
    estimate = _estimate(study, store, arms)
    console.print(_list_arms(comparison, arms, costs, estimate.seconds))
    console.print()
    for line in (
        *(f"no {each.kind} control of {each.of}: {each.reason}" for each in asked if not each.arm),
        *_say_search(comparison, search),
        _say_trials(comparison, store, arms),
        _say_time(comparison, arms, estimate, workers),
        _say_controls(comparison, estimate),
        _say_power(comparison, store, arms),
    ):
        console.print(Text(line))


def _identify(comparison: "Comparison", study: "Study") -> "Comparison":
    """Return the comparison as its run would write it down."""
    import dataclasses

    from torchplug.comparison.arms import pin_modules
    from torchplug.comparison.session import Inputs

    digest = Inputs(comparison.model, comparison).hash_model(study)
    return dataclasses.replace(pin_modules(comparison), model_digest=digest)


def _estimate(study: "Study", store: "Store", arms: "Sequence[Variant]") -> "Estimate":
    from torchplug.comparison.estimate import Estimate, find_earlier, measure

    identified = _identify(study.comparison, study)
    earlier = find_earlier(store, identified, arms)
    if earlier.seconds or study.comparison.command:
        return earlier if earlier.seconds else Estimate({}, "not known before a first trial")
    with console.status("timing a few steps of each arm"):
        return measure(study, [arm for arm in arms if arm.control is None])


def _list_arms(
    comparison: "Comparison",
    arms: "Sequence[Variant]",
    costs: Mapping[str, Mapping[str, Any]],
    seconds: Mapping[str, float],
) -> Table:
    table = Table(box=None, header_style="bold", pad_edge=False)
    for column in ("arm", "plugged", "params", "added", "MFLOPs", "trials", "a trial"):
        justify: Literal["left", "right"] = "left" if column in {"arm", "plugged"} else "right"
        # names that are cut could not be told apart
        table.add_column(column, justify=justify, overflow="fold")
    for arm in arms:
        cost = costs.get(arm.name, {})
        table.add_row(
            Text(arm.name),
            Text(str(cost.get("places", "-"))),
            _count(cost.get("parameters")),
            _count(cost.get("added")),
            f"{cost['flops'] / 1e6:.2f}" if cost.get("flops") else "-",
            str(len(comparison.seeds)),
            show_time(_time_of(arm, seconds)),
        )
    return table


def _count(number: int | None) -> str:
    return "-" if number is None else f"{number:,}"


def _time_of(arm: "Variant", seconds: Mapping[str, float]) -> float | None:
    """Return the time of an arm's trial; that of what it belongs to where it was not timed."""
    return seconds.get(arm.name, seconds.get(arm.of))


def _say_search(comparison: "Comparison", search: "Search | None") -> list[str]:
    if search is None:
        return []
    epochs = search.count_epochs(comparison.recipe.epochs)
    rungs = ", ".join(map(str, search.rungs_for(comparison.recipe.epochs)))
    return [
        f"search    {search.settings} settings of each arm, the baseline too; a third goes on at "
        f"each of the epochs {rungs}: {epochs} epochs an arm"
    ]


def _say_trials(comparison: "Comparison", store: "Store", arms: "Sequence[Variant]") -> str:
    total = len(arms) * len(comparison.seeds)
    seeds = ", ".join(map(str, comparison.seeds))
    text = f"trials    {total}: {len(arms)} arms with seeds {seeds}"
    return text + (f", in {store.root}" if store.root.exists() else "")


def _say_time(
    comparison: "Comparison", arms: "Sequence[Variant]", estimate: "Estimate", workers: int
) -> str:
    times = [_time_of(arm, estimate.seconds) for arm in arms]
    known = [time for time in times if time is not None]
    if len(known) < len(times):
        return f"time      {estimate.source}"
    whole = sum(known) * len(comparison.seeds) / workers
    side = f" with {workers} trials at once" if workers > 1 else ""
    return f"time      about {show_time(whole)}{side}, estimated from {estimate.source}"


def _say_controls(comparison: "Comparison", estimate: "Estimate") -> str:
    missing = [kind for kind in ("parameters", "placebo") if kind not in comparison.controls]
    if not missing:
        return "controls  as asked for, for every variant; and the baseline again"
    names = " and ".join(missing)
    number = len(missing) * len(comparison.seeds)
    times = [estimate.seconds.get(variant.name) for variant in comparison.variants]
    known = [time for time in times if time is not None]
    each = f", about {show_time(number * max(known))}" if known else ""
    return f"controls  {names} for a variant that wins: {number} more trials each{each}"


def _say_power(comparison: "Comparison", store: "Store", arms: "Sequence[Variant]") -> str:
    from torchplug.comparison.planning import minimum_detectable

    seeds, family = len(comparison.seeds), len(comparison.variants)
    deviation, source = _find_deviation(comparison, store, arms)
    if deviation is None:
        ratio = minimum_detectable(seeds, family, 1.0)
        return (
            f"detects   with 80 %, a difference of {ratio:.2f} standard deviations of the paired "
            "differences"
        )
    least = minimum_detectable(seeds, family, deviation)
    unit = "" if comparison.command else " points"
    return (
        f"detects   with 80 %, a difference of {least:.2g}{unit} if paired differences deviate by "
        f"{deviation:.2g}, {source}"
    )


def _find_deviation(
    comparison: "Comparison", store: "Store", arms: "Sequence[Variant]"
) -> tuple[float | None, str]:
    """Return how much paired differences deviate: in this run so far, or usually."""
    import statistics

    from torchplug.comparison.readback import read_records
    from torchplug.comparison.spec import BASELINE

    values: dict[str, dict[int, float]] = {}
    for record in read_records(store, comparison, arms):
        if record["status"] == "finished" and record.get("value") is not None:
            values.setdefault(record["variant"], {})[record["seed"]] = record["value"]
    base = values.get(BASELINE, {})
    spreads = []
    for variant in comparison.variants:
        ours = values.get(variant.name, {})
        gains = [ours[seed] - base[seed] for seed in ours if seed in base]
        spreads += [statistics.stdev(gains)] if len(gains) >= _ENOUGH else []
    if spreads:
        return max(spreads), f"the largest so far in {store.root}"
    if comparison.command:
        return None, ""
    return _USUAL[comparison.task], "as is usual"
