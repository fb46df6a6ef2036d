"""The verdicts, and the table behind them."""

from torchplug.comparison.result import Row
from torchplug.reporting.blocks import (
    Block,
    Cell,
    Column,
    Details,
    Paragraph,
    Section,
    Table,
    VerdictCard,
    Verdicts,
)
from torchplug.reporting.numbers import (
    NOTHING,
    fixed,
    p_value,
    scaled,
    seconds,
    share,
    signed,
    span,
    times,
    whole,
)
from torchplug.reporting.sentences import (
    name_control,
    say_dropped,
    say_note,
    say_stopped,
    say_verdict,
)
from torchplug.reporting.view import View, clean

MOST_CARDS = 12
_MOST_SENTENCES = 200
_MOST_DROPPED = 20
_DECIDED = ("better", "worse", "failed")


def tell_verdicts(view: View) -> Section:
    """Return one sentence a variant, and what these seeds can show at all."""
    rows = [row for row in view.variants if row.verdict is not None]
    if len(rows) > MOST_CARDS:  # what was decided comes first, in the order of the study
        rows = sorted(rows, key=lambda row: row.verdict is None or _is_open(row))
    cards = tuple(_make_card(view, row) for row in rows[:_MOST_SENTENCES])
    blocks: list[Block] = [Verdicts(cards[:MOST_CARDS])]
    if rest := cards[MOST_CARDS:]:
        told = view.say("verdict.more", n=len(rest))
        blocks.append(Details(told, (Verdicts(rest),)))
    if len(rows) > _MOST_SENTENCES:
        blocks.append(Paragraph(view.say("verdict.many", n=len(rows))))
    blocks.append(Paragraph(say_note(view), "soft"))
    for seed in list(view.result.dropped)[:_MOST_DROPPED]:
        told = view.say("verdict.dropped", seed=seed, why=say_dropped(view, seed))
        blocks.append(Paragraph(told, "warning"))
    return Section("verdict", view.say("verdict.title"), tuple(blocks))


def _is_open(row: Row) -> bool:
    return row.verdict is not None and row.verdict.label not in _DECIDED


def _make_card(view: View, row: Row) -> VerdictCard:
    label = row.verdict.label if row.verdict else "undecided"
    sentence = say_verdict(view, row).rstrip(".。")
    end = "。" if view.say.lang == "zh" else "."
    sentence = sentence[:1].upper() + sentence[1:] + end
    if row.stopped:
        space = "" if view.say.lang == "zh" else " "
        sentence += space + view.say("verdict.stopped", why=say_stopped(view, row))
    return VerdictCard(clean(row.variant), label, view.say(f"verdict.{label}"), sentence)


def tell_results(view: View) -> Section:
    """Return the table of all arms, and that of all tests."""
    has_latency = any(row.latency for row in view.result.rows)
    notes = () if has_latency else (Paragraph(view.say("table.no_latency"), "soft"),)
    fine = Details(view.say("fine.title"), (_list_tests(view),), is_open=True)
    return Section("table", view.say("table.title"), (_list_arms(view), *notes, fine))


def _list_arms(view: View) -> Table:
    others = view.metrics[1:]
    say = view.say
    columns = [
        Column(say("table.variant"), is_text=True),
        Column(say("table.verdict"), is_text=True),
        Column(
            say("table.mean", metric=view.axis_name(view.metrics[0])), hint=say("table.hint_mean")
        ),
        Column(view.with_unit(say("table.gain")), hint=say("table.hint_gain")),
        Column(say("table.p"), hint=say("table.hint_p")),
        Column(say("table.wins"), hint=say("table.hint_wins")),
        *[Column(view.axis_name(metric)) for metric in others],
        Column(say("table.latency"), hint=say("table.hint_latency")),
        Column(say("table.parameters"), hint=say("table.hint_parameters")),
        Column(say("table.flops"), hint=say("table.hint_flops")),
        Column(say("table.memory"), hint=say("table.hint_memory")),
        Column(say("table.seconds"), hint=say("table.hint_seconds")),
        Column(say("table.plugged"), is_text=True),
    ]
    tested = view.result.tested
    metric = view.metric_name(view.result.metric)
    caption = say(
        "table.caption" if tested else "table.caption_unknown", tested=tested, metric=metric
    )
    rows = [_show_arm(view, row, others) for row in view.result.rows]
    return Table("arms", tuple(columns), rows, caption, can_filter=len(rows) > 12)


