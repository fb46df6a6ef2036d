"""The report as Markdown: the same parts, without figures."""

import html
from collections.abc import Sequence
from functools import singledispatch

from torchplug.reporting.blocks import (
    Block,
    Cell,
    Code,
    Details,
    Evidence,
    Facts,
    Paragraph,
    Section,
    Table,
    Verdicts,
)
from torchplug.reporting.head import Head

_MOST_ROWS = 200
_SPECIAL = "\\`*_{}[]#|~$!"


def escape(text: str) -> str:
    r"""Return a text that Markdown shows as it is, on one line.

    >>> print(escape("<b>a|b_c</b>"))
    &lt;b&gt;a\|b\_c&lt;/b&gt;
    """
    line = " ".join(text.split())
    return "".join(_escape_character(character) for character in line)


def _escape_character(character: str) -> str:
    if character in "<>&":
        return html.escape(character)
    return f"\\{character}" if character in _SPECIAL else character


def render_markdown(head: Head, sections: Sequence[Section]) -> str:
    """Return the report as Markdown text."""
    parts = [f"# {escape(head.title)}", escape(head.facts)]
    for number, section in enumerate(sections, 1):
        body = [text for block in section.blocks if (text := _render(block))]
        if body:
            parts += [f"## {number}. {escape(section.title)}", *body]
    return "\n\n".join(parts) + "\n"


@singledispatch
def _render(block: Block) -> str:
    """Return a block as Markdown; nothing for figures, which are the page's."""
    del block
    return ""


@_render.register
def _(block: Paragraph) -> str:
    text = escape(block.text)
    return f"**{text}**" if block.tone == "warning" else text


@_render.register
def _(block: Verdicts) -> str:
    return "\n".join(
        f"- **{escape(card.variant)}**: **{escape(card.word)}**. {escape(card.sentence)}"
        for card in block.cards
    )


@_render.register
def _(block: Code) -> str:
    return "\n".join(f"    {line}" for line in block.text.splitlines())


@_render.register
def _(block: Facts) -> str:
    return "\n".join(f"- {escape(name)}: {escape(value)}" for name, value in block.pairs)


@_render.register
def _(block: Evidence) -> str:
    return "\n".join(
        f"- **{escape(entry.about)}** ({escape(entry.strength)}): {escape(entry.text)} "
        f"({escape(entry.source)})"
        for entry in block.entries
    )


@_render.register
def _(block: Details) -> str:
    inner = [text for each in block.blocks if (text := _render(each))]
    return "\n\n".join([f"### {escape(block.summary)}", *inner])


@_render.register
def _(table: Table) -> str:
    head = "| " + " | ".join(escape(column.label) for column in table.columns) + " |"
    rule = "|" + "|".join(" --- " if column.is_text else " ---: " for column in table.columns) + "|"
    rows = ["| " + " | ".join(map(_render_cell, row)) + " |" for row in table.rows[:_MOST_ROWS]]
    more = [f"| … ({len(table.rows) - _MOST_ROWS}) |"] if len(table.rows) > _MOST_ROWS else []
    text = "\n".join([head, rule, *rows, *more])
    return f"{text}\n\n{escape(table.caption)}" if table.caption else text


def _render_cell(cell: Cell) -> str:
    return escape(f"{cell.text} {cell.soft}".strip())
