"""One self-contained page from the files of a run, with Markdown, JSON and CSV beside it."""

import base64
import hashlib
import json
from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

from torchplug._version import __version__
from torchplug.comparison import Run, load_run
from torchplug.comparison.result import to_json
from torchplug.comparison.store import write_text
from torchplug.errors import UsageError, explain
from torchplug.reporting.blocks import Block, Picture, Section
from torchplug.reporting.head import Head, make_head
from torchplug.reporting.language import Wording, load_wording
from torchplug.reporting.markdown import render_markdown
from torchplug.reporting.sections import build_sections
from torchplug.reporting.trials import list_trials, write_csv
from torchplug.reporting.view import View


def write_report(directory: str | Path, lang: str = "en") -> Path:
    """Write ``report.html`` into the directory of a run and return its path.

    The page holds its figures, styles and a small script, needs no network, reads the same with
    scripts off, and prints well. ``report.md``, ``summary.json`` and ``trials.csv`` come beside it.
    The same run gives the same files.

    Args:
        directory: what ``torchplug compare`` wrote, such as ``runs/demo``.
        lang: ``"en"`` or ``"zh"``.

    Raises:
        UsageError: if the directory holds no finished run, or the language is not known; nothing
            is written then.
    """
    wording = load_wording(lang)
    root = Path(directory)
    if not root.is_dir():
        fix = "name a directory that torchplug compare wrote, such as runs/demo"
        raise UsageError(explain("a report needs the directory of a run", repr(str(root)), fix))
    for name, text in render_report(load_run(root), wording).items():
        write_text(root / name, text)
    return root / "report.html"


def render_report(run: Run, wording: Wording) -> dict[str, str]:
    """Return the text of every file of a report by its name, ``report.html`` last."""
    view = View(run, wording)
    head, sections = make_head(view), build_sections(view)
    return {
        "trials.csv": write_csv(list_trials(view)),
        "summary.json": to_json(run.result),
        "report.md": render_markdown(head, sections),
        "report.html": render_page(view, head, sections),
    }


def render_page(view: View, head: Head, sections: Sequence[Section]) -> str:
    """Return the page as text."""
    # names of variants come from the command line: everything is escaped but our own SVG
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("torchplug.reporting", "templates"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    script = _read("script.js")
    environment.globals.update(
        say=view.say, kind=_name_kind, svg=_trust_svg, lang=view.say.lang, version=__version__
    )
    return environment.get_template("page.html").render(
        head=head,
        sections=sections,
        style=Markup(_read("style.css")),
        script=Markup(script),
        script_hash=Markup(_hash_script(script)),
        data=Markup(_embed(_describe(view))),
    )


def _read(name: str) -> str:
    return (files("torchplug.reporting") / "templates" / name).read_text(encoding="utf-8")


def _name_kind(block: Block) -> str:
    return type(block).__name__


def _trust_svg(picture: Picture) -> Markup:
    # the canvas escapes every text that it writes
    return Markup(picture.svg)


def _hash_script(script: str) -> str:
    """Return what the page's policy allows: this script and no other, whatever a name holds."""
    digest = hashlib.sha256(script.encode()).digest()
    return f"sha256-{base64.b64encode(digest).decode()}"


def _describe(view: View) -> dict[str, Any]:
    words = {key: view.say(f"ui.{key}") for key in ("filter", "filter_hint", "metric")}
    words |= {key: view.say.texts[f"ui.{key}"] for key in ("shown", "sort")}
    names = {metric: view.metric_name(metric) for metric in view.metrics}
    rows = [
        {
            "variant": row.variant,
            "verdict": row.verdict.label if row.verdict else None,
            "mean": row.mean,
            "difference": row.difference.mean if row.difference else None,
        }
        for row in view.result.rows
    ]
    result = view.result
    summary = {"metric": result.metric, "margin": result.margin, "rows": rows}
    return {"words": {**words, "metrics": names}, "summary": summary}


def _embed(content: Any) -> str:
    """Return JSON that cannot end the script element that it stands in."""
    text = json.dumps(content, ensure_ascii=True, sort_keys=True)
    for character in "<>&":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return text
