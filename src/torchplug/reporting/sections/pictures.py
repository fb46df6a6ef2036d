"""The figures, each with what to read from it."""

from torchplug.reporting.blocks import Block, Paragraph, Picture, Pictures, Section
from torchplug.reporting.charts.costs import draw_by_flops, draw_by_latency
from torchplug.reporting.charts.curves import draw_curves
from torchplug.reporting.charts.effects import (
    MOST_ROWS,
    MOST_SEEDS,
    draw_forest,
    draw_seeds,
    forest_rows,
)
from torchplug.reporting.charts.places import draw_places, find_places
from torchplug.reporting.numbers import fixed
from torchplug.reporting.view import MOST_SERIES, View


def tell_figures(view: View) -> Section:
    """Return the figures of every metric, and those of the training."""
    has_effects = any(row.difference for row in view.variants)
    metrics = view.metrics if has_effects else ()
    blocks: list[Block] = [Pictures(tuple(_draw_metric(view, metric))) for metric in metrics]
    if places := find_places(view):
        caption = view.say("places.caption")
        drawn = draw_places(view, places)
        blocks.append(Pictures((Picture("places", view.say("places.title"), drawn, caption),)))
    if pictures := _draw_training(view):
        blocks.append(Pictures(tuple(pictures)))
    if view.hides_some:
        blocks.append(Paragraph(view.say("curves.cut", n=MOST_SERIES - 1), "soft"))
    blocks.append(Paragraph(view.say("skip_chart"), "soft"))
    return Section("figures", view.say("figures.title"), tuple(blocks))


def _draw_metric(view: View, metric: str) -> list[Picture]:
    name = view.metric_name(metric)
    drawn = [
        ("forest", draw_forest(view, metric), _caption_forest(view, metric)),
        ("seeds", draw_seeds(view, metric), _caption_seeds(view)),
        ("latency", draw_by_latency(view, metric), view.say("latency.caption", metric=name)),
        ("flops", draw_by_flops(view, metric), view.say("flops.caption")),
    ]
    others = f" · {name}" if len(view.metrics) > 1 else ""
    return [
        Picture(f"{kind}-{metric}", view.say(f"{kind}.title") + others, svg, caption, metric)
        for kind, svg, caption in drawn
        if svg is not None
    ]


def _caption_forest(view: View, metric: str) -> str:
    if metric != view.result.metric:
        return view.say("forest.caption_other", metric=view.metric_name(metric))
    margin = view.amount(fixed(view.result.margin, view.digits))
    caption = view.say("forest.caption", n=len(view.variants), margin=margin)
    arms = sum(row.difference is not None for row in view.result.rows)
    if arms > MOST_ROWS:
        shown = len(forest_rows(view))
        caption = f"{caption} {view.say('forest.cut', shown=shown, all=arms)}"
    return caption


def _caption_seeds(view: View) -> str:
    caption = view.say("seeds.caption")
    if len(view.result.seeds) > MOST_SEEDS:
        caption = f"{caption} {view.say('seeds.cut', n=MOST_SEEDS)}"
    return caption


def _draw_training(view: View) -> list[Picture]:
    pictures = []
    for quantity in ("validation", "loss"):
        for by_time in (False, True):
            svg = draw_curves(view, quantity, by_time=by_time)
            if svg is None:
                continue
            kind = f"{quantity}_{'time' if by_time else 'epoch'}"
            caption = view.say("curves.caption_time" if by_time else "curves.caption")
            pictures.append(Picture(f"curve-{kind}", view.say(f"curves.{kind}"), svg, caption))
    return pictures
