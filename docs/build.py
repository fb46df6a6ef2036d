"""Write the pages of the catalogue: ``python -m docs.build``; ``--check`` only compares.

Everything comes from the card, the class docstring, ``flows.py``, ``published.toml`` and the
newest stored benchmark, so that a page cannot say what the code does not.
"""

import inspect
import json
import sys
import tomllib
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.rows import ROWS
from benchmarks.table import find_ratio
from docs.drawing import draw
from docs.flows import FLOWS, FOLDED, REWRITE
from torchplug import cards
from torchplug.card import Card, Paper
from torchplug.fusion import fold_conv_bn

HERE = Path(__file__).parent
RESULTS = HERE.parent / "benchmarks" / "results"
HOW = {
    "computed": "counted by our tests",
    "readme": "read in the source",
    "paper": "as commonly quoted; not checked against the text",
}
KINDS = {
    "refine": "refines a map: the same shape in and out",
    "conv": "stands in for a convolution",
    "block": "stands in for a residual block",
    "context": "changes the channels, at the end of a backbone or on a level of a pyramid",
    "merge": "merges maps",
    "rewrite": "computes the same, faster",
}
COST_WIDTHS, COST_SIZE = (64, 128, 256, 512), 14
CELL = dict[str, Any]


def main(arguments: list[str]) -> int:
    """Write every page, or only tell which differ."""
    wanted = dict(make_files())
    found = {path: path.read_text() for path in _existing()}
    stale = sorted(
        str(path.relative_to(HERE))
        for path in wanted.keys() | found.keys()
        if wanted.get(path) != found.get(path)
    )
    if "--check" in arguments:
        print("\n".join(f"stale: {name}" for name in stale) or "every page is up to date")
        return 1 if stale else 0
    for path in found.keys() - wanted.keys():
        path.unlink()
    for path, text in wanted.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    print(f"{len(wanted)} files, {len(stale)} changed")
    return 0


def _existing() -> Iterator[Path]:
    yield from (HERE / "modules").rglob("*.md")
    yield from (HERE / "modules").rglob("*.svg")


def make_files() -> Iterator[tuple[Path, str]]:
    """Yield every generated file and its text."""
    published = tomllib.loads((HERE / "published.toml").read_text())
    speeds = _read_speeds()
    catalogue = [c for c in cards().values() if c.factory.__module__.startswith("torchplug.")]
    for card in catalogue:
        page = _page(card, published.get(card.key, []), speeds)
        yield HERE / "modules" / f"{card.key}.md", page
        yield HERE / "modules" / "img" / f"{card.key}.svg", draw(card.title, FLOWS[card.key])
    yield HERE / "modules" / "conv_bn.md", _fold_page()
    yield HERE / "modules" / "img" / "conv_bn.svg", draw("Convolution and batch norm", REWRITE)
    yield HERE / "modules" / "img" / "conv_bn_folded.svg", draw("Folded", FOLDED)
    yield HERE / "modules" / "README.md", _index(catalogue)


def _index(catalogue: list[Card]) -> str:
    rows = [
        f"| [`{c.key}`]({c.key}.md) | {c.title} | {c.kind} | {c.place} "
        f"| {c.paper.venue} {c.paper.year} |"
        for c in catalogue
    ]
    lines = [
        "# The modules",
        "",
        "| key | module | kind | where its paper puts it | published |",
        "|---|---|---|---|---|",
        *rows,
        "",
        "[Folding a batch norm into the convolution before it](conv_bn.md) has no card, since it "
        "adds nothing to a network. The merging of ACNet and MixConv is their `merge()`.",
        "",
        "<!-- written by `python -m docs.build` from the cards and docstrings: change those -->",
    ]
    return "\n".join(lines) + "\n"


def _fold_page() -> str:
    """The one system that has no card, since it adds nothing to a network."""
    head, _, rest = (inspect.getdoc(fold_conv_bn) or "").partition("\n>>> ")
    sections = [
        "# Conv + BN folding",
        "Rewrites a convolution and the batch norm after it as one convolution with the same "
        "output in evaluation mode.",
        "![before](img/conv_bn.svg)",
        "![after](img/conv_bn_folded.svg)",
        "## The function",
        f"```text\ntorchplug.fusion.{_sign(fold_conv_bn)}\n```",
        _dress(head),
        f"```pycon\n>>> import torch\n>>> from torch import nn\n"
        f">>> from torchplug.fusion import fold_conv_bn\n>>> {rest}\n```",
    ]
    return "\n\n".join(sections) + "\n"


