"""Find the end of a backbone in a trace: the map that a head collapses, or a decoder enlarges."""

from collections.abc import Iterator, Sequence

from torchplug.surgery.roles import (
    POOLS,
    ResidualBlock,
    find_upsamples,
    is_computed_from,
    kernel_of,
)
from torchplug.surgery.trace import Call, Trace, Value

_FLATTENS = {"flatten", "view", "reshape"}
_COLLAPSES = {"mean", "amax", "sum", *_FLATTENS, *POOLS}
_LAYOUTS = {"permute", "transpose", "contiguous", *_FLATTENS}


def find_backbone_end(
    trace: Trace, blocks: list[ResidualBlock], image: Value, limit: int, known: Sequence[Value]
) -> Value | None:
    """Return the last map before the head or the decoder.

    That is what a head collapses; else the last of the stages that are ``known`` without the
    trace; else the deepest map that a decoder enlarges, or where the last residual block ends.

    Args:
        trace: the record of one forward.
        blocks: its residual blocks.
        image: the map that the first convolution reads.
        limit: index of the first map that is enlarged.
        known: ends of stages, in order of execution.
    """
    last = _find_collapsed(trace, image, limit)
    if known and (last is None or last.index < known[-1].index):
        return known[-1]
    if last is not None:
        return last
    inner = [block for block in blocks if block.add.index < limit]
    bottom = _find_bottom(trace, image, limit)
    if not inner:
        return bottom
    last = _follow(_output_around(inner[-1], trace, limit), inner[-1], trace, limit)
    return bottom if bottom is not None and bottom.size[0] < last.size[0] else last


def _find_collapsed(trace: Trace, image: Value, limit: int) -> Value | None:
    """The map before the global collapse.

    A detector's heads flatten many maps, and those of a network with a neck may flatten regions:
    there only a global pooling ends the backbone.
    """
    pooled: list[Value] = []
    flattened: list[Value] = []
    for value in trace.values:
        source = _source_of(value)
        if source is None or value.op not in _COLLAPSES or source.index <= image.index:
            continue
        if max(value.shape[2:], default=1) == 1 or value.op in _FLATTENS:
            if _feeds_a_map(value):
                continue
            (flattened if value.op in _FLATTENS else pooled).append(source)
    has_heads = limit < len(trace.values) or len({source.size for source in flattened}) > 1
    ends = pooled if has_heads else sorted(pooled + flattened, key=lambda value: value.index)
    return ends[0] if ends else None


def _source_of(value: Value) -> Value | None:
    return next((source for source in value.inputs if source.is_map), None)


def _feeds_a_map(value: Value) -> bool:
    """Whether a map with more than one position is made from ``value``."""
    seen: set[Value] = set()
    pending = list(value.users)
    while pending:
        current = pending.pop()
        if current in seen:
            continue
        seen.add(current)
        if current.is_map and min(current.size) > 1:
            return True
        pending.extend(current.users)
    return False


def _output_around(block: ResidualBlock, trace: Trace, limit: int) -> Value:
    """The output of the outermost call around a block that is one map of the block's size."""
    calls = block.add.calls[: block.add.calls.index(block.call) + 1]
    outputs = {
        call: value
        for value in trace.maps
        if value.index < limit and value.size == block.add.size
        for call in value.producers
    }
    return next((outputs[call] for call in calls if call.path and call in outputs), block.add)


def _follow(output: Value, block: ResidualBlock, trace: Trace, limit: int) -> Value:
    """The end of what alone comes after the last block: a last convolution, a bridge.

    It must be in the module that holds the block, and that module must come to its end before
    anything is enlarged, or the end must be what a decoder enlarges; a head is no backbone.
    """
    inside = [call for call in output.producers if call in block.add.calls]
    around = block.add.calls[: block.add.calls.index(inside[-1])] if inside else ()
    if not around or limit == len(trace.values):
        return output
    last = current = output
    while len(users := _users_of(current)) == 1 and _goes_on(current, users[0], around[-1]):
        current = users[0]
        if any(_is_child(call, current, around[-1]) for call in current.producers):
            last = current
    is_over = bool(around[-1].path) and not trace.values[limit].is_inside(around[-1])
    is_bottom = any(
        user in current.users and is_computed_from(user)
        for user in find_upsamples(trace, trace.values[0])
    )
    return _before_projection(last) if is_over or is_bottom else output


def _users_of(value: Value) -> list[Value]:
    """What is made from a map; where a plug stands in for a module, the two count as one."""
    standing = {user for user in value.users if user.op == "stand_in"}
    return [user for user in value.users if standing.isdisjoint(user.users)]


def _goes_on(value: Value, user: Value, around: Call) -> bool:
    return user.is_map and user.size == value.size and user.is_inside(around)


def _is_child(call: Call, value: Value, parent: Call) -> bool:
    """Whether ``parent`` itself made the call, which returned ``value``."""
    return call in value.calls and value.calls[value.calls.index(call) - 1] == parent


def _find_bottom(trace: Trace, image: Value, limit: int) -> Value | None:
    """The coarsest map that convolutions of an encoder made, as a decoder takes it in."""
    convolved = [
        value.size[0]
        for value in trace.maps
        if image.index < value.index < limit and value.op == "conv2d" and kernel_of(value) > 1
    ]
    coarsest = min(convolved, default=image.size[0])
    if coarsest >= image.size[0] or limit == len(trace.values):
        return None
    for upsampled in find_upsamples(trace, image):
        for value in _walk_back(upsampled):
            if value.size[0] == coarsest and is_computed_from(upsampled):
                return _before_projection(value)
            if value.size[0] >= coarsest:
                break
    return None


def _walk_back(value: Value) -> Iterator[Value]:
    source = _source_of(value)
    while source is not None:
        yield source
        source = _source_of(source)


def _before_projection(value: Value) -> Value:
    """The map before a bare projection, which is the decoder's own, as in a feature pyramid."""
    projected = _before_layout(value)
    is_projection = projected.op == "linear" or (
        projected.op == "conv2d" and kernel_of(projected) == 1
    )
    if not is_projection:
        return value
    source = next((v for v in projected.inputs if v.from_example), projected)
    while not (source.is_map and source.size == value.size):
        before = next((v for v in source.inputs if v.from_example), None)
        if source.op not in _LAYOUTS or before is None:
            return value
        source = before
    return source


def _before_layout(value: Value) -> Value:
    while value.op in _LAYOUTS:
        value = next((v for v in value.inputs if v.from_example), value)
    return value
