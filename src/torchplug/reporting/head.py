"""The first lines of a report: what was asked, of what, and how much was run."""

from dataclasses import dataclass

from torchplug.reporting.numbers import seconds
from torchplug.reporting.view import View, clean

_MOST_NAMES = 3


@dataclass(frozen=True)
class Head:
    """Title, question and facts of a report."""

    title: str
    question: str
    facts: str


def make_head(view: View) -> Head:
    """Return the head; the question names the variants where they fit."""
    say, comparison = view.say, view.comparison
    model, data = clean(comparison.model), clean(comparison.data)
    names = [clean(row.variant) for row in view.variants]
    if len(names) <= _MOST_NAMES:
        most = say("list.names").join(names[:-1])
        joined = say("list.or").join([most, names[-1]] if most else names)
        question = say("lead_single", names=joined, model=model)
    else:
        question = say("lead_many", n=len(names), model=model)
    time = sum(timing.get("seconds") or 0.0 for timing in view.run.timings.values())
    facts = say(
        "facts_line",
        data=data,
        metric=view.metric_name(view.result.metric),
        seeds=len(view.result.seeds),
        trials=f"{len(view.run.records):,}",
        time=say("time_trained", time=seconds(time)) if time else "",
    )
    return Head(say("title", model=model, data=data), question, facts)