def _page(card: Card, published: list[CELL], speeds: Mapping[str, list[CELL]]) -> str:
    sections = [
        f"# {card.title} (`{card.key}`)",
        f"{card.summary} It {KINDS[card.kind]}.",
        f"![data flow of {card.title}](img/{card.key}.svg)",
        f"## Equation\n\n```text\n{card.equation}\n```",
        _place(card),
        _use(card),
        _cost(card),
        _speed(speeds.get(card.key, [])),
        _formats(card),
        _deviations(card),
        _published(published),
        f"## Source\n\n{_cite(card.paper)}",
    ]
    return "\n\n".join(section for section in sections if section) + "\n"


def _place(card: Card) -> str:
    start = (
        "Its output equals its input until training moves it."
        if card.identity_at_start
        else "A new one changes the map; `plug` starts it as the identity and lets it grow."
    )
    start = start if card.kind == "refine" else ""
    return f"## Where its paper puts it\n\n`{card.place}`: {card.place.note}. {start}".rstrip()


def _use(card: Card) -> str:
    name = card.factory.__name__
    text = inspect.getdoc(card.factory) or ""
    head, _, rest = text.partition("\n>>> ")
    head = head.partition("\nSource:")[0]  # the page ends with it
    lines = [
        "## The class",
        f"```text\n{_sign(card.factory)}\n```",
        _dress(head),
    ]
    if rest:
        torch_line = "" if rest.startswith("import torch\n") else ">>> import torch\n"
        lines.append(f"```pycon\n{torch_line}>>> from torchplug import {name}\n>>> {rest}\n```")
    return "\n\n".join(lines)


def _sign(factory: Callable[..., Any]) -> str:
    """Write the call, one option a line, without types: the page explains every argument."""
    parts, star = [], False
    for parameter in inspect.signature(factory).parameters.values():
        if parameter.kind is parameter.KEYWORD_ONLY and not star:
            parts, star = [*parts, "*"], True
        default = parameter.default
        if default is inspect.Parameter.empty:
            parts.append(parameter.name)
        else:
            parts.append(f"{parameter.name}={_show(default)}")
    call = f"{factory.__name__}({', '.join(parts)})"
    if len(call) <= 90:
        return call
    return f"{factory.__name__}(\n    " + ",\n    ".join(parts) + ",\n)"


def _show(value: object) -> str:
    if isinstance(value, partial):
        options = [f"{name}={option!r}" for name, option in value.keywords.items()]
        return f"partial({', '.join([_show(value.func), *map(repr, value.args), *options])})"
    if isinstance(value, type):
        prefix = "nn." if value.__module__.startswith("torch.nn") else ""
        return prefix + value.__name__
    return repr(value)


def _dress(text: str) -> str:
    """Turn the sections of a docstring into Markdown."""
    out: list[str] = []
    section = ""
    for line in text.splitlines():
        if line.rstrip(":") in ("Args", "Shape", "Raises", "Source", "Returns") and line[-1] == ":":
            section = line.rstrip(":")
            out += [f"**{section}**", ""]
        elif section and line.startswith("    ") and not line.startswith("     "):
            name, colon, rest = line.strip().partition(": ")
            item = section in ("Args", "Raises") and colon
            out.append(f"- `{name}`: {rest}" if item else line.strip())
        else:
            out.append(("  " if section in ("Args", "Raises") and line else "") + line.strip())
    return "\n".join(out).replace("``", "`").strip()


def _cost(card: Card) -> str:
    widths = len(card.samples[0].args)
    rows = []
    for channels in COST_WIDTHS:
        module = card.factory(*(channels,) * widths, device="meta")
        shape = (1, channels, COST_SIZE, COST_SIZE)
        others = [shape] * len(card.samples[0].other_shapes)
        parameters = sum(p.numel() for p in module.parameters())
        flops = card.flops(module, shape, *others)
        rows.append(f"| {channels} | {parameters:,} | {flops / 1e6:,.2f} |")
    same = "" if widths == 1 else ", as many out as in"
    return "\n".join(
        [
            "## Cost",
            "",
            f"Default options, one map of {COST_SIZE} x {COST_SIZE}{same}; two FLOPs per "
            "multiply-add.",
            "",
            "| channels | parameters | MFLOPs |",
            "|---:|---:|---:|",
            *rows,
        ]
    )


