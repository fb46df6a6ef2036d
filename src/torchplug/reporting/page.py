"""One self-contained HTML page from the files of a run."""

import shlex
from importlib.resources import files
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

from torchplug.catalog import cards
from torchplug.comparison import Run, load_run
from torchplug.comparison.store import write_text
from torchplug.errors import UsageError, explain
from torchplug.reporting import figures


def write_report(directory: str | Path) -> Path:
    """Write ``report.html`` into the directory of a run and return its path.

    The page holds its figures and styles, needs no network and no script, and prints well.

    Raises:
        UsageError: if the directory holds no finished run.
    """
    root = Path(directory)
    if not root.is_dir():
        fix = "name a directory that torchplug compare wrote, such as runs/demo"
        raise UsageError(explain("a report needs the directory of a run", repr(str(root)), fix))
    path = root / "report.html"
    write_text(path, render_report(load_run(root)))
    return path


def render_report(run: Run) -> str:
    """Return the page as text."""
    template = files("torchplug.reporting") / "templates" / "report.html"
    # names of variants come from the command line: everything is escaped but our own SVG
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined)
    environment.filters["signed"] = "{:+.2f}".format
    environment.filters["fixed"] = "{:.2f}".format
    environment.filters["thousands"] = "{:,}".format
    page = environment.from_string(template.read_text(encoding="utf-8"))
    return page.render(
        run=run,
        result=run.result,
        comparison=run.comparison,
        cards=cards(),
        figures=_draw(run),
        trials=_list_trials(run),
        recipe=vars(run.comparison.recipe),
        command=reproduce_command(run),
        minutes=sum(run.seconds.values()) / 60,
    )


def _draw(run: Run) -> dict[str, Markup]:
    drawn = {
        "differences": figures.draw_differences(run),
        "seeds": figures.draw_seeds(run),
        "cost": figures.draw_cost(run),
        "accuracy": figures.draw_curves(run, "validation_accuracy", "validation accuracy, %"),
        "loss": figures.draw_curves(run, "loss", "training loss"),
    }
    # matplotlib escapes the texts that it writes into an SVG
    return {name: Markup(svg) for name, svg in drawn.items()}


def _list_trials(run: Run) -> list[dict[str, Any]]:
    return [
        {
            "variant": record["variant"],
            "seed": record["seed"],
            "status": record["status"],
            "accuracy": record.get("accuracy"),
            "wrong": len(record["errors"]) if record.get("errors") is not None else None,
            "seconds": run.seconds.get((record["variant"], record["seed"])),
            "error": record.get("error", ""),
        }
        for record in run.records
    ]


def reproduce_command(run: Run) -> str:
    """Return the command line that gives these records again, with the default recipe."""
    comparison = run.comparison
    words = ["torchplug", "compare", "--model", comparison.model, "--data", comparison.data]
    for variant in comparison.variants:
        words += ["--plug", variant.name]
    words += ["--seeds", str(len(comparison.seeds)), "--epochs", str(comparison.recipe.epochs)]
    if comparison.image_size is not None:
        words += ["--image-size", str(comparison.image_size)]
    if comparison.margin is not None:
        words += ["--margin", str(comparison.margin)]
    return shlex.join(words)
