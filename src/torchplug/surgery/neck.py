"""Find upsampled maps, the merges that take them in, and the levels of a pyramid in a trace."""

from dataclasses import dataclass

from torchplug.surgery.roles import JOINS, MIXING, find_image, find_upsamples
from torchplug.surgery.trace import Group, Trace, Value

_MERGES = JOINS | {"mul", "mul_", "__mul__"}


@dataclass(frozen=True, eq=False)
class Neck:
    """What lies behind the backbone, each list in order of execution."""

    upsamples: tuple[Value, ...] = ()
    """Enlarged maps that something is computed from; scores that are only resized are not."""

    merges: tuple[Value, ...] = ()
    """For each of them the first add, concatenation or product with another map."""

    joined: tuple[tuple[Value, Value | None], ...] = ()
    """Each enlarged map with its merge, if there is one."""

    levels: tuple[Value, ...] = ()
    """The maps of different sizes that the neck hands on, one of each size."""


def find_neck(trace: Trace, backbone_end: Value | None) -> Neck:
    """Return the upsampled maps, the merges and the levels of the pyramid."""
    image = find_image(trace)
    if image is None:
        return Neck()
    upsamples = [value for value in find_upsamples(trace, image) if is_computed_from(value)]
    pairs = [(value, _find_merge(value, trace)) for value in upsamples]
    joined = [(value, merge) for value, merge in pairs if merge is not None]
    merges = {merge: None for _, merge in joined}
    levels = _find_returned(trace, max((merge.index for merge in merges), default=-1))
    if not levels:
        levels = _find_chain(joined, trace, backbone_end)
    return Neck(tuple(upsamples), tuple(sorted(merges, key=_position)), tuple(pairs), levels)


def _position(value: Value) -> int:
    return value.index


def is_computed_from(value: Value) -> bool:
    """Whether a convolution or another mixing operation reads what is made from ``value``."""
    seen: set[Value] = set()
    pending = list(value.users)
    while pending:
        current = pending.pop()
        if current.op in MIXING:
            return True
        if current not in seen:
            seen.add(current)
            pending.extend(current.users)
    return False


def _find_merge(upsampled: Value, trace: Trace) -> Value | None:
    """The first operation that joins what was upsampled with a map of another origin."""
    made_from = {upsampled}
    for value in trace.values[upsampled.index + 1 :]:
        if not value.is_map or made_from.isdisjoint(value.inputs):
            continue
        others = [v for v in value.inputs if v.is_map and v not in made_from]
        if value.op in _MERGES and any(other.size == value.size for other in others):
            return value
        made_from.add(value)
    return None


def _find_returned(trace: Trace, last_merge: int) -> tuple[Value, ...]:
    """The maps of different sizes that a module call first returned, or got, after the merges.

    A neck may add coarser levels to its list: the larger group goes before its part.
    """
    levels: list[Value] = []
    for group in trace.groups:
        if group.index <= last_merge or not _is_pyramid(group, last_merge):
            continue
        if not levels or set(levels) < set(_levels_in(group)):
            levels = _levels_in(group)
    return tuple(dict.fromkeys(levels))


def _is_pyramid(group: Group, last_merge: int) -> bool:
    """Whether a group is of several sizes and no older than the merges.

    Of a network with merges, the lists that its parts exchange before the last merge are not what
    it hands on; the group must come with a map that was made by then or later.
    """
    maps = _levels_in(group)
    newest = max((value.index for value in maps), default=-1)
    return newest >= last_merge and len({value.size for value in maps}) > 1


def _levels_in(group: Group) -> list[Value]:
    """The maps that may be levels: the image and a globally pooled vector are none."""
    return [v for v in group.values if v.op != "input" and not v.op.startswith("adaptive_")]


def _find_chain(
    joined: list[tuple[Value, Value]], trace: Trace, backbone_end: Value | None
) -> tuple[Value, ...]:
    """The levels of a decoder that goes up step by step: what each merging call returns."""
    levels: dict[tuple[int, int], Value] = {}
    for upsampled, merge in joined:
        source = next(value for value in upsampled.inputs if value.is_map)
        end = backbone_end
        if end is not None and source.size == end.size and source.index > end.index:
            levels.setdefault(source.size, source)
        level = _output_of_call(merge, trace)
        levels.setdefault(level.size, level)
    return tuple(levels.values()) if len(levels) > 1 else ()


def _output_of_call(merge: Value, trace: Trace) -> Value:
    """What the call that executes a merge returns, if it is one map of the merge's size."""
    call = merge.calls[-1]
    for value in trace.maps:
        if call in value.producers and call.path and value.size == merge.size:
            return value
    return merge
