"""Find upsampled maps, the merges that take them in, and the levels of a pyramid in a trace."""

from dataclasses import dataclass

from torchplug.surgery.roles import JOINS, find_image, find_upsamples, is_computed_from
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

    returned: tuple[Value, ...] = ()
    """The maps of different sizes that the neck hands on together, one of each size."""

    def fuses(self, merge: Value) -> bool:
        """Whether a merge takes in maps that were enlarged from several sizes."""
        enlarged = (value for value, into in self.joined if into is merge)
        return len({v.size for value in enlarged for v in value.inputs if v.is_map}) > 1


def find_neck(trace: Trace) -> Neck:
    """Return the upsampled maps, the merges and the levels of a pyramid that is returned."""
    image = find_image(trace)
    if image is None:
        return Neck()
    upsamples = [value for value in find_upsamples(trace, image) if is_computed_from(value)]
    pairs = [(value, _find_merge(value, trace)) for value in upsamples]
    merges = {merge: None for _, merge in pairs if merge is not None}
    levels = _find_returned(trace, max((merge.index for merge in merges), default=-1))
    return Neck(tuple(upsamples), tuple(sorted(merges, key=_position)), tuple(pairs), levels)


def _position(value: Value) -> int:
    return value.index


def _find_merge(upsampled: Value, trace: Trace) -> Value | None:
    """The first operation that joins what was upsampled with a map of another origin.

    What is pooled from it, for the gate of an attention, is another matter.
    """
    made_from = {upsampled}
    for value in trace.values[upsampled.index + 1 :]:
        if not value.is_map or made_from.isdisjoint(value.inputs):
            continue
        if 2 * value.size[0] <= upsampled.size[0]:
            continue
        others = [v for v in value.inputs if v.is_map and v not in made_from]
        if value.op in _MERGES and any(other.size == value.size for other in others):
            return value
        made_from.add(value)
    return None


def _find_returned(trace: Trace, last_merge: int) -> tuple[Value, ...]:
    """The maps of different sizes that a module call first returned, or got, after the merges.

    A neck may add coarser levels to its list: the larger group goes before its part. What a head
    adds, such as the prototypes of masks, is finer.
    """
    levels: list[Value] = []
    for group in trace.groups:
        if group.index <= last_merge or not _is_pyramid(group, last_merge):
            continue
        if not levels or _is_extended(set(levels), set(_levels_in(group))):
            levels = _levels_in(group)
    return tuple(dict.fromkeys(levels))


def _is_extended(levels: set[Value], group: set[Value]) -> bool:
    coarsest = min(value.size for value in levels)
    return levels < group and all(value.size < coarsest for value in group - levels)


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
