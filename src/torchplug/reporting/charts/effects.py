"""Differences to the baseline, and the trials that they come from."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from torchplug.comparison.result import Row
from torchplug.reporting.charts.canvas import (
    BAND,
    INK,
    SOFT,
    TONES,
    Chart,
    series_color,
    series_marker,
    shorten,
)
from torchplug.reporting.numbers import fixed, signed, span
from torchplug.reporting.sentences import name_control
from torchplug.reporting.view import View, clean

MOST_ROWS = 40
MOST_SEEDS = 60
_SHAPES = {"better": "^", "worse": "v", "equivalent": "s", "undecided": "o"}


def draw_forest(view: View, metric: str) -> str:
    """Draw every arm's paired difference with its intervals, over the margin's band."""
    rows = forest_rows(view)
    decides = metric == view.result.metric
    chart = Chart(height=0.85 + 0.3 * len(rows))
    axes = chart.axes
    if decides:
        axes.axvspan(-view.result.margin, view.result.margin, color=BAND, zorder=0, linewidth=0)
    axes.axvline(0, color=SOFT, linewidth=1)
    for place, row in enumerate(reversed(rows)):
        _draw_effect(chart, view, row, metric, place)
    names = [shorten(name_control(view, row), 22) for row in reversed(rows)]
    axes.set_yticks(range(len(rows)), names)
    axes.set_ylim(-0.6, len(rows) - 0.4)
    _cut_gains(chart, view)
    axes.grid(visible=False, axis="y")
    axes.spines["left"].set_visible(False)
    axes.set_xlabel(view.with_unit(view.say("figure.gain", metric=view.metric_name(metric))))
    return chart.to_svg(f"forest-{metric}", view.say("forest.title"))


def _cut_gains(chart: Chart, view: View) -> None:
    if view.limits:
        reach = view.limits[1] - view.limits[0]
        chart.cut("x", -reach, reach)


def forest_rows(view: View) -> list[Row]:
    """Return what the forest holds: variants, each with its controls below, as many as fit."""
    placed: list[Row] = []
    for row in view.variants:
        mine = [control for control in view.controls if control.of == row.variant]
        placed += [each for each in (row, *mine) if each.difference is not None]
    rest = [row for row in view.controls if row not in placed and row.difference is not None]
    return [*placed[: MOST_ROWS - len(rest)], *rest]


def _draw_effect(chart: Chart, view: View, row: Row, metric: str, place: int) -> None:
    effect, axes = view.effect_of(row, metric), chart.axes
    if effect is None or row.difference is None:
        return
    label = row.verdict.label if row.verdict and row.control is None else "undecided"
    decides = metric == view.result.metric
    color = TONES.get(label, SOFT) if decides else INK
    low, high = effect.interval.low, effect.interval.high
    if decides and row.control is None:
        wide = row.difference.corrected_interval
        axes.plot([wide.low, wide.high], [place] * 2, color=color, linewidth=0.9)
    width = 3.0 if row.control is None else 1.2
    axes.plot([low, high], [place] * 2, color=color, linewidth=width, solid_capstyle="butt")
    is_hollow = row.control is not None
    (point,) = axes.plot(
        effect.mean,
        place,
        marker=_SHAPES.get(label, "o") if decides else "o",
        color=color,
        markersize=6.5,
        markerfacecolor="none" if is_hollow else color,
        markeredgewidth=1.2,
    )
    digits = view.digits
    said = f"{signed(effect.mean, digits)} {span(low, high, digits)}"
    chart.note(point, f"{name_control(view, row)}: {said}")
    axes.annotate(
        said,
        (1.0, place),
        xycoords=("axes fraction", "data"),
        xytext=(6, 0),
        textcoords="offset points",
        va="center",
        fontsize=7.5,
        color=SOFT,
        annotation_clip=False,
    )


def draw_seeds(view: View, metric: str) -> str:
    """Draw the value of every trial, the trials of one seed joined by a line."""
    rows = view.shown
    chart = Chart(height=3.1)
    axes = chart.axes
    values = [view.values_of(row, metric) for row in rows]
    seeds = view.result.seeds[:MOST_SEEDS]
    for seed in seeds:
        line = [each.get(seed, np.nan) for each in values]
        axes.plot(range(len(rows)), line, color=SOFT, linewidth=0.7, alpha=0.45, zorder=1)
    has_notes = len(seeds) * len(rows) <= 200
    for index, row in enumerate(rows):
        color, marker = series_color(index), series_marker(index)
        for seed in seeds if has_notes else ():
            if seed in values[index]:
                style: Any = {"marker": marker, "color": color, "markersize": 4.5, "linestyle": ""}
                (point,) = axes.plot(index, values[index][seed], zorder=2, **style)
                text = view.say("seeds.note", seed=seed, value=fixed(values[index][seed]))
                chart.note(point, f"{clean(row.variant)}, {text}")
        if not has_notes:
            few = [values[index].get(seed, np.nan) for seed in seeds]
            axes.plot([index] * len(few), few, marker, color=color, markersize=3.5, zorder=2)
        mean = view.mean_of(row, metric)
        if mean is not None:
            axes.plot([index - 0.22, index + 0.22], [mean] * 2, color=color, linewidth=2)
    label_series(chart, [row.variant for row in rows])
    axes.set_ylabel(view.axis_name(metric))
    return chart.to_svg(f"seeds-{metric}", view.say("seeds.title"))


def label_series(chart: Chart, names: Sequence[str]) -> None:
    """Name the places on the x axis, slanted where names are long."""
    texts = [shorten(clean(name), 16) for name in names]
    is_tight = sum(map(len, texts)) > 44
    chart.axes.set_xticks(range(len(texts)), texts)
    if is_tight:
        for label in chart.axes.get_xticklabels():
            label.set(rotation=30, ha="right", rotation_mode="anchor", fontsize=7.5)
    chart.axes.set_xlim(-0.5, len(texts) - 0.5)
    chart.axes.grid(visible=False, axis="x")


def draw_again(view: View, row: Row) -> str:
    """Draw the differences of the baseline to itself, run again with fresh random streams."""
    metric = view.result.metric
    base, again = view.values_of(view.baseline, metric), view.values_of(row, metric)
    sign = 1.0 if view.result.goal == "max" else -1.0
    gains = {seed: sign * (again[seed] - base[seed]) for seed in base if seed in again}
    chart = Chart(height=2.1)
    axes = chart.axes
    axes.axvspan(-view.result.margin, view.result.margin, color=BAND, zorder=0, linewidth=0)
    axes.axvline(0, color=SOFT, linewidth=1)
    _draw_dots(chart, view, gains)
    effect = view.effect_of(row, metric)
    if effect is not None:
        ends = [effect.interval.low, effect.interval.high]
        axes.plot(ends, [-0.9, -0.9], color=INK, linewidth=3, solid_capstyle="butt")
        axes.plot(effect.mean, -0.9, "o", color=INK, markersize=6)
    axes.set_yticks([])
    _cut_gains(chart, view)
    axes.spines["left"].set_visible(False)
    axes.grid(visible=False, axis="y")
    axes.set_xlabel(view.with_unit(view.say("figure.gain", metric=view.metric_name(metric))))
    return chart.to_svg("again", view.say("again.title"))


def _draw_dots(chart: Chart, view: View, gains: dict[int, float]) -> None:
    """Stack one dot a seed: a histogram in which each trial can be pointed at."""
    numbers = np.array(list(gains.values()))
    width = max(float(np.ptp(numbers)) / 18, 1e-9)
    heights: dict[int, int] = {}
    top = 1
    if len(numbers) > 4 * MOST_SEEDS:
        chart.axes.hist(numbers, bins=31, color=SOFT, alpha=0.6)
        return
    for seed, gain in gains.items():
        column = round(gain / width)
        heights[column] = heights.get(column, -1) + 1
        top = max(top, heights[column])
        (dot,) = chart.axes.plot(gain, heights[column], "o", color=SOFT, markersize=4.5, alpha=0.8)
        if len(numbers) <= MOST_SEEDS:
            said = view.say("seeds.note", seed=seed, value=signed(gain, view.digits))
            chart.note(dot, said)
    chart.axes.set_ylim(-1.6, top + 0.8)
