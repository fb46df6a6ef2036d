"""The figures of a report, as SVG text."""

import io
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator, NullFormatter
from scipy import stats

from torchplug.comparison import BASELINE, Run

# Okabe and Ito's colors, which color-blind readers can tell apart; black is the baseline
COLORS = ("#000000", "#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")
_MARKERS = ("o", "s", "^", "D", "v", "P", "X")
_STYLE: dict[Any, Any] = {
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans"],
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#e5e5e5",
    "grid.linewidth": 0.8,
    "axes.axisbelow": True,
    "svg.fonttype": "none",  # real text: it can be searched, copied and read aloud
    "svg.hashsalt": "torchplug",  # the same run gives the same file
    "text.parse_math": False,  # a variant's name may hold a dollar sign
}


@contextmanager
def _axes(width: float, height: float) -> Iterator[tuple[Figure, Axes]]:
    with mpl.rc_context(_STYLE):
        figure = Figure(figsize=(width, height), layout="constrained")
        yield figure, figure.add_subplot()


def _to_svg(figure: Figure) -> str:
    buffer = io.StringIO()
    with mpl.rc_context(_STYLE):
        figure.savefig(buffer, format="svg", metadata={"Date": None}, transparent=True)
    text = buffer.getvalue()
    return text[text.index("<svg") :]


def _color(index: int) -> str:
    return COLORS[index % len(COLORS)]


def _marker(index: int) -> str:
    return _MARKERS[index % len(_MARKERS)]


def draw_differences(run: Run) -> str:
    """Draw each variant's paired difference with its intervals, over the margin's band."""
    rows = [(i, row) for i, row in enumerate(run.result.rows) if row.difference is not None]
    with _axes(7.2, 1.3 + 0.5 * len(rows)) as (figure, axes):
        margin = run.result.margin
        axes.axvspan(-margin, margin, color="#f0f0f0", zorder=0)
        axes.axvline(0, color="#555555", linewidth=1)
        for position, (index, row) in enumerate(reversed(rows)):
            d = row.difference
            if d is None:  # the baseline, left out above
                continue
            wide, narrow = d.corrected_interval, d.interval
            color = _color(index)
            axes.plot([wide.low, wide.high], [position] * 2, color=color, linewidth=1)
            axes.plot([narrow.low, narrow.high], [position] * 2, color=color, linewidth=4)
            axes.plot(d.mean, position, marker=_marker(index), color=color, markersize=8)
        axes.set_yticks(range(len(rows)), [row.variant for _, row in reversed(rows)])
        axes.set_ylim(-0.6, len(rows) - 0.4)
        axes.grid(visible=False, axis="y")
        axes.set_xlabel("difference to the baseline, points of accuracy")
        return _to_svg(figure)


def draw_seeds(run: Run) -> str:
    """Draw the accuracy of every trial, the trials of one seed joined by a line."""
    rows = run.result.rows
    with _axes(5.4, 3.6) as (figure, axes):
        places = np.arange(len(rows))
        for values in zip(*(row.accuracies for row in rows), strict=True):
            axes.plot(places, values, color="#c4c4c4", linewidth=1, zorder=1)
        for index, row in enumerate(rows):
            x = np.full(len(row.accuracies), index)
            color, marker = _color(index), _marker(index)
            axes.scatter(x, row.accuracies, s=28, zorder=2, color=color, marker=marker)
            axes.plot([index - 0.18, index + 0.18], [row.mean] * 2, color=_color(index), lw=2.5)
        axes.set_xticks(places, [row.variant for row in rows])
        axes.set_xlim(-0.5, len(rows) - 0.5)
        axes.grid(visible=False, axis="x")
        axes.set_ylabel("test accuracy, %")
        return _to_svg(figure)


def draw_cost(run: Run) -> str:
    """Draw accuracy against parameters, with the interval of the mean."""
    with _axes(5.4, 3.6) as (figure, axes):
        for index, row in enumerate(run.result.rows):
            low, high = row.mean - row.interval.low, row.interval.high - row.mean
            axes.errorbar(
                row.parameters / 1e3,
                row.mean,
                yerr=[[low], [high]],
                color=_color(index),
                marker=_marker(index),
                markersize=8,
                capsize=4,
                label=row.variant,
            )
        axes.set_xlabel("parameters, thousands")
        axes.set_ylabel("mean test accuracy, %")
        axes.margins(x=0.15)
        axes.legend(frameon=False)
        return _to_svg(figure)


def draw_curves(run: Run, quantity: str, label: str) -> str:
    """Draw a learning curve a variant: the mean over the seeds, and its 95 % band."""
    with _axes(5.4, 3.6) as (figure, axes):
        for index, row in enumerate(run.result.rows):
            curves = _read_curves(run, row.variant, quantity)
            epochs = np.arange(1, curves.shape[1] + 1)
            mean = curves.mean(0)
            error = curves.std(0, ddof=1) / len(curves) ** 0.5
            reach = stats.t.ppf(0.975, len(curves) - 1) * error
            style = "--" if row.variant == BASELINE else "-"
            axes.plot(epochs, mean, style, color=_color(index), label=row.variant, linewidth=1.6)
            axes.fill_between(
                epochs, mean - reach, mean + reach, color=_color(index), alpha=0.1, linewidth=0
            )
        if quantity == "loss":
            axes.set_yscale("log")
            axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
            axes.yaxis.set_minor_formatter(NullFormatter())
        else:
            # the first epochs would flatten what is of interest
            top = max(_read_curves(run, row.variant, quantity).max() for row in run.result.rows)
            ends = [_read_curves(run, row.variant, quantity).mean(0) for row in run.result.rows]
            floor = min(float(np.median(curve)) for curve in ends)
            axes.set_ylim(floor - (top - floor), top + 0.1 * (top - floor) + 0.1)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.set_xlabel("epoch")
        axes.set_ylabel(label)
        axes.legend(frameon=False)
        return _to_svg(figure)


def _read_curves(run: Run, variant: str, quantity: str) -> Any:
    """The curves of a variant, ``(seeds, epochs)``."""
    chosen: Sequence[Any] = [
        record
        for record in run.records
        if record["variant"] == variant and record["seed"] in run.result.seeds
    ]
    return np.array([[point[quantity] for point in record["curve"]] for record in chosen])
