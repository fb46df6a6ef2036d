"""What a report is made of, as data: one structure, rendered as HTML and as Markdown."""

from collections.abc import Sequence
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Cell:
    """One cell of a table."""

    text: str
    value: float | str | None = None
    """What a sort goes by; ``None`` sorts by the text."""

    soft: str = ""
    """Shown after the text in a weaker color: an interval, a share."""

    tone: str = ""
    """A word for the style sheet: ``better``, ``worse``, ``finished`` …"""


@dataclass(frozen=True)
class Column:
    """The head of a column."""

    label: str
    is_text: bool = False
    """Set from the left; numbers are set from the right."""

    hint: str = ""
    is_long: bool = False
    """Holds sentences, which need room."""


@dataclass(frozen=True)
class Table:
    """A table that scripts can sort, and filter when it is long."""

    name: str
    columns: tuple[Column, ...]
    rows: Sequence[Sequence[Cell]]
    caption: str = ""
    can_filter: bool = False


@dataclass(frozen=True)
class Paragraph:
    """A text; ``soft`` is set weaker, ``strong`` as a warning."""

    text: str
    tone: str = ""


@dataclass(frozen=True)
class Picture:
    """A figure: SVG text that we drew ourselves, in which all foreign texts are escaped."""

    name: str
    title: str
    svg: str
    caption: str
    metric: str = ""
    """Shown when this metric is chosen; empty is always."""


@dataclass(frozen=True)
class Verdicts:
    """The sentences that the report is for."""

    cards: tuple["VerdictCard", ...]


@dataclass(frozen=True)
class VerdictCard:
    """One variant's verdict."""

    variant: str
    label: str
    """One of the four labels, for the style sheet."""

    word: str
    """The label in the language of the report."""

    sentence: str
    svg: str = ""


@dataclass(frozen=True)
class Code:
    """Lines for a shell."""

    text: str


@dataclass(frozen=True)
class Facts:
    """Names and values."""

    pairs: tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class Evidence:
    """What others measured: statement, source, and how strong it is."""

    entries: tuple["EvidenceEntry", ...]


@dataclass(frozen=True)
class EvidenceEntry:
    """One statement about a module or about comparisons at large."""

    about: str
    text: str
    source: str
    strength: str
    url: str = ""


@dataclass(frozen=True)
class Details:
    """Blocks behind a line that opens them."""

    summary: str
    blocks: tuple["Block", ...]
    is_open: bool = False


@dataclass(frozen=True)
class Pictures:
    """Figures side by side where there is room."""

    pictures: tuple[Picture, ...]


Block = Paragraph | Table | Pictures | Verdicts | Code | Facts | Evidence | Details


@dataclass(frozen=True)
class Section:
    """One of the numbered parts of a report."""

    name: str
    title: str
    blocks: tuple[Block, ...] = field(default_factory=tuple)
