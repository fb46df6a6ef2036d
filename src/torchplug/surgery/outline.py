"""The outline of a model for a drawing: panels of boxes of lines, with the plugs in place."""

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from torchplug.surgery.attach import Holder, find_plugs
from torchplug.surgery.intake import Intake
from torchplug.surgery.memory import name_class, recall
from torchplug.surgery.replace import Replacement
from torchplug.surgery.roles import find_blocks, find_on_shortcut
from torchplug.surgery.trace import Call, Trace

PLACES = {
    "bottleneck": "before the add",
    "block": "after the block",
    "stage": "end of stage",
    "backbone_end": "end of the backbone",
    "upsample": "after upsampling",
    "merge": "where maps meet",
    "pyramid": "on a level of the pyramid",
}
_CONTAINERS = (nn.Sequential, nn.ModuleList, nn.ModuleDict)
_GROUPS = re.compile(r"(Stage|Encoder|Decoder|Backbone|Trunk|Body|Neck|FPN|Pyramid|Net|Model)s?$")
_MANY_LEAVES = 24  # what holds more is no block that a reader takes in at a glance
_LONGEST_STRIP = 12
TIMES = "\N{MULTIPLICATION SIGN}"


@dataclass(frozen=True)
class Label:
    """One plug: its name, where it sits in words, its catalogue key or class, its size."""

    name: str
    place: str
    module: str
    parameters: int


@dataclass
class Line:
    """One module inside a box, or the add of a residual block."""

    text: str
    detail: str
    depth: int = 0
    path: str = ""
    labels: list[Label] = field(default_factory=list)
    ran: bool = True
    is_add: bool = False


@dataclass
class Box:
    """One block, or a run of single layers."""

    path: str
    kind: str
    lines: list[Line]
    size: str = ""
    labels: list[Label] = field(default_factory=list)
    ran: bool = True
    is_fed: bool = False
    """Whether what stands before it is known to be its input."""


@dataclass
class Panel:
    """A container of blocks, drawn as a frame around them."""

    path: str
    kind: str
    items: list["Box | Panel"]
    size: str = ""
    labels: list[Label] = field(default_factory=list)
    is_fed: bool = False