def _show_arm(view: View, row: Row, others: tuple[str, ...]) -> list[Cell]:
    return [
        Cell(name_control(view, row), tone="control" if row.control else ""),
        _show_label(view, row),
        *_show_numbers(view, row),
        *[Cell(fixed(row.metrics.get(name)), row.metrics.get(name)) for name in others],
        _show_latency(row),
        Cell(
            whole(row.parameters or None),
            row.parameters,
            f"({row.added:+,})" if row.added else "",
        ),
        Cell(scaled(row.flops or None), row.flops),
        Cell(scaled(row.memory, "B"), row.memory),
        Cell(seconds(row.seconds), row.seconds),
        Cell(NOTHING if row.places == "-" else clean(row.places)),
    ]


def _show_label(view: View, row: Row) -> Cell:
    if row.verdict is None or row.control is not None:
        return Cell(NOTHING, "")
    return Cell(view.say(f"verdict.{row.verdict.label}"), tone=row.verdict.label)


def _show_numbers(view: View, row: Row) -> list[Cell]:
    interval, d, digits = row.interval, row.difference, view.digits
    around = f"[{fixed(interval.low, digits)}, {fixed(interval.high, digits)}]" if interval else ""
    mean = Cell(fixed(row.mean, digits), row.mean, around)
    if d is None:
        return [mean, Cell(NOTHING), Cell(NOTHING), Cell(NOTHING)]
    gain = span(d.interval.low, d.interval.high, digits)
    is_counted = row.control is None  # a control is no member of the family that Holm corrects
    return [
        mean,
        Cell(signed(d.mean, digits), d.mean, gain),
        Cell(p_value(d.p_corrected), d.p_corrected) if is_counted else Cell(NOTHING),
        Cell(share(d.wins), d.wins),
    ]


def _show_latency(row: Row) -> Cell:
    if row.latency is None:
        return Cell(NOTHING)
    around = f"[{fixed(row.latency.low)}, {fixed(row.latency.high)}]"
    return Cell(times(row.latency.ratio), row.latency.ratio, around)


def _list_tests(view: View) -> Table:
    say = view.say
    margin = fixed(view.result.margin, view.digits)
    columns = (
        Column(say("table.variant"), is_text=True),
        Column(say("fine.p_t")),
        Column(say("fine.p_flip")),
        Column(say("fine.p_equivalent"), hint=say("fine.hint_p_equivalent")),
        Column(say("fine.detectable"), hint=say("fine.hint_detectable")),
        Column(say("fine.needed", margin=margin), hint=say("fine.hint_needed")),
        Column(say("fine.beyond"), hint=say("fine.hint_beyond")),
    )
    rows = [_show_tests(view, row) for row in view.result.rows if row.difference is not None]
    return Table("tests", columns, rows, say("fine.caption"), can_filter=len(rows) > 12)


def _show_tests(view: View, row: Row) -> list[Cell]:
    d = row.difference
    if d is None:
        return []
    wide = d.generality
    return [
        Cell(name_control(view, row), tone="control" if row.control else ""),
        Cell(p_value(d.p), d.p),
        Cell(p_value(d.p_flip), d.p_flip),
        Cell(p_value(d.p_equivalent), d.p_equivalent),
        Cell(fixed(d.detectable, view.digits), d.detectable),
        Cell(whole(d.seeds_for_margin), d.seeds_for_margin),
        Cell(
            span(wide.low, wide.high, view.digits) if wide else NOTHING, wide.low if wide else None
        ),
    ]
