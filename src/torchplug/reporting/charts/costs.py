"""What accuracy costs: time measured, and operations counted."""

from collections.abc import Sequence
from dataclasses import dataclass

from torchplug.comparison.result import Row
from torchplug.reporting.charts.canvas import (
    INK,
    SOFT,
    Chart,
    series_color,
    series_marker,
    shorten,
)
from torchplug.reporting.numbers import fixed, scaled
from torchplug.reporting.sentences import name_control
from torchplug.reporting.view import View

_SHAPES = {"parameters": "o", "latency": "s", "placebo": "D"}


Cost = tuple[float, tuple[float, float], str]
"""Place on the axis, how far it reaches to both sides, and how it is said."""


@dataclass(frozen=True)
class _Point:
    name: str
    index: int
    """Of the series; -1 is a control."""

    shape: str

    cost: float
    reach: tuple[float, float]
    value: float
    spread: tuple[float, float]
    said: str


def draw_by_latency(view: View, metric: str) -> str | None:
    """Draw the metric against measured time, with intervals on both axes."""
    points = []
    for row, index in _candidates(view):
        if row.latency is None:
            continue
        ratio = row.latency
        reach = (max(ratio.ratio - ratio.low, 0.0), max(ratio.high - ratio.ratio, 0.0))
        said = f"{ratio.milliseconds:.3g} ms, {ratio.ratio:.2f} x"
        points.append(_make_point(view, row, index, metric, (ratio.ratio, reach, said)))
    label = view.say("figure.latency")
    return _draw(view, metric, [point for point in points if point], label, "latency")


def draw_by_flops(view: View, metric: str) -> str | None:
    """Draw the metric against operations counted."""
    points = [
        _make_point(
            view, row, index, metric, (row.flops / 1e6, (0.0, 0.0), scaled(row.flops, "FLOPs"))
        )
        for row, index in _candidates(view)
        if row.flops
    ]
    label = view.say("figure.flops")
    return _draw(view, metric, [point for point in points if point], label, "flops")


def _candidates(view: View) -> list[tuple[Row, int]]:
    controls = [row for row in view.controls if row.control not in {"again", None}][:8]
    return [*((row, i) for i, row in enumerate(view.shown)), *((row, -1) for row in controls)]


def _make_point(view: View, row: Row, index: int, metric: str, cost: Cost) -> _Point | None:
    mean, interval = view.mean_of(row, metric), view.interval_of(row, metric)
    if mean is None or interval is None:
        return None
    spread = (mean - interval.low, interval.high - mean)
    at, reach, said = cost
    name = name_control(view, row)
    shape = series_marker(index) if index >= 0 else _SHAPES.get(row.control or "", "o")
    return _Point(name, index, shape, at, reach, mean, spread, f"{name}: {fixed(mean)}, {said}")


def _draw(view: View, metric: str, points: Sequence[_Point], label: str, kind: str) -> str | None:
    if len(points) < 2:
        return None
    chart = Chart(height=3.4)
    axes = chart.axes
    _draw_front(chart, points, view.result.goal)
    for point in points:
        is_control = point.index < 0
        color = SOFT if is_control else series_color(point.index)
        bars = axes.errorbar(
            point.cost,
            point.value,
            xerr=[[point.reach[0]], [point.reach[1]]] if any(point.reach) else None,
            yerr=[[point.spread[0]], [point.spread[1]]],
            color=color,
            marker=point.shape,
            markersize=5.5 if is_control else 6.5,
            markerfacecolor="none" if is_control else color,
            elinewidth=1.1,
            linestyle="",
            label=shorten(point.name),
        )
        chart.note(bars.lines[0], point.said)
    axes.set_xlabel(label)
    axes.set_ylabel(view.axis_name(metric))
    axes.margins(x=0.12, y=0.12)
    if view.limits:
        chart.cut("y", *view.limits)
    chart.legend()
    return chart.to_svg(f"{kind}-{metric}", view.say(f"{kind}.title"))


def _draw_front(chart: Chart, points: Sequence[_Point], goal: str) -> None:
    """Join what nothing else beats in both: the cheapest, then each that is better and dearer."""
    sign = 1.0 if goal == "max" else -1.0
    front: list[_Point] = []
    for point in sorted(points, key=lambda point: (point.cost, -sign * point.value)):
        if not front or sign * point.value > sign * front[-1].value:
            front.append(point)
    if len(front) > 1:
        chart.axes.plot(
            [point.cost for point in front],
            [point.value for point in front],
            color=INK,
            linewidth=0.8,
            linestyle=(0, (1, 2)),
            zorder=0.5,
            drawstyle="steps-post",
        )
