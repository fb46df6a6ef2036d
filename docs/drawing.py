"""Draw a data flow as SVG: boxes in series, branches in parallel, nothing else.

A flow is a list. A text is a box, ``Fork`` holds branches that start from one map and join in one
operator; an empty branch is the map itself.
"""

from dataclasses import dataclass, field
from html import escape

BOX, GAP, ROW, LINE, MARGIN = 138, 22, 14, 15, 12
JOIN = 15
COLORS = {
    "pool": ("#e3f4e8", "#3f9a5f"),
    "conv": ("#e4edfb", "#3b6fc4"),
    "gate": ("#fdeede", "#d0802f"),
    "other": ("#f1f1f4", "#7b7f88"),
}
WORDS = {
    "gate": ("sigmoid", "softmax"),
    "pool": ("mean", "max", "pool", "average"),
    "conv": ("conv", "1×1", "3×3", "K×K", "1×3", "3×1", "7×7", "depthwise", "query"),
}


@dataclass(frozen=True)
class Fork:
    """Branches from one map, joined by ``join``."""

    join: str
    branches: tuple["Flow", ...]
    inputs: tuple[str, ...] = ()
    """The maps that come in, one a branch, in the place of one map for all."""


Flow = list["str | Fork"]


@dataclass
class Canvas:
    """What is drawn so far."""

    parts: list[str] = field(default_factory=list)

    def line(self, *points: tuple[float, float], arrow: bool = True) -> None:
        """Draw a line through ``points``."""
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
        end = ' marker-end="url(#arrow)"' if arrow else ""
        self.parts.append(f'<polyline class="flow" points="{path}"{end}/>')

    def box(self, x: float, y: float, text: str) -> None:
        """Draw a box from ``x`` on, ``y`` its middle."""
        fill, edge = COLORS[_kind(text)]
        lines, height = _wrap(text), _height(text)
        top = y - height / 2
        self.parts.append(
            f'<rect x="{x:.1f}" y="{top:.1f}" width="{BOX}" height="{height}" rx="6" '
            f'fill="{fill}" stroke="{edge}"/>'
        )
        first = y - (len(lines) - 1) * LINE / 2 + 4
        for number, line in enumerate(lines):
            self.text(x + BOX / 2, first + number * LINE, line)

    def text(self, x: float, y: float, text: str) -> None:
        """Write ``text`` around ``x``."""
        self.parts.append(f'<text x="{x:.1f}" y="{y:.1f}">{escape(text)}</text>')

    def join(self, x: float, y: float, text: str) -> float:
        """Draw a joining operator from ``x`` on and return its width."""
        width = _join_width(text)
        self.parts.append(
            f'<rect x="{x:.1f}" y="{y - JOIN:.1f}" width="{width}" height="{2 * JOIN}" '
            f'rx="{JOIN}" fill="#ffffff" stroke="#1f2328"/>'
        )
        self.text(x + width / 2, y + 4.5, text)
        return width


def draw(title: str, flow: Flow) -> str:
    """Return the SVG of ``flow``, from ``x`` to ``y``."""
    width, above, below = _measure(flow)
    full = width + 2 * (MARGIN + 34)
    height = above + below + 2 * MARGIN
    canvas, middle = Canvas(), MARGIN + above
    first = flow[0]
    if not (isinstance(first, Fork) and first.inputs):
        canvas.text(MARGIN + 8, middle + 4.5, "x")
        canvas.line((MARGIN + 18, middle), (MARGIN + 34, middle), arrow=False)
    _place(canvas, flow, MARGIN + 34, middle)
    canvas.line((MARGIN + 34 + width, middle), (full - MARGIN - 16, middle))
    canvas.text(full - MARGIN - 6, middle + 4.5, "y")
    style = (
        "text{font:12px 'Segoe UI',Roboto,'Helvetica Neue',Arial,sans-serif;text-anchor:middle;"
        "fill:#1f2328}.flow{fill:none;stroke:#4b5058;stroke-width:1.4}"
    )
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {full:.0f} {height:.0f}" '
        f'width="{full:.0f}" height="{height:.0f}" role="img">'
        f"<title>{escape(title)}</title><style>{style}</style>"
        '<defs><marker id="arrow" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="6" '
        'markerHeight="6" orient="auto"><path d="M0,0 L8,4 L0,8 z" fill="#4b5058"/></marker>'
        f'</defs><rect width="100%" height="100%" rx="8" fill="#ffffff"/>'
        f"{''.join(canvas.parts)}</svg>\n"
    )


def _kind(text: str) -> str:
    for kind, words in WORDS.items():
        if any(word in text for word in words):
            return kind
    return "other"


def _wrap(text: str) -> list[str]:
    lines: list[str] = []
    for part in text.split("\n"):
        line = ""
        for word in part.split():
            if line and len(line) + len(word) + 1 > 18:
                lines.append(line)
                line = word
            else:
                line = f"{line} {word}".strip()
        lines.append(line)
    return lines


def _height(text: str) -> int:
    return LINE * len(_wrap(text)) + 14


def _join_width(text: str) -> int:
    return max(2 * JOIN, 8 * len(text) + 14)


def _measure(flow: Flow) -> tuple[float, float, float]:
    """Return width, and height above and below the line that runs through."""
    width, above, below = 0.0, 17.0, 17.0
    for item in flow:
        if isinstance(item, str):
            size: tuple[float, float, float] = (BOX, _height(item) / 2, _height(item) / 2)
        else:
            size = _measure_fork(item)
        width += size[0] + GAP
        above, below = max(above, size[1]), max(below, size[2])
    return max(width - GAP, 0.0), above, below


def _measure_fork(fork: Fork) -> tuple[float, float, float]:
    sizes = [_measure(branch) for branch in fork.branches]
    inner = max(size[0] for size in sizes)
    total = sum(size[1] + size[2] for size in sizes) + ROW * (len(sizes) - 1)
    return inner + 2 * GAP + _join_width(fork.join), total / 2, total / 2


def _place(canvas: Canvas, flow: Flow, x: float, y: float) -> None:
    for number, item in enumerate(flow):
        if number:
            canvas.line((x, y), (x + GAP, y), arrow=isinstance(item, str))
            x += GAP
        if isinstance(item, str):
            canvas.box(x, y, item)
            x += BOX
        else:
            _place_fork(canvas, item, x, y)
            x += _measure_fork(item)[0]


def _place_fork(canvas: Canvas, fork: Fork, x: float, y: float) -> None:
    width, above, _ = _measure_fork(fork)
    join = x + width - _join_width(fork.join)
    top = y - above
    for number, branch in enumerate(fork.branches):
        inner, branch_above, branch_below = _measure(branch)
        row = top + branch_above
        top += branch_above + branch_below + ROW
        start, end = x + GAP, x + GAP + inner
        if fork.inputs:
            canvas.text(x - JOIN, row + 4.5, fork.inputs[number])
            canvas.line((x, row), (start, row), arrow=bool(branch))
        else:
            canvas.line((x, y), (x, row), (start, row), arrow=bool(branch))
        _place(canvas, branch, start, row)
        middle = join + _join_width(fork.join) / 2
        if abs(row - y) < JOIN:
            canvas.line((end, row), (join, row))
        else:
            edge = y - JOIN if row < y else y + JOIN
            canvas.line((end, row), (middle, row), (middle, edge))
    canvas.join(join, y, fork.join)
