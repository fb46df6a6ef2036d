"""One figure: the look that all share, notes on hover, and SVG that takes the page's colors."""

import io
import logging
import re
import unicodedata
import warnings
from functools import cache
from typing import Any, Literal

import matplotlib as mpl
from markupsafe import escape
from matplotlib import font_manager
from matplotlib.artist import Artist
from matplotlib.figure import Figure

WIDTH = 4.8
"""Inches of every figure: its text is then readable on a phone and not large on a desktop."""

# stand-ins, replaced by the page's variables, so that one drawing serves light and dark
INK, SOFT, LINE, BAND = "#010101", "#020202", "#030303", "#040404"
TONES = {"better": "#050501", "worse": "#050502", "equivalent": "#050503", "undecided": "#050504"}
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "p")
MOST_SERIES = len(MARKERS)

_VARIABLES = {INK: "ink", SOFT: "soft", LINE: "line", BAND: "band"}
_VARIABLES |= {color: label for label, color in TONES.items()}
_VARIABLES |= {f"#0607{i:02x}": f"s{i}" for i in range(MOST_SERIES)}
_CHINESE = ("Noto Sans CJK SC", "Noto Sans SC", "Source Han Sans SC", "Microsoft YaHei", "SimHei")


def series_color(index: int) -> str:
    """Return the color of a series; 0 is the baseline."""
    return f"#0607{index % MOST_SERIES:02x}"


def series_marker(index: int) -> str:
    """Return the marker of a series: color is never all that tells two apart."""
    return MARKERS[index % MOST_SERIES]


def shorten(text: str, most: int = 24) -> str:
    """Return a text that fits a label; a Chinese character is two wide.

    >>> shorten("a" * 40, 10)
    'aaaaaaaaa…'
    """
    width = 0
    for place, character in enumerate(text):
        width += 2 if unicodedata.east_asian_width(character) in "WF" else 1
        if width > most:
            return text[: max(place - 1, 1)] + "…"
    return text


class Chart:
    """A figure with one pair of axes.

    >>> chart = Chart(height=2.0)
    >>> line, = chart.axes.plot([0, 1], [0, 1], color=INK)
    >>> chart.note(line, "a < b")
    >>> svg = chart.to_svg("example", "an example")
    >>> svg.startswith("<svg"), "<title>a &lt; b</title>" in svg, "var(--ink)" in svg
    (True, True, True)
    """

    def __init__(self, *, height: float = 3.1) -> None:
        self._notes: list[str] = []
        with mpl.rc_context(_style()):
            self.figure = Figure(figsize=(WIDTH, height), layout="constrained")
            self.axes = self.figure.add_subplot()

    def note(self, artist: Artist, text: str) -> None:
        """Say ``text`` when a reader points at ``artist``."""
        artist.set_gid(f"note-{len(self._notes)}")
        self._notes.append(text)

    def legend(self, columns: int = 2) -> None:
        """Name the series below the axes, where they hide nothing."""
        handles, labels = self.axes.get_legend_handles_labels()
        if handles:
            self.figure.legend(
                handles,
                labels,
                loc="outside lower left",
                ncols=columns,
                frameon=False,
                fontsize=8,
                labelcolor=INK,
                handlelength=1.8,
            )

    def cut(self, axis: Literal["x", "y"], low: float, high: float) -> None:
        """End an axis where numbers end; an interval over few seeds may reach beyond.

        >>> chart = Chart()
        >>> _ = chart.axes.plot([0, 1], [-80, 90])
        >>> chart.cut("y", 0, 100)
        >>> float(chart.axes.get_ylim()[0])
        -2.0
        """
        reach = getattr(self.axes, f"get_{axis}lim")()
        air = 0.02 * (high - low)  # a point at the very end is seen whole
        shown = (max(reach[0], low - air), min(reach[1], high + air))
        getattr(self.axes, f"set_{axis}lim")(*shown)

    def to_svg(self, name: str, label: str) -> str:
        """Return the figure; ``label`` tells those who cannot see it what it shows."""
        buffer = io.StringIO()
        engine = self.figure.get_layout_engine()
        with mpl.rc_context(_style() | {"svg.hashsalt": name}), warnings.catch_warnings():
            # a label in Chinese is only measured here: the reader's browser has the font
            warnings.filterwarnings("ignore", message="Glyph .* missing")
            if engine is not None:  # once, here: it would be done for every drawing
                engine.execute(self.figure)
                self.figure.set_layout_engine("none")
            self.figure.savefig(buffer, format="svg", metadata=_NO_METADATA, transparent=True)
        return self._adapt(buffer.getvalue(), label)

    def _adapt(self, text: str, label: str) -> str:
        text = text[text.index("<svg") :]
        text = re.sub(r"<style.*?</style>", "", text, flags=re.DOTALL)  # it would rule the page
        text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
        text = re.sub(r'<g id="note-(\d+)">', self._open_note, text)
        text = re.sub(r'<g id="[\w.]+"/>', "", text)
        text = re.sub(r'<g id="[\w.]+">', "<g>", text)  # of no use, and doubled in one page
        text = re.sub(r"#0[1-7]0[0-9a-f]{3}\b", _to_variable, text)
        # the size comes from the page, the font too
        text = re.sub(r'<svg [^>]*?viewBox="([^"]+)"[^>]*>', self._open(label), text, count=1)
        text = re.sub(r"font: ([\d.]+)px [^;\"]+", r"font-size: \1px", text)
        text = re.sub(r" ?font-family: [^;\"]+;?", "", text)
        return re.sub(r"\n\s*", "\n", text).strip()

    def _open(self, label: str) -> str:
        name = str(escape(label)).replace("\\", r"\\")
        return rf'<svg viewBox="\1" role="img" aria-label="{name}">'

    def _open_note(self, match: re.Match[str]) -> str:
        text = escape(self._notes[int(match.group(1))])
        return f'<g class="note"><title>{text}</title>'


_NO_METADATA = {"Date": None, "Creator": None, "Format": None, "Type": None}


def _to_variable(match: re.Match[str]) -> str:
    name = _VARIABLES.get(match.group(0))
    return f"var(--{name})" if name else match.group(0)


@cache
def _style() -> dict[Any, Any]:
    logging.getLogger("matplotlib.font_manager").setLevel(logging.ERROR)
    there = {font.name for font in font_manager.fontManager.ttflist}
    return {
        "font.family": "sans-serif",
        "font.sans-serif": ["DejaVu Sans", *[name for name in _CHINESE if name in there][:1]],
        "font.size": 8.5,
        "axes.edgecolor": SOFT,
        "axes.labelcolor": SOFT,
        "axes.linewidth": 0.7,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.grid": True,
        "axes.axisbelow": True,
        "axes.unicode_minus": True,
        "axes.formatter.useoffset": False,
        "text.color": INK,
        "xtick.color": SOFT,
        "ytick.color": SOFT,
        "xtick.labelcolor": INK,
        "ytick.labelcolor": INK,
        "xtick.major.size": 0,
        "ytick.major.size": 0,
        "xtick.minor.size": 0,
        "ytick.minor.size": 0,
        "grid.color": LINE,
        "grid.linewidth": 0.7,
        "svg.fonttype": "none",  # real text: it can be searched, copied and read aloud
        "text.parse_math": False,  # a variant's name may hold a dollar sign
    }