class Outliner:
    """Turns a model, and a trace of it if there is one, into panels."""

    def __init__(self, model: nn.Module, trace: Trace | None) -> None:
        self.model, self.trace = model, trace
        self.labels = _read_labels(model)
        self.known_as = _find_shared(model)
        self.sizes: dict[str, str] = {}
        self.first: dict[str, float] = {}
        self.adds: dict[str, list[int]] = {}
        self.on_shortcut: set[str] = set()
        if trace is not None:
            self._read_trace(trace)

    def _read_trace(self, trace: Trace) -> None:
        for value in trace.values:
            for call in value.calls:
                if call.run == 1:
                    self._see(call.path, value.index)
            for call in value.producers if value.from_example else []:
                shape = [value.channels, *value.size] if value.is_map else value.shape[1:]
                self.sizes[call.path] = f" {TIMES} ".join(map(str, shape))
        for call, entry in trace.entries.items():
            if call.path not in self.first:  # it made no tensor of its own
                self._see(call.path, entry.index + 0.5)
        for block in find_blocks(trace):
            self.adds.setdefault(block.call.path, []).append(block.add.index)
            self.on_shortcut |= find_on_shortcut(block)

    def _see(self, path: str, index: float) -> None:
        """Note when a module ran; its parents ran then too, be they mere lists."""
        while path:
            self.first[path] = min(self.first.get(path, index), index)
            path = path.rpartition(".")[0]

    def outline(self) -> Panel:
        """Return the whole model as one panel."""
        return self._panel("", self.model)

    def _panel(self, path: str, module: nn.Module) -> Panel:
        items: list[Box | Panel] = []
        strip: list[Line] = []
        order: list[str] = []
        for child_path, child in self._children(path, module):
            if _parts_of(child):
                self._end_strip(items, strip)
                grouped = self._is_group(child_path, child)
                maker: Any = self._panel if grouped else self._box
                items.append(maker(child_path, child))
                items[-1].is_fed = self._is_fed(child_path, order, module)
            else:
                if not strip or len(strip) == _LONGEST_STRIP:
                    self._end_strip(items, strip)
                    is_fed = self._is_fed(child_path, order, module)
                    items.append(Box("", "", strip, is_fed=is_fed))
                strip.append(self._line(child_path, child, 0))
            order.append(child_path)
        self._end_strip(items, strip)
        return Panel(
            path, name_class(module), items, self.sizes.get(path, ""), self.labels.get(path, [])
        )

    def _end_strip(self, items: list["Box | Panel"], strip: list[Line]) -> None:
        """Give the lines that were gathered to their box, and start anew."""
        if strip:
            last = items[-1]
            if isinstance(last, Box):
                last.lines = list(strip)
                last.size = self.sizes.get(strip[-1].path, "")
            strip.clear()

    def _children(self, path: str, module: nn.Module) -> list[tuple[str, nn.Module]]:
        """The children in the order in which they first ran; as registered without a trace."""
        prefix = f"{path}." if path else ""
        children = [(prefix + name, child) for name, child in _parts_of(module)]
        order = {child_path: number for number, (child_path, _) in enumerate(children)}
        last = float("inf")
        return sorted(children, key=lambda c: (self.first.get(c[0], last), order[c[0]]))

    def _is_group(self, path: str, module: nn.Module) -> bool:
        """Whether a module is drawn as a frame around its children."""
        if path in self.adds or not any(_parts_of(child) for _, child in _parts_of(module)):
            return False
        leaves = _count_leaves(module)
        named = _GROUPS.search(name_class(module)) is not None
        return isinstance(module, _CONTAINERS) or named or leaves > _MANY_LEAVES

    def _is_fed(self, path: str, before: list[str], parent: nn.Module) -> bool:
        """Whether the output of the item before is the input of this one."""
        if not before:
            return False
        if self.trace is None:
            return isinstance(parent, nn.Sequential)
        entry = self.trace.entries.get(Call(path, 1))
        if entry is None:
            return False
        makers = {call.path for call in (*entry.producers, *entry.calls)}
        return any(maker == before[-1] or maker.startswith(before[-1] + ".") for maker in makers)

    def _ran(self, path: str) -> bool:
        path = self.known_as.get(path, path)
        return self.trace is None or self.trace.runs[path] > 0 or path in self.first

    def _box(self, path: str, module: nn.Module) -> Box:
        lines = [line for _, line in self._inside(path, module, 0)]
        size, labels = self.sizes.get(path, ""), self.labels.get(path, [])
        return Box(path, name_class(module), lines, size, labels, self._ran(path))

    def _inside(self, path: str, module: nn.Module, depth: int) -> list[tuple[float, Line]]:
        """The lines for what is in a module, each with its moment; residual adds among them."""
        lines = [
            (self.first.get(child_path, float("inf")), line)
            for child_path, child in self._children(path, module)
            for line in self._lines(child_path, child, depth)
        ]
        for add in self.adds.get(path, []):
            number = next((i for i, (first, _) in enumerate(lines) if first > add), len(lines))
            lines.insert(number, (add, Line("+ shortcut", "add", depth, is_add=True)))
        return lines

    def _lines(self, path: str, module: nn.Module, depth: int) -> Iterator[Line]:
        """A line for the module; more where it is a mere container or has plugs inside."""
        own = self._line(path, module, depth)
        inside, own.labels = own.labels, []
        has_plugs = any(found.startswith(f"{path}.") for found in self.labels)
        if has_plugs or (isinstance(module, _CONTAINERS) and depth == 0):
            yield own
            lines = [line for _, line in self._inside(path, module, depth + 1)]
            yield from lines
            own = lines[-1] if lines else own
            own.labels = [*own.labels, *inside]
        else:
            own.labels = inside
            yield own

    def _line(self, path: str, module: nn.Module, depth: int) -> Line:
        name = path.rpartition(".")[2]
        is_shared = path in self.known_as  # its runs are those of all its names together
        runs = 1 if self.trace is None or is_shared else self.trace.runs[path]
        text = f"{name} {TIMES}{runs}" if runs > 1 else name
        detail = describe(module) + (" shared" if is_shared else "")
        if path in self.on_shortcut and path.rpartition(".")[0] not in self.on_shortcut:
            detail += ", on the shortcut"  # not after the line above it
        labels = self.labels.get(path, [])
        return Line(text, detail, depth, path, labels, self._ran(path))


