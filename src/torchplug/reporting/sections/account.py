"""The account of what was done: trials, recipe, environment, and what all this does not show."""

import dataclasses
from collections import Counter
from collections.abc import Mapping
from typing import Any

from torchplug.reporting.blocks import (
    Block,
    Cell,
    Code,
    Column,
    Details,
    Facts,
    Paragraph,
    Section,
    Table,
)
from torchplug.reporting.numbers import NOTHING, fixed
from torchplug.reporting.reproduce import reproduce_trial
from torchplug.reporting.trials import ListedTrial, list_trials
from torchplug.reporting.view import View, clean

MOST_TRIALS = 2000
_MOST_PLANS = 40


def tell_trials(view: View) -> Section:
    """Return every trial, those included that came to nothing."""
    say = view.say
    trials = list_trials(view)
    counts = Counter(trial.status for trial in trials)
    parts = [
        say("trials.part", n=f"{count:,}", status=say.word("trials", name))
        for name, count in counts.most_common()
    ]
    if resumed := sum(bool(trial.resumed_at) for trial in trials):
        parts.append(say("trials.resumed", n=resumed))
    if stopped := sum(bool(row.stopped) for row in view.result.rows):
        parts.append(say("trials.stopped", n=stopped))
    told = say("trials.count", all=f"{len(trials):,}", parts=say("list.comma").join(parts))
    rows = [_show_trial(view, trial) for trial in trials[:MOST_TRIALS]]
    is_cut = len(trials) > MOST_TRIALS
    key = "trials.cut" if is_cut else "trials.caption"
    caption = say(key, n=MOST_TRIALS, all=len(trials))
    table = Table("trials-table", _columns(view), rows, caption, can_filter=True)
    blocks = (
        Paragraph(told),
        Paragraph(say("trials.never"), "soft"),
        Details(say("trials.summary"), (table,), is_open=len(rows) <= 24),
    )
    return Section("trials", say("trials.title"), blocks)


def _columns(view: View) -> tuple[Column, ...]:
    say = view.say
    return (
        Column(say("table.variant"), is_text=True),
        Column(say("trials.seed")),
        Column(say("trials.status"), is_text=True),
        Column(say("trials.value", metric=view.axis_name(view.result.metric))),
        Column(say("trials.wrong")),
        Column(say("trials.seconds")),
        Column(say("trials.resumed_at"), is_text=True),
        Column(say("trials.host"), is_text=True),
        Column(say("trials.error"), is_text=True),
    )


def _show_trial(view: View, trial: ListedTrial) -> list[Cell]:
    return [
        Cell(clean(trial.variant)),
        Cell(str(trial.seed), trial.seed),
        Cell(view.say.word("trials", trial.status), tone=trial.status),
        Cell(fixed(trial.value, view.digits), trial.value),
        Cell(NOTHING if trial.wrong is None else str(trial.wrong), trial.wrong),
        Cell(fixed(trial.seconds, 1), trial.seconds),
        Cell(", ".join(map(str, trial.resumed_at)) or NOTHING),
        Cell(clean(trial.host) or NOTHING),
        Cell(clean(trial.error) or NOTHING),
    ]


def tell_setup(view: View) -> Section:
    """Return recipe, seeds, hashes, versions, and how to run one trial again."""
    say = view.say
    recipe = _state_recipe(view)
    blocks: list[Block] = [
        Details(say("setup.comparison"), (Facts(_state_comparison(view)),), is_open=True),
        Details(
            say("setup.recipe"),
            (Facts(recipe), Paragraph(say("setup.recipe_note"), "soft")),
            is_open=True,
        ),
        Details(say("setup.environment"), (Facts(_flatten(view.run.environment)),), is_open=True),
    ]
    if places := _state_places(view):
        blocks.append(Details(say("setup.plans"), (Facts(places),)))
    again = (Code(reproduce_trial(view)), Paragraph(say("setup.reproduce_note"), "soft"))
    blocks.append(Details(say("setup.reproduce"), again, is_open=True))
    return Section("setup", say("setup.title"), tuple(blocks))


def _state_recipe(view: View) -> tuple[tuple[str, str], ...]:
    return _flatten(dataclasses.asdict(view.comparison.recipe))


def _state_comparison(view: View) -> tuple[tuple[str, str], ...]:
    comparison, say = view.comparison, view.say
    records = view.records_of(view.baseline.variant).values()
    data = next((record.get("data") for record in records), "") or say("setup.not_known")
    described = view.read_beside("data.json")
    found = [
        ("model", comparison.model),
        ("model_hash", comparison.model_digest or say("setup.not_known")),
        ("data", comparison.data),
        ("data_hash", data),
        ("samples", ", ".join(f"{n:,}" for n in described.get("samples") or ())),
        ("notes", "; ".join(map(str, described.get("notes") or ()))),
        ("task", comparison.task),
        ("metric", f"{view.result.metric} ({view.result.goal})"),
        ("margin", view.amount(fixed(view.result.margin, view.digits))),
        ("seeds", _say_seeds(comparison.seeds)),
        ("base", comparison.base),
        ("image_size", comparison.image_size),
        ("device", comparison.device),
        ("command", comparison.command),
        ("controls", ", ".join(comparison.controls)),
        ("futility", say("setup.yes") if comparison.futility else ""),
        ("budget", comparison.budget_hours),
    ]
    return tuple((say(f"setup.{key}"), clean(str(value))) for key, value in found if value)


def _say_seeds(seeds: tuple[int, ...]) -> str:
    if len(seeds) > 20 and seeds == tuple(range(seeds[0], seeds[-1] + 1)):
        return f"{seeds[0]}…{seeds[-1]}"
    shown = ", ".join(map(str, seeds[:50]))
    return shown if len(seeds) <= 50 else f"{shown}, … ({len(seeds)})"


def _flatten(content: Mapping[str, Any], prefix: str = "") -> tuple[tuple[str, str], ...]:
    found: list[tuple[str, str]] = []
    for key, value in content.items():
        name = f"{prefix}{key}"
        if isinstance(value, Mapping):
            found += _flatten(value, f"{name}.")
        elif isinstance(value, list) and len(value) > 20:
            found.append((clean(name), clean(f"{value[:20]} … ({len(value)})")))
        else:
            found.append((clean(name), clean(str(value))))
    return tuple(found)


def _state_places(view: View) -> tuple[tuple[str, str], ...]:
    found = []
    for arm in view.comparison.variants[:_MOST_PLANS]:
        plan = view.run.plans.get(arm.name)
        plugs = plan.plugs if plan is not None else ()
        if not plugs:
            continue
        starts = {view.say.word("setup", plug.start) for plug in plugs}
        places = ", ".join(f"{plug.module} @ {plug.path}" for plug in plugs[:24])
        more = f", … ({len(plugs)})" if len(plugs) > 24 else ""
        found.append((clean(arm.name), clean(f"{places}{more}; {', '.join(sorted(starts))}")))
    return tuple(found)


def tell_limits(view: View) -> Section:
    """Return the fixed words on what a comparison cannot show."""
    few = ("five",) if len(view.result.seeds) < 10 else ()
    keys = ("one", "two", "three", "four", *few)
    texts = tuple(Paragraph(view.say(f"limits.{key}")) for key in keys)
    return Section("limits", view.say("limits.title"), texts)
