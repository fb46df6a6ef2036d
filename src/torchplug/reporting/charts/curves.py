"""Learning curves, by epoch and by time, and the curve of power."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter
from scipy import stats

from torchplug.comparison.planning import find_power
from torchplug.comparison.result import Row
from torchplug.reporting.charts.canvas import (
    INK,
    SOFT,
    Chart,
    series_color,
    series_marker,
    shorten,
)
from torchplug.reporting.numbers import fixed
from torchplug.reporting.view import Array, View, clean

_MOST_SEEDS = 1000


@dataclass(frozen=True)
class Curve:
    """What one arm did over the epochs."""

    mean: Array
    reach: Array
    """Half the 95 % interval of the mean; nothing where there is one seed."""

    clock: Array | None
    """Mean time at the end of each epoch, in seconds; ``None`` if nobody measured."""


def read_curve(view: View, row: Row, quantity: str) -> Curve | None:
    """Return the mean curve of an arm over its seeds."""
    records = dict(list(view.records_of(row.variant).items())[:_MOST_SEEDS])
    curves = {seed: _read_points(record, quantity) for seed, record in records.items()}
    length = min((len(curve) for curve in curves.values()), default=0)
    if length == 0:
        return None
    table = np.array([curve[:length] for curve in curves.values()])
    reach = np.zeros(length)
    if len(table) > 1:
        error = table.std(0, ddof=1) / len(table) ** 0.5
        reach = stats.t.ppf(0.975, len(table) - 1) * error
    return Curve(table.mean(0), reach, _read_clock(view, row.variant, list(curves), length))


def _read_points(record: Mapping[str, Any], quantity: str) -> list[float]:
    curve = record.get("curve")
    if isinstance(curve, np.ndarray) and curve.dtype.names and quantity in curve.dtype.names:
        return curve[quantity].tolist()
    points = [point.get(quantity) for point in curve] if isinstance(curve, list) else []
    return [] if any(point is None for point in points) else points


def _read_clock(view: View, variant: str, seeds: list[int], length: int) -> Array | None:
    clocks = [view.timing_of(variant, seed).get("epoch_seconds") for seed in seeds]
    whole = [
        np.cumsum(each[:length]) for each in clocks if each is not None and len(each) >= length
    ]
    return np.mean(whole, axis=0) if whole else None


def draw_curves(view: View, quantity: str, *, by_time: bool = False) -> str | None:
    """Draw a learning curve a variant: the mean over the seeds, and its 95 % band."""
    found = [(i, row, read_curve(view, row, quantity)) for i, row in enumerate(view.shown)]
    curves = [(i, row, curve) for i, row, curve in found if curve is not None]
    if by_time:
        curves = [(i, row, curve) for i, row, curve in curves if curve.clock is not None]
    if not curves:
        return None
    chart = Chart(height=3.1)
    scale, unit = _choose_clock([curve for _, _, curve in curves])
    for index, row, curve in curves:
        x: Any = np.arange(1, len(curve.mean) + 1)
        if by_time and curve.clock is not None:
            x = curve.clock / scale
        _draw_curve(chart, x, curve, index, clean(row.variant))
    kind = "time" if by_time else "epoch"
    _set_range(chart, [curve for _, _, curve in curves], quantity)
    if quantity != "loss" and view.limits:
        chart.cut("y", *view.limits)
    label = view.say(f"figure.{unit}") if by_time else view.say("figure.epoch")
    chart.axes.set_xlabel(label)
    chart.axes.set_ylabel(view.say(f"figure.{quantity}", metric=view.axis_name(view.result.metric)))
    if not by_time:
        chart.axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    chart.legend()
    return chart.to_svg(f"{quantity}-{kind}", view.say(f"curves.{quantity}_{kind}"))


def _choose_clock(curves: list[Curve]) -> tuple[float, str]:
    longest = max(
        (float(curve.clock[-1]) for curve in curves if curve.clock is not None), default=0
    )
    if longest < 180:
        return 1.0, "seconds"
    return (60.0, "minutes") if longest < 10_800 else (3600.0, "hours")


def _draw_curve(chart: Chart, x: Any, curve: Curve, index: int, name: str) -> None:
    color = series_color(index)
    style: Any = (0, (4, 2)) if index == 0 else "-"
    (line,) = chart.axes.plot(
        x,
        curve.mean,
        linestyle=style,
        color=color,
        linewidth=1.5,
        marker=series_marker(index),
        markersize=4,
        markevery=max(len(curve.mean) // 6, 1),
        label=shorten(name),
    )
    chart.note(line, f"{name}: {fixed(float(curve.mean[-1]))}")
    low, high = curve.mean - curve.reach, curve.mean + curve.reach
    chart.axes.fill_between(x, low, high, color=color, alpha=0.12, linewidth=0)


def _set_range(chart: Chart, curves: list[Curve], quantity: str) -> None:
    axes = chart.axes
    if quantity == "loss":
        if all(float(curve.mean.min()) > 0 for curve in curves):
            axes.set_yscale("log")
            axes.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
            axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
            axes.yaxis.set_minor_formatter(NullFormatter())
        return
    # the first epochs would flatten what is of interest
    top = max(float((curve.mean + curve.reach).max()) for curve in curves)
    floor = min(float(np.median(curve.mean)) for curve in curves)
    ends = min(float((curve.mean - curve.reach)[-1]) for curve in curves)
    floor = min(floor, ends)
    axes.set_ylim(floor - 0.6 * (top - floor) - 0.05, top + 0.08 * (top - floor) + 0.05)


def draw_power(view: View) -> str | None:
    """Draw with which probability differences of each size would have been found."""
    spreads = [spread for row in view.variants if (spread := spread_of(view, row)) is not None]
    spread = float(np.median(spreads)) if spreads else 0.0
    if spread <= 0:
        return None
    family, seeds, margin = len(view.variants), len(view.result.seeds), view.result.margin
    found = [row.difference.detectable for row in view.variants if row.difference]
    top = max(2.5 * margin, *found)
    effects = np.linspace(0, 1.25 * top, 60)
    chart = Chart(height=2.9)
    axes = chart.axes
    for index, count in enumerate((seeds, 2 * seeds, 4 * seeds)):
        power = [100 * value for value in find_power(effects.tolist(), count, family, spread)]
        (line,) = axes.plot(
            effects,
            power,
            color=INK,
            linewidth=(2.0, 1.3, 0.8)[index],
            linestyle=("-", (0, (4, 2)), (0, (1, 1.5)))[index],
            label=view.say("power.seeds", n=count),
        )
        chart.note(line, view.say("power.seeds", n=count))
    axes.axhline(80, color=SOFT, linewidth=0.8)
    axes.axvline(margin, color=SOFT, linewidth=0.8)
    name = view.say("power.margin")
    axes.annotate(name, (margin, 3), (3, 0), textcoords="offset points", fontsize=7.5, color=SOFT)
    axes.set_ylim(0, 102)
    axes.set_xlim(0, effects[-1])
    axes.set_xlabel(view.with_unit(view.say("power.effect")))
    axes.set_ylabel(view.say("power.chance"))
    chart.legend(columns=3)
    return chart.to_svg("power", view.say("power.title"))


def spread_of(view: View, row: Row) -> float | None:
    """Return the standard deviation of the paired differences of a variant."""
    if row.difference is None:
        return None
    base = view.values_of(view.baseline, view.result.metric)
    mine = view.values_of(row, view.result.metric)
    gains = [mine[seed] - base[seed] for seed in mine if seed in base]
    return float(np.std(gains, ddof=1)) if len(gains) > 1 else None
