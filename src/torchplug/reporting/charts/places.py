"""The heat map of stages and modules, where the variants span one."""

from collections.abc import Mapping

import numpy as np

from torchplug.comparison.result import Row
from torchplug.reporting.charts.canvas import INK, LINE, TONES, Chart, shorten
from torchplug.reporting.numbers import signed, span
from torchplug.reporting.view import View, clean

_LARGEST = 12


def find_places(view: View) -> dict[tuple[str, str], Row]:
    """Return the variant of each module in each stage; empty if they do not make a grid.

    A variant takes part if all its plugs are of one module, in one stage or in one role.
    """
    found: dict[tuple[str, str], Row] = {}
    for row in view.variants:
        plan = view.run.plans.get(row.variant)
        if plan is None or not plan.plugs or row.difference is None:
            continue
        modules = {plug.module for plug in plan.plugs}
        stages = {plug.stage for plug in plan.plugs}
        if len(modules) != 1:
            continue
        (module,) = modules
        stage = stages.pop() if len(stages) == 1 else None
        roles = sorted({plug.role for plug in plan.plugs})
        place = view.say("places.stage", n=stage) if stage is not None else " + ".join(roles)
        found.setdefault((place, module), row)
    rows, columns = ({key[i] for key in found} for i in (0, 1))
    is_grid = len(rows) > 1 and len(found) > 2 and max(len(rows), len(columns)) <= _LARGEST
    return found if is_grid else {}


def draw_places(view: View, found: Mapping[tuple[str, str], Row]) -> str:
    """Draw the gain of each module in each place, as color and as number."""
    places = sorted({place for place, _ in found})
    modules = sorted({module for _, module in found})
    effects = {key: row.difference.mean for key, row in found.items() if row.difference}
    largest = max((abs(effect) for effect in effects.values()), default=1.0) or 1.0
    chart = Chart(height=0.7 + 0.42 * len(places))
    axes = chart.axes
    digits = view.digits
    for (place, module), row in found.items():
        if row.difference is None:
            continue
        effect, interval = row.difference.mean, row.difference.interval
        x, y = modules.index(module), len(places) - 1 - places.index(place)
        color = TONES["equivalent"] if effect >= 0 else TONES["worse"]
        strength = 0.08 + 0.5 * abs(effect) / largest
        (cell,) = axes.fill(
            np.array([-0.48, 0.48, 0.48, -0.48]) + x,
            np.array([-0.45, -0.45, 0.45, 0.45]) + y,
            color=color,
            alpha=strength,
            linewidth=0,
        )
        said = f"{signed(effect, digits)} {span(interval.low, interval.high, digits)}"
        chart.note(cell, f"{clean(row.variant)}: {said}")
        is_sure = interval.low > 0 or interval.high < 0
        weight = "bold" if is_sure else "normal"
        axes.text(x, y, signed(effect, digits), ha="center", va="center", color=INK, weight=weight)
    axes.set_xticks(range(len(modules)), [shorten(clean(name), 14) for name in modules])
    axes.set_yticks(range(len(places)), [shorten(clean(name), 18) for name in reversed(places)])
    axes.set_xlim(-0.5, len(modules) - 0.5)
    axes.set_ylim(-0.5, len(places) - 0.5)
    axes.grid(visible=False)
    for spine in axes.spines.values():
        spine.set_visible(False)
    axes.axhline(-0.5, color=LINE, linewidth=0.6)
    return chart.to_svg("places", view.say("places.title"))
