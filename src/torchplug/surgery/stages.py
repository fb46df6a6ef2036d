"""Find the stages of a network in a trace: a stage ends where the resolution is about to fall."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from torch import nn

from torchplug.surgery.ending import find_backbone_end
from torchplug.surgery.roles import JOINS, POOLS, ResidualBlock, find_image, find_upsamples
from torchplug.surgery.trace import Call, Trace, Value

_STRIDED = {"conv2d", "deform_conv2d", "stand_in", "__getitem__"}
_DOWNSAMPLES = _STRIDED | POOLS | {"pixel_unshuffle", "interpolate"}


@dataclass(frozen=True, eq=False)
class Stages:
    """The last map of each stage in order, and the last map of the backbone."""

    ends: tuple[Value, ...]
    backbone_end: Value | None
    first: int | None = None
    """Index of the first value of stage 1."""

    def number(self, value: Value) -> int | None:
        """Return the stage, from 1, that a value belongs to; ``None`` for stem and head."""
        if self.first is None or value.index < self.first:
            return None
        for number, end in enumerate(self.ends, start=1):
            if value.index <= end.index:
                return number
        last = self.backbone_end
        return len(self.ends) if last is not None and value.index <= last.index else None


def find_stages(
    trace: Trace,
    blocks: list[ResidualBlock],
    model: nn.Module,
    *,
    ends: Sequence[Value] = (),
    backbone_end: Value | None = None,
    has_stem: bool = True,
) -> Stages:
    """Return the ends of the stages, the stem left out, and the end of the backbone.

    ``ends`` and ``backbone_end`` are what is known without the trace; ``has_stem`` says whether
    the first of the ends may only close the stem.
    """
    image = find_image(trace)
    if image is None:
        return Stages((), None)
    first_upsample = next(find_upsamples(trace, image), None)
    limit = len(trace.values) if first_upsample is None else first_upsample.index
    kept = sorted(ends, key=lambda end: end.index)
    last = backbone_end or find_backbone_end(trace, blocks, image, limit, kept)
    if not ends:
        kept = _find_ends(trace, image, limit, model)
        kept = [end for end in kept if last is None or end.index < last.index]
        if last is not None and (not kept or kept[-1].size[0] > last.size[0]):
            kept.append(last)
    stem = None
    if has_stem:
        stem, kept = _split_stem(kept, blocks, trace, image)
    first = stem.index + 1 if stem is not None else image.index + 1
    return Stages(tuple(kept), last, first)


def _find_ends(trace: Trace, image: Value, limit: int, model: nn.Module) -> list[Value]:
    """The maps at which the resolution is about to fall, the stem's among them."""
    maps = [
        _last_map_before(first_down, resolution, model, trace)
        for resolution, first_down in _resolution_falls(trace, image, limit)
    ]
    return [value for value in maps if value is not None]


def _resolution_falls(trace: Trace, image: Value, limit: int) -> Iterator[tuple[float, Value]]:
    """Yield each resolution that is left, with the first operation that leaves it."""
    falls: dict[float, Value] = {}
    for value in trace.maps:
        source = next((v for v in value.inputs if v.is_map), None)
        if source is None or value.index > limit or value.op not in _DOWNSAMPLES:
            continue
        height, below = source.size[0], value.size[0]
        if source is image or below <= 1 or below * 1.5 > height:
            continue
        resolution = image.size[0] / 2 ** round(math.log2(image.size[0] / height))
        if resolution not in falls and not _comes_back(value, source, limit):
            falls[resolution] = value
    yield from sorted(falls.items(), reverse=True)


def _comes_back(value: Value, source: Value, limit: int) -> bool:
    """Whether a map like ``source`` is made from the smaller one: it was for an attention only."""
    seen: set[Value] = set()
    pending = [user for user in value.users if user.index < limit]
    while pending:
        current = pending.pop()
        if current in seen:
            continue
        seen.add(current)
        if current.is_map and current.shape == source.shape:
            return True
        pending.extend(user for user in current.users if user.index < limit)
    return False


def _last_map_before(
    down: Value, resolution: float, model: nn.Module, trace: Trace
) -> Value | None:
    """The map that enters the outermost call that begins with ``down``.

    A call that finished a block at the old resolution before it came to ``down`` holds more than
    the next stage, and so does a container whose first convolution is in an earlier child.
    """
    for depth, call in enumerate(down.calls):
        entry = trace.entries.get(call)
        if not call.path or entry is None or not entry.is_map:
            continue
        if _is_at(entry, resolution) and not _holds_more(call, depth, down, model, trace):
            return entry
    return next((value for value in down.inputs if value.is_map), None)


def _is_at(value: Value, resolution: float) -> bool:
    return abs(math.log2(max(value.size[0], 1) / resolution)) < 0.3


def _holds_more(call: Call, depth: int, down: Value, model: nn.Module, trace: Trace) -> bool:
    inside = [v for v in trace.maps if v.index < down.index and v.is_inside(call)]
    old = trace.entries[call].size[0]
    if any(value.op in JOINS and _is_at(value, old) for value in inside):
        return True
    if not isinstance(model.get_submodule(call.path), nn.Sequential):
        return False
    first = next((value for value in inside if value.op == "conv2d"), None)
    if first is None or len(first.calls) <= depth + 1 or len(down.calls) <= depth + 1:
        return False
    return first.calls[depth + 1] != down.calls[depth + 1]


def _split_stem(
    ends: list[Value], blocks: list[ResidualBlock], trace: Trace, image: Value
) -> tuple[Value | None, list[Value]]:
    """Separate the leading ends that only close the stem.

    A stem holds no residual block and halves the image at most once, or holds at most one
    convolution. In a network without blocks the convolutions alone decide.
    """
    stem = None
    convolutions = [value.index for value in trace.maps if value.op == "conv2d"]
    adds = [block.add.index for block in blocks]
    while len(ends) > 1:
        few = sum(index <= ends[0].index for index in convolutions) <= 1
        high = bool(adds) and image.size[0] <= 2 * ends[0].size[0] + 1
        if any(index <= ends[0].index for index in adds) or not (few or high):
            break
        stem, *ends = ends
    return stem, ends
