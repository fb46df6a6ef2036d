"""Draw a model as SVG: its stages and blocks, and the plugs at the places where they sit."""

import unicodedata
from dataclasses import dataclass, field
from html import escape
from pathlib import Path
from typing import Any

from torch import nn

from torchplug.errors import UsageError, count, explain
from torchplug.surgery.checkup import unwrap
from torchplug.surgery.memory import name_class
from torchplug.surgery.outline import Box, Label, Line, Outliner, Panel, find_labels
from torchplug.surgery.trace import read_example, record_host

PAGE, MARGIN, PAD, GAP = 1240.0, 20.0, 12.0, 26.0
ROW, TAG, TITLE, INDENT, CHAR = 17.0, 22.0, 36.0, 12.0, 6.65
NARROWEST, WIDEST = 130.0, 330.0
# dark enough for white letters
COLORS = ("#b3261e", "#1f5fbf", "#2e7d32", "#7b3fa0", "#9a5200", "#00707a")
STYLE = (
    "text{font:11px ui-monospace,Menlo,Consolas,'DejaVu Sans Mono',monospace;fill:#1f2328}"
    ".big{font-size:15px;font-weight:700}.name{font-weight:700}.dim{fill:#666c76}"
    ".plug{fill:#fff;font-weight:700}.add{font-weight:700;fill:#1f2328}.off{fill:#9aa0a8}"
    ".flow{fill:none;stroke:#4b5058;stroke-width:1.5}"
)


class Svg(str):
    """The text of a drawing, which a notebook shows as the picture."""

    __slots__ = ()

    def _repr_svg_(self) -> str:
        return str(self)

    def __repr__(self) -> str:
        return f"<SVG of {len(self):,} characters>"


def draw(model: nn.Module, example: Any = None, path: str | Path | None = None) -> Svg:
    """Draw the stages and blocks of ``model`` with its plugs in place, as SVG.

    Every block is a box with its layers from top to bottom; a plug is a colored label under the
    layer whose output it works on, or at the bottom of the block or stage it follows.

    Args:
        model: plugged or not; it is not changed.
        example: the shape of a small batch, a tensor, or the arguments of the forward. With it the
            model runs once: layers stand in the order in which they ran, shortcuts with their
            adds and channels × height × width are drawn, and what never ran is gray. Without it
            they stand as they were registered.
        path: also write the text to this file, ``*.svg``.

    Returns:
        The SVG text; a notebook shows it as the picture.

    Raises:
        UsageError: if ``model`` is no module or does not run on ``example``, the folder of
            ``path`` does not exist, or its name does not end in ``.svg``.

    >>> import torchplug as tp
    >>> from torchplug.hosts import build_model
    >>> model = build_model("torchplug:resnet8")
    >>> _ = tp.plug(model, "se", example=(1, 3, 8, 8))
    >>> "se · before the add" in tp.draw(model, (1, 3, 8, 8))
    True
    """
    file = None if path is None else check_path(Path(path))
    model = unwrap(model)
    trace = None if example is None else record_host(model, read_example(example, model))
    outline = Outliner(model, trace).outline()
    text = Svg(_Drawing(outline, name_class(model), ran=trace is not None).render())
    if file is not None:
        _write(file, text)
    return text


def check_path(path: Path) -> Path:
    """Return the path of a drawing that can be written.

    Raises:
        UsageError: if the folder does not exist, or the name promises another format.
    """
    if path.suffix.lower() != ".svg" and not path.is_dir():
        text = explain(
            "a drawing is an SVG file, which browsers show",
            repr(str(path)),
            f"name it {path.with_suffix('.svg').name}, and convert it where another is needed",
        )
        raise UsageError(text)
    if not path.parent.is_dir() or path.is_dir():
        text = explain(
            "a drawing is written to a file in a folder that exists",
            repr(str(path)),
            "make the folder, or name a file such as model.svg",
        )
        raise UsageError(text)
    return path


def _write(path: Path, text: str) -> None:
    try:
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        fix = "name a file in a folder that exists and can be written"
        raise UsageError(explain(f"{path} must be writable", str(error), fix)) from error


def _clean(text: str) -> str:
    """Replace what XML does not allow, and what would hide or turn the text around it."""
    kinds = {"Cc", "Cf", "Cs", "Co", "Cn"}
    return "".join("\N{REPLACEMENT CHARACTER}" if _kind(c) in kinds else c for c in text)


def _kind(character: str) -> str:
    return unicodedata.category(character)


def _length(text: str) -> float:
    """Width of a text in pixels: letters of East Asia are twice as wide."""
    return CHAR * sum(2 if unicodedata.east_asian_width(c) in "WF" else 1 for c in text)