def _find_shared(model: nn.Module) -> dict[str, str]:
    """The first name of each module that has several, by all its names."""
    names: dict[int, list[str]] = {}
    for path, module in model.named_modules(remove_duplicate=False):
        names.setdefault(id(module), []).append(path)
    return {path: paths[0] for paths in names.values() if len(paths) > 1 for path in paths}


def _parts_of(module: nn.Module) -> list[tuple[str, nn.Module]]:
    return [
        (name, child) for name, child in module.named_children() if not isinstance(child, Holder)
    ]


def _count_leaves(module: nn.Module) -> int:
    parts = _parts_of(module)
    return sum(_count_leaves(child) for _, child in parts) if parts else 1


def _read_labels(model: nn.Module) -> dict[str, list[Label]]:
    """The plugs by the path of their host module, in the order in which they run."""
    planned = {(entry["path"], entry["name"]): entry for entry in recall(model)}
    labels: dict[str, list[Label]] = {}
    for path, name, plug in find_plugs(model):
        entry = planned.get((path, name), {})
        carrier, is_op, operation = path.partition("!")
        place = PLACES.get(entry.get("role", ""), f"after {_nickname(carrier)}")
        if isinstance(plug, Replacement):
            place = f"in the place of {_nickname(path)}"
        elif isinstance(plug, Intake):
            place = f"before {_nickname(path)}"
        elif is_op:
            place += f" ({operation})"
        if entry.get("role") == "stage" and entry.get("stage"):
            place += f" {entry['stage']}"
        module = entry.get("module", type(plug).__name__)
        size = sum(p.numel() for p in plug.parameters())
        labels.setdefault(carrier, []).append(Label(name, place, module, size))
    return labels


def _nickname(path: str) -> str:
    """The end of a path that a reader knows: a number alone says nothing."""
    words = path.split(".")
    start = len(words) - 1
    while start > 0 and words[start].isdigit():
        start -= 1
    return ".".join(words[start:])


def describe(module: nn.Module) -> str:
    """Return what a layer is in a few signs: kernel, widths, stride."""
    if isinstance(module, (nn.Conv2d, nn.ConvTranspose2d)):
        kernel = TIMES.join(map(str, module.kernel_size))
        parts = [f"{kernel} {module.in_channels}→{module.out_channels}"]
        if module.stride != (1, 1):
            parts.append(f"/{module.stride[0]}")
        if module.groups > 1:
            parts.append("dw" if module.groups == module.in_channels else f"g{module.groups}")
        if module.dilation != (1, 1):
            parts.append(f"d{module.dilation[0]}")
        return " ".join(parts)
    if isinstance(module, nn.Linear):
        return f"{module.in_features}→{module.out_features}"
    return name_class(module)


def find_labels(panel: Panel) -> Iterator[Label]:
    """Yield every plug of an outline in the order of the drawing."""
    for item in panel.items:
        if isinstance(item, Panel):
            yield from find_labels(item)
        else:
            for line in item.lines:
                yield from line.labels
            yield from item.labels
    yield from panel.labels