def _speed(records: list[CELL]) -> str:
    rows = []
    for record in records:
        ratio = find_ratio(record)
        ours = record["times"]["ours"]
        peers = [n for n, kind in record["kinds"].items() if kind in ("same", "near")]
        best = min(peers, key=lambda name: record["times"][name]["ms"])
        rows.append(
            f"| {record['row']} | {record['device']} | {record['dtype']} | {record['layout']} "
            f"| {record['mode']} | {ours['ms']:.2f} | {ratio:.2f} | {best} "
            f"| {ours['ms'] / record['floor_ms']:.1f} |"
        )
        rows += [
            f"| {record['row']}, {name} | {record['device']} | {record['dtype']} "
            f"| {record['layout']} | {record['mode']} | {timing['ms']:.2f} "
            f"| {timing['ms'] / record['times'][best]['ms']:.2f} | {best} "
            f"| {timing['ms'] / record['floor_ms']:.1f} |"
            for name, timing in record["times"].items()
            if record["kinds"][name] == "ours" and name != "ours"
        ]
    if not rows:
        return ""
    return "\n".join(
        [
            "## Speed",
            "",
            "From [the stored results](../../benchmarks/results), printed by "
            "`python -m benchmarks`. The ratio is our time over that of the fastest other form "
            "of the same function in the same run. The last column is our time over the floor: "
            "the larger of what the arithmetic takes at the rate of a large matrix product, and "
            "what reading the input and writing the output takes at the rate of a copy. "
            + _describe(records),
            "",
            "| row | device | type | layout | mode | ms | ratio | fastest other | over floor |",
            "|---|---|---|---|---|---:|---:|---|---:|",
            *rows,
        ]
    )


def _read_speeds() -> dict[str, list[CELL]]:
    found: dict[str, list[CELL]] = {}
    for path in sorted(RESULTS.glob("*.json")):
        result = json.loads(path.read_text())
        records = result.get("records")
        for record in records if isinstance(records, list) else ():  # not of comparisons
            if find_ratio(record) is not None:
                where = _where(result, record)
                found.setdefault(record["key"], []).append(record | where)
    return found


def _where(result: CELL, record: CELL) -> CELL:
    runs = [result, *result.get("later", [])]
    run = runs[record.get("run", 0)]
    environment, threads = run["environment"], run["threads"]
    machine = f"{environment['processor']}, torch {environment['torch']}, {threads} thread"
    return {"device": environment["device"], "machine": machine + "s" * (threads > 1)}


def _describe(records: list[CELL]) -> str:
    """Say on what maps and machines the rows were measured."""
    names = {record["row"] for record in records}
    inputs = [
        f"`{row.name}` takes {' and '.join('x'.join(map(str, shape)) for shape in row.shapes)}"
        for row in ROWS
        if row.name in names
    ]
    machines = sorted({record["machine"] for record in records})
    return f"Maps: {'; '.join(inputs)}. Measured on {'; '.join(machines)}."


def _formats(card: Card) -> str:
    if not card.formats:
        return ""
    call = f'torchplug.convert_state_dict(state, "{card.key}", source=...)'
    lines = [f"`{call}` takes the entries of one module, by their names in it.", ""]
    for known in card.formats:
        options = ", ".join(f"{name}={_show(value)}" for name, value in known.options.items())
        lines.append(f"- `{known.source}`" + (f", with `{options}`" if options else ""))
    if "hidden_channels" in inspect.signature(card.factory).parameters:
        lines += ["", "Widths that the weights show (`hidden_channels`) are yours to pass."]
    return "## Weights of other implementations\n\n" + "\n".join(lines)


def _deviations(card: Card) -> str:
    if not card.deviations:
        return ""
    items = "\n".join(f"- {text[0].upper()}{text[1:]}" for text in card.deviations)
    return f"## Deviations from the paper or the official code\n\n{items}"


def _published(figures: list[CELL]) -> str:
    if not figures:
        return ""
    rows = [f"| {f['what']} | {f['source']} | {HOW[f['how']]} |" for f in figures]
    return "\n".join(
        [
            "## Published figures",
            "",
            "Of other networks, recipes and seeds; whether it helps yours, "
            "`torchplug compare` finds out.",
            "",
            "| figure | source | how we know |",
            "|---|---|---|",
            *rows,
        ]
    )


def _cite(paper: Paper) -> str:
    code = f"<{paper.code}>" if "://" in paper.code else paper.code
    return (
        f"{paper.authors}: *{paper.title}*, {paper.venue} {paper.year}, "
        f"[arXiv {paper.arxiv}]({paper.url}); code: {code}."
    )


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
