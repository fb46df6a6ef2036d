"""What papers and libraries report of the modules that were compared."""

import tomllib
from functools import cache
from importlib.resources import files
from typing import Any

from torchplug.catalog import cards
from torchplug.reporting.blocks import Evidence, EvidenceEntry, Paragraph, Section
from torchplug.reporting.view import View, clean


@cache
def read_evidence() -> tuple[dict[str, Any], ...]:
    """Return all entries as they are stored."""
    path = files("torchplug.reporting") / "evidence.toml"
    return tuple(tomllib.loads(path.read_text(encoding="utf-8"))["entry"])


def tell_evidence(view: View) -> Section:
    """Return what is known of the modules of this comparison, and in general."""
    say = view.say
    modules = _find_modules(view)
    known = cards()
    entries = [
        EvidenceEntry(
            about=known[module].title,
            text=clean(known[module].paper.title),
            source=f"arXiv {known[module].paper.arxiv}",
            strength=say("evidence.paper"),
            url=known[module].paper.url,
        )
        for module in modules
        if module in known
    ]
    # what is known of the modules at hand comes before what holds for all
    for entry in sorted(read_evidence(), key=lambda entry: not entry["modules"]):
        about = [known[m].title for m in entry["modules"] if m in modules and m in known]
        if about or not entry["modules"]:
            entries.append(
                EvidenceEntry(
                    about=say("list.names").join(about) or say("evidence.general"),
                    text=entry[say.lang],
                    source=entry["source"],
                    strength=say(f"evidence.{entry['strength']}"),
                )
            )
    blocks = (Paragraph(say("evidence.note"), "soft"), Evidence(tuple(entries)))
    return Section("evidence", say("evidence.title"), blocks)


def _find_modules(view: View) -> list[str]:
    named = [plug.module for arm in view.comparison.variants for plug in arm.plugs]
    return list(dict.fromkeys(named))