def _clip(text: str, width: float, *, keep_end: bool = False) -> str:
    """Shorten a text that is too long; a path keeps its end."""
    if _length(text) <= width:
        return text
    while text and _length(text) + CHAR > width:
        text = text[1:] if keep_end else text[:-1]
    return f"…{text}" if keep_end else f"{text}…"


@dataclass
class _Drawing:
    """Places the parts of an outline and gathers their SVG."""

    outline: Panel
    title: str
    ran: bool
    parts: list[str] = field(default_factory=list)
    colors: dict[str, str] = field(default_factory=dict)

    def render(self) -> str:
        labels = list(find_labels(self.outline))
        for label in labels:
            self.colors.setdefault(label.name, COLORS[len(self.colors) % len(COLORS)])
        self.title = _clean(self.title)
        shown = self.title + (f" · output {self.outline.size}" if self.outline.size else "")
        self._text(MARGIN, 30, _clip(shown, 800), "big")
        top = self._legend(labels, 44)
        if not self.ran:
            hint = "layers as they were registered; with an example: as they ran, with every add"
            self._text(MARGIN, top + 1, hint, "dim")
            top += 16
        height = self._items(self.outline, MARGIN, top, PAGE - 2 * MARGIN) + MARGIN
        if self.outline.labels:
            self._tags(self.outline.labels, MARGIN, height, 260)
            height += TAG * len(self.outline.labels) + MARGIN
        return (
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {PAGE:.0f} {height:.0f}" '
            f'width="{PAGE:.0f}" height="{height:.0f}" role="img">'
            f"<title>{escape(self.title)}</title><style>{STYLE}</style>"
            '<defs><marker id="arrow" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="6" '
            'markerHeight="6" orient="auto"><path d="M0,0 L8,4 L0,8 z" fill="#4b5058"/></marker>'
            '</defs><rect width="100%" height="100%" fill="#ffffff"/>'
            f"{''.join(self.parts)}</svg>\n"
        )

    def _legend(self, labels: list[Label], y: float) -> float:
        """One line for each name of a plug; return where the drawing goes on."""
        for name, color in self.colors.items():
            mine = [label for label in labels if label.name == name]
            kinds = ", ".join(sorted({label.module for label in mine}))
            size = sum(label.parameters for label in mine)
            self._rect(MARGIN, y, 14, 14, color, color, 3)
            what = name if kinds == name else f"{name} ({kinds})"
            text = f"{_clean(what)} · {count(len(mine), 'place')} · {count(size, 'parameter')}"
            self._text(MARGIN + 22, y + 11, _clip(text, PAGE - 80))
            y += 20
        return y + 10

    def _items(self, panel: Panel, x: float, y: float, width: float) -> float:
        """Place the boxes of a panel in rows, panels in rows of their own; return the bottom."""
        boxes = [item for item in panel.items if isinstance(item, Box)]
        box_width = max((_box_width(box) for box in boxes), default=NARROWEST)
        box_width = min(box_width, width)
        left, row_height, above = x, 0.0, False
        for item in panel.items:
            is_panel = isinstance(item, Panel)
            if left > x and (is_panel or left + box_width > x + width + 0.5):
                left, y, row_height = x, y + row_height + GAP, 0.0
            if item.is_fed and left == x and above:
                self._flow((x + 24, y - GAP + 3), (x + 24, y - 3))
            elif item.is_fed and left > x:
                self._flow((left - GAP + 3, y + 18), (left - 3, y + 18))
            above = True
            if isinstance(item, Panel):
                y = self._panel(item, x, y, width) + GAP
            else:
                row_height = max(row_height, self._box(item, left, y, box_width))
                left += box_width + GAP
        return y + row_height if left > x else y - (GAP if panel.items else 0)

    def _panel(self, panel: Panel, x: float, y: float, width: float) -> float:
        at = len(self.parts)
        path = _clip(_clean(panel.path), width / 2, keep_end=True)
        self._text(x + PAD, y + 19, path, "name", hint=panel.path)
        after = x + PAD + _length(path) + 2 * CHAR
        about = f"{_clean(panel.kind)}   {panel.size}".rstrip()
        self._text(after, y + 19, _clip(about, x + width - after - PAD), "dim")
        bottom = self._items(panel, x + PAD, y + 30, width - 2 * PAD) + PAD
        if panel.labels:
            self._tags(panel.labels, x + PAD, bottom, 260)
            bottom += TAG * len(panel.labels) + PAD
        frame: list[str] = self.parts[at:]
        del self.parts[at:]  # the frame lies under what it holds
        self._rect(x, y, width, bottom - y, "#f6f7f9", "#c6cad1", 8)
        self.parts += frame
        return bottom

    def _box(self, box: Box, x: float, y: float, width: float) -> float:
        height = _box_height(box)
        stroke = "#5b616b" if box.ran else "#c6cad1"
        self._rect(x, y, width, height, "#ffffff", stroke, 6, dashed=not box.ran)
        inner, at = width - 2 * 8, y + 6
        if box.path:
            name = _clip(_clean(box.path), inner, keep_end=True)
            self._text(x + 8, at + 11, name, "name" if box.ran else "off", hint=box.path)
            kind = _clip(_clean(box.kind), inner)
            self._text(x + 8, at + 25, kind if box.ran else _clip(f"{kind} not run", inner), "dim")
            at += TITLE - 6
        start, adds = at - 6, [line for line in box.lines if line.is_add and not line.depth]
        for line in box.lines:
            if adds == [line]:  # of several, the second may begin where the first one ends
                self._flow((x, start), (x - 7, start), (x - 7, at + 8), (x, at + 8))
            at = self._line(line, x + 8, at, inner)
        if box.labels:
            self._tags(box.labels, x + 8, at, inner)
            at += TAG * len(box.labels)
        if box.size:
            self._text(x + width - 8, y + height - 7, _clip(box.size, inner), "dim", anchor="end")
        return height

    def _line(self, line: Line, x: float, y: float, width: float) -> float:
        indent = min(INDENT * line.depth, width / 3)
        text = _clip(_clean(line.text), (width - indent) * 0.7)
        kind = "off" if not line.ran else "add" if line.is_add else "base"
        self._text(x + indent, y + 12, text, kind, hint=line.path)
        room = width - indent - _length(text) - CHAR
        detail = _clip(_clean(line.detail if line.ran else "not run"), room)
        if room > 3 * CHAR:
            self._text(x + width, y + 12, detail, "dim" if line.ran else "off", anchor="end")
        y += ROW
        if line.labels:
            self._tags(line.labels, x + indent, y, width - indent)
        return y + TAG * len(line.labels)

    def _tags(self, labels: list[Label], x: float, y: float, width: float) -> None:
        for label in labels:
            color = self.colors[label.name]
            self._rect(x, y + 2, width, TAG - 5, color, color, 4)
            text = _clip(f"{_clean(label.name)} · {_clean(label.place)}", width - 10)
            hint = f"{label.name}: {label.module}, {label.parameters:,} parameters"
            self._text(x + 5, y + 14, text, "plug", hint=hint)
            y += TAG

    def _text(
        self, x: float, y: float, text: str, kind: str = "", *, hint: str = "", anchor: str = ""
    ) -> None:
        title = f"<title>{escape(_clean(hint))}</title>" if hint else ""
        end = f' text-anchor="{anchor}"' if anchor else ""
        self.parts.append(
            f'<text x="{x:.1f}" y="{y:.1f}" class="{kind}"{end}>{title}{escape(text)}</text>'
        )

    def _rect(
        self,
        x: float,
        y: float,
        width: float,
        height: float,
        fill: str,
        stroke: str,
        radius: int,
        *,
        dashed: bool = False,
    ) -> None:
        dash = ' stroke-dasharray="4 3"' if dashed else ""
        self.parts.append(
            f'<rect x="{x:.1f}" y="{y:.1f}" width="{width:.1f}" height="{height:.1f}" '
            f'rx="{radius}" fill="{fill}" stroke="{stroke}"{dash}/>'
        )

    def _flow(self, *corners: tuple[float, float]) -> None:
        points = " ".join(f"{x:.1f},{y:.1f}" for x, y in corners)
        self.parts.append(f'<polyline class="flow" points="{points}" marker-end="url(#arrow)"/>')


def _box_width(box: Box) -> float:
    kind = box.kind if box.ran else f"{box.kind} not run"
    texts = [_length(box.path), _length(kind), _length(box.size)]
    for line in box.lines:
        indent = INDENT * line.depth
        texts.append(_length(line.text) + _length(line.detail) + 2 * CHAR + indent)
        texts += [_tag_width(label) + indent for label in line.labels]
    texts += [_tag_width(label) for label in box.labels]
    return min(max(NARROWEST, max(texts) + 18), WIDEST)


def _tag_width(label: Label) -> float:
    return _length(f"{label.name} · {label.place}") + 12


def _box_height(box: Box) -> float:
    tags = len(box.labels) + sum(len(line.labels) for line in box.lines)
    title = TITLE if box.path else 6
    return title + ROW * len(box.lines) + TAG * tags + (ROW if box.size else 0) + 8
