"""The verdicts in words. English ones are the comparison's own; others are built from its data."""

import re

from torchplug.comparison.planning import ALPHA
from torchplug.comparison.result import Row
from torchplug.comparison.spec import FEWEST_SEEDS
from torchplug.comparison.statistics import Difference
from torchplug.comparison.verdict import SEEDS_FOR_VERDICT, fewest_deciding
from torchplug.reporting.numbers import fixed, p_value, signed, span
from torchplug.reporting.view import FINISHED, View, clean


def say_verdict(view: View, row: Row) -> str:
    """Return one arm's verdict, without its name; empty if it has none."""
    if row.verdict is None:
        return ""
    if view.say.lang == "en":
        sentence = row.verdict.sentence
        label = row.verdict.label
        # the page shows the label beside it
        return clean(sentence.removeprefix(f"{label}: ").removeprefix(f"{label} "))
    if row.verdict.label == "failed":
        reason = view.say("list.comma").join(_count_statuses(view, row))
        return view.say("sentence.failed", reason=reason)
    return _say(view, row, row.difference) if row.difference else ""


def _count_statuses(view: View, row: Row) -> list[str]:
    words = [(view.say.word("trials", name), count) for name, count in row.statuses.items()]
    return [view.say("trials.part", n=count, status=word) for word, count in words]


def _say(view: View, row: Row, d: Difference) -> str:
    label = row.verdict.label if row.verdict else "undecided"
    family = _family(view) if row.control is None else 1
    seeds = len(row.values)
    values = {"numbers": _numbers(view, d), "p": p_value(d.p_corrected), "n": seeds}
    if row.verdict and row.verdict.unbeaten:
        return view.say("sentence.matched", leads=_say_leads(view, row), **values)
    if label in {"better", "worse"}:
        values["numbers"] = _numbers(view, d, plain=True)
        return view.say(f"sentence.{label}", **values)
    if label == "equivalent":
        margin = view.amount(fixed(view.result.margin, view.digits))
        return view.say("sentence.equivalent", margin=margin, **values)
    if d.p <= ALPHA:
        return _say_tendency(view, d, seeds, family, values)
    by_t = view.say("sentence.by_t") if seeds < fewest_deciding(family) else ""
    detectable = view.amount(fixed(d.detectable, view.digits))
    advice = _advise(view, d, seeds)
    return view.say(
        "sentence.no_difference", detectable=detectable, by_t=by_t, advice=advice, **values
    )


def _family(view: View) -> int:
    return max(sum(row.difference is not None for row in view.variants), 1)


def _numbers(view: View, d: Difference, *, plain: bool = False) -> str:
    mean = fixed(abs(d.mean), view.digits) if plain else signed(d.mean, view.digits)
    return f"{view.amount(mean)} {span(d.interval.low, d.interval.high, view.digits)}"


def _say_leads(view: View, row: Row) -> str:
    leads = [
        view.say("sentence.lead", name=name_control(view, control), numbers=_numbers(view, lead))
        for control in view.controls
        if row.verdict and control.variant in row.verdict.unbeaten
        for lead in [control.lead]
        if lead is not None
    ]
    return view.say("list.comma").join(leads)


def _say_tendency(
    view: View, d: Difference, seeds: int, family: int, values: dict[str, object]
) -> str:
    side = view.say("sentence.ahead" if d.mean > 0 else "sentence.behind")
    least = 2 / 2**seeds * family
    told = {"side": side, "p_t": p_value(d.p), **values}
    if least > ALPHA:
        more = max(SEEDS_FOR_VERDICT, 2 * seeds)
        return view.say("sentence.tendency_few", least=f"{least:.2g}", more=more, **told)
    return view.say("sentence.tendency", more=2 * seeds, **told)


def _advise(view: View, d: Difference, seeds: int) -> str:
    needed = d.seeds_for_margin
    if needed is None or needed <= seeds:
        return ""
    margin = view.amount(fixed(view.result.margin, view.digits))
    return view.say("sentence.advice", margin=margin, needed=needed)


def name_control(view: View, row: Row) -> str:
    """Return the name of an arm as readers see it: that of a control says what it is."""
    if view.say.lang == "en" or row.control is None:
        return clean(row.variant)
    kind = view.say.word("controls", row.control)
    if row.control == "again":
        return kind
    return view.say("controls.of", control=kind, name=clean(row.of))


def say_note(view: View) -> str:
    """Say what the number of seeds and of test images can and cannot show."""
    result = view.result
    if view.say.lang == "en":
        return result.note
    seeds, family = len(result.seeds), len(view.variants)
    kind = (
        view.say("sentence.screen", n=seeds, least=fewest_deciding(family))
        if seeds < SEEDS_FOR_VERDICT
        else view.say("sentence.fixed", n=seeds)
    )
    wide = view.say("sentence.wide", n=seeds) if seeds == FEWEST_SEEDS else ""
    parts = [kind, wide, view.say("sentence.compared", n=family), _say_images(view)]
    return "".join([*parts, view.say("sentence.holds")])


def _say_images(view: View) -> str:
    tested, accuracy = view.result.tested, view.baseline.mean
    if not tested:
        return ""
    records = view.records_of(view.baseline.variant).values()
    if accuracy is None or not any(record.get("errors") is not None for record in records):
        return view.say("sentence.images", n=tested)
    part = min(max(accuracy / 100, 0.0), 1.0)
    error = 100 * (part * (1 - part) / tested) ** 0.5
    shown = {"accuracy": fixed(accuracy, 1), "error": fixed(error)}
    return view.say("sentence.images_error", n=tested, **shown)


def say_stopped(view: View, row: Row) -> str:
    """Say why an arm has fewer seeds than the baseline."""
    if view.say.lang == "en":
        return row.stopped
    count = re.search(r"\d+", row.stopped)
    kind = next((name for name in ("futility", "budget") if name in row.stopped), "")
    if not kind or count is None:
        return row.stopped
    return view.say(f"sentence.{kind}", n=count.group(0))


def say_dropped(view: View, seed: int) -> str:
    """Say why a seed does not count."""
    if view.say.lang == "en":
        return clean(view.result.dropped[seed])
    reasons = []
    for row in (view.baseline, *view.variants):
        record = view.record_of(row.variant, seed)
        status = record["status"] if record else "missing"
        if status != FINISHED and row.mean is not None:
            reasons.append(f"{clean(row.variant)} {view.say.word('trials', status)}")
    return view.say("list.comma").join(reasons)
