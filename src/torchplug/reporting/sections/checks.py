"""What the differences mean: controls, what could have been found, and where they come from."""

import json

from torchplug.comparison.result import Row
from torchplug.comparison.statistics import Difference
from torchplug.comparison.verdict import judge_again
from torchplug.reporting.blocks import (
    Block,
    Cell,
    Column,
    Paragraph,
    Picture,
    Pictures,
    Section,
    Table,
)
from torchplug.reporting.charts.curves import draw_power, spread_of
from torchplug.reporting.charts.effects import draw_again
from torchplug.reporting.numbers import NOTHING, fixed, signed, span, times, whole
from torchplug.reporting.sentences import name_control
from torchplug.reporting.view import View, clean, paired_effect

KINDS = ("again", "parameters", "latency", "placebo")
_MOST_REASONS = 20
_MOST_CLASSES = 30
_MOST_CLASS_VARIANTS = 7


def tell_controls(view: View) -> Section:
    """Return every control with the question that it answers."""
    say = view.say
    blocks: list[Block] = []
    if view.controls:
        blocks.append(_list_controls(view))
    missing = [kind for kind in KINDS if kind not in {row.control for row in view.controls}]
    if missing and not view.result.winners:
        blocks.append(Paragraph(say("controls.none"), "soft"))
    if missing:
        names = say("list.names").join(say(f"controls.{kind}") for kind in missing)
        blocks.append(Paragraph(say("controls.missing", names=names), "soft"))
    for name, reason in list(view.run.missing.items())[:_MOST_REASONS]:
        told = say("controls.impossible", name=clean(name), why=clean(str(reason)))
        blocks.append(Paragraph(told, "soft"))
    again = next((row for row in view.controls if row.control == "again"), None)
    if again is not None and again.difference is not None:
        picture = Picture(
            "again", say("again.title"), draw_again(view, again), say("again.caption")
        )
        blocks.append(Pictures((picture,)))
    return Section("controls", say("controls.title"), tuple(blocks))


def _list_controls(view: View) -> Table:
    say = view.say
    columns = (
        Column(say("controls.control"), is_text=True),
        Column(say("controls.answers"), is_text=True, is_long=True),
        Column(view.with_unit(say("table.gain")), hint=say("table.hint_gain")),
        Column(view.with_unit(say("controls.lead")), hint=say("controls.hint_lead")),
        Column(say("controls.reading"), is_text=True),
        Column(say("table.parameters")),
        Column(say("table.latency"), hint=say("table.hint_latency")),
        Column(say("controls.details"), is_text=True),
    )
    rows = [_show_control(view, row) for row in view.controls]
    return Table("controls-table", columns, rows, can_filter=len(rows) > 12)


def _show_control(view: View, row: Row) -> list[Cell]:
    details = next((arm.details for arm in view.run.arms if arm.name == row.variant), {})
    return [
        Cell(name_control(view, row)),
        Cell(view.say(f"controls.answers_{row.control}")),
        _show_difference(view, row.difference),
        _show_difference(view, row.lead),
        Cell(view.say(f"controls.read_{read_control(row)}"), tone=read_control(row)),
        Cell(whole(row.parameters or None), row.parameters),
        Cell(times(row.latency.ratio), row.latency.ratio) if row.latency else Cell(NOTHING),
        Cell(clean(json.dumps(details, ensure_ascii=False)) if details else NOTHING, tone="code"),
    ]


def _show_difference(view: View, d: Difference | None) -> Cell:
    if d is None:
        return Cell(NOTHING)
    around = span(d.interval.low, d.interval.high, view.digits)
    return Cell(signed(d.mean, view.digits), d.mean, around)


def read_control(row: Row) -> str:
    """Return what a control says: the last part of a key of the words."""
    if row.control == "again":
        return f"again_{judge_again(row.difference)}" if row.difference else "none"
    if row.lead is None:
        return "none"
    if row.lead.interval.low > 0:
        return "ahead"
    return "behind" if row.lead.interval.high < 0 else "not_ahead"


def tell_power(view: View) -> Section:
    """Return what difference these seeds could have found."""
    say = view.say
    svg = draw_power(view)
    if svg is None:
        blocks: tuple[Block, ...] = (Paragraph(say("power.none")),)
        return Section("power", say("power.title"), blocks)
    rows = [row for row in view.variants if row.difference is not None]
    spreads = sorted(spread for row in rows if (spread := spread_of(view, row)) is not None)
    found = sorted(row.difference.detectable for row in rows if row.difference)
    family = "power.one_variant" if len(rows) == 1 else "power.variants"
    text = say(
        "power.text",
        n=len(view.result.seeds),
        family=say(family, n=len(rows)),
        spread=view.amount(fixed(spreads[len(spreads) // 2], view.digits)),
        detectable=view.amount(fixed(found[len(found) // 2], view.digits)),
    )
    picture = Picture("power", say("power.curve"), svg, say("power.caption"))
    return Section("power", say("power.title"), (Paragraph(text), Pictures((picture,))))


def tell_classes(view: View) -> Section:
    """Return the gain in each class."""
    say = view.say
    variants = [row for row in view.shown[1:] if row.difference][:_MOST_CLASS_VARIANTS]
    names = list(view.baseline.classes)
    if not names or not variants:
        return Section("classes", say("classes.title"), (Paragraph(say("classes.none"), "soft"),))
    names.sort(key=lambda name: -max(_change(view, row, name) for row in variants))
    names = names[:_MOST_CLASSES]
    columns = (
        Column(say("classes.class"), is_text=True),
        Column(say("classes.baseline")),
        *[Column(clean(row.variant)) for row in variants],
    )
    rows = [_show_class(view, variants, name) for name in names]
    caption = say("classes.caption", n=len(names))
    table = Table("classes-table", columns, rows, caption, can_filter=len(rows) > 12)
    return Section("classes", say("classes.title"), (table,))


def _change(view: View, row: Row, name: str) -> float:
    return abs(row.classes.get(name, 0.0) - view.baseline.classes[name])


def _show_class(view: View, variants: list[Row], name: str) -> list[Cell]:
    base = _class_values(view, view.baseline, name)
    mean = view.baseline.classes[name]
    cells = [Cell(clean(name)), Cell(fixed(mean), mean)]
    for row in variants:
        effect = paired_effect(base, _class_values(view, row, name))
        if effect is None:
            cells.append(Cell(NOTHING))
            continue
        low, high = effect.interval.low, effect.interval.high
        tone = "up" if low > 0 else "down" if high < 0 else ""
        cells.append(Cell(signed(effect.mean), effect.mean, span(low, high), tone))
    return cells


def _class_values(view: View, row: Row, name: str) -> dict[int, float]:
    found = {
        seed: (record.get("classes") or {}).get(name)
        for seed, record in view.records_of(row.variant).items()
    }
    return {seed: float(value) for seed, value in found.items() if value is not None}
