"""Find residual blocks, stages and the end of the backbone in a trace.

A residual add joins two equal maps that come from one map inside the same module call, where one
side (the shortcut) has nothing of its own, or at most a projection. A stage ends where the
resolution is about to fall. The backbone ends before the map is collapsed for the head.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from torch import nn

from torchplug.surgery.trace import Call, Trace, Value

_ADDS = {"add", "add_", "__add__", "__iadd__", "__radd__"}
JOINS = _ADDS | {"cat", "concat", "concatenate"}
MIXING = {"conv1d", "conv2d", "conv_transpose2d", "linear", "matmul", "bmm", "__matmul__"} | {
    "einsum",
    "deform_conv2d",
    "scaled_dot_product_attention",
    "stand_in",  # a plug in the place of a convolution
}
_POOLS = {"max_pool2d", "avg_pool2d", "lp_pool2d", "boolean_dispatch", "fn"} | {
    "adaptive_avg_pool2d",
    "adaptive_max_pool2d",
}
_FLATTENS = {"flatten", "view", "reshape"}
_COLLAPSES = {"mean", "amax", "sum", *_FLATTENS, *_POOLS}
UPSAMPLES = {"interpolate", "upsample", "conv_transpose2d", "pixel_shuffle", "grid_sample"}
_DOWNSAMPLES = MIXING | _POOLS | {"__getitem__", "pixel_unshuffle", "interpolate"}
# what a projection shortcut may consist of
_LIGHT = {"batch_norm", "layer_norm", "group_norm", "instance_norm", "conv2d", "pad", "dropout"} | (
    _POOLS
    | {"permute", "contiguous", "to", "type", "clone", "__getitem__", "relu", "relu_", "cat"}
    | {"apply_one", "stand_in"}  # plugs that are already there
)
_MOST_PROJECTIONS = 2
# what a sum of parallel branches that fold into one convolution may consist of
_SCALES = {"mul", "mul_", "__mul__", "__rmul__"}
_LINEAR = {"conv2d", "batch_norm", "pad", "sub", "__sub__", "contiguous"} | _SCALES | _ADDS


@dataclass(frozen=True, eq=False)
class ResidualBlock:
    """An add of a branch to a shortcut, and the module call that executes it."""

    add: Value
    branch: Value
    call: Call


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


def find_blocks(trace: Trace) -> list[ResidualBlock]:
    """Return the residual blocks in order of execution."""
    blocks = []
    for add in trace.maps:
        operands = [value for value in add.inputs if value.is_map]
        if add.op not in _ADDS or len(operands) != 2 or operands[0].shape != operands[1].shape:
            continue
        call = _executing_call(add, operands)
        branch = _find_branch(operands, call) or _find_branch_beside(add, operands, call)
        if branch is not None:
            blocks.append(ResidualBlock(add, branch, call))
    return blocks


def find_foldable(trace: Trace) -> set[Value]:
    """Return what is made inside sums of branches that fold into one convolution."""
    found: set[Value] = set()
    for add in trace.maps:
        operands = [value for value in add.inputs if value.is_map]
        if add.op in _ADDS and len(operands) == 2 and operands[0].shape == operands[1].shape:
            cones = [_cone(value, _executing_call(add, operands)) for value in operands]
            own = cones[0] ^ cones[1]
            if cones[0] & cones[1] and _is_one_convolution(own):
                found |= own
    return found


def _executing_call(add: Value, operands: list[Value]) -> Call:
    """The call that executes an add; one level up where a leaf module does nothing else."""
    depth = len(add.calls) - 1
    if depth > 0 and not any(value.is_inside(add.calls[depth]) for value in operands):
        depth -= 1
    return add.calls[depth]


def _find_branch(operands: list[Value], call: Call) -> Value | None:
    """Return the operand that is the residual branch, or None if this is no residual add."""
    cones = [_cone(value, call) for value in operands]
    if not cones[0] & cones[1]:
        return None  # the operands do not come from one map: a merge
    own = [cones[0] - cones[1], cones[1] - cones[0]]
    if any(value.op in UPSAMPLES for side in own for value in side):
        return None
    mixing = [sum(value.op in MIXING for value in side) for side in own]
    if _is_one_convolution(own[0] | own[1]):
        return None
    for shortcut in (0, 1):
        branch = 1 - shortcut
        identity = not own[shortcut] and mixing[branch] > 0
        if identity or (_is_light(own[shortcut]) and mixing[branch] > mixing[shortcut]):
            return operands[branch]
    return None


def _find_branch_beside(add: Value, operands: list[Value], call: Call) -> Value | None:
    """Return the branch of a block that got its shortcut ready made, as an argument (DLA)."""
    inside = [value for value in operands if value.is_inside(call)]
    depth = add.calls.index(call)
    if len(inside) != 1 or depth == 0:
        return None
    branch = _find_branch(operands, add.calls[depth - 1])
    return branch if branch is inside[0] else None


def _is_one_convolution(values: set[Value]) -> bool:
    """Whether the two sides sum to one convolution: parallel kernels, norms and scales.

    RepVGG, MobileOne, FastViT and RepViT fold such sums into one kernel for inference. They are
    no residual blocks, and a module inside one would make the folding wrong.
    """
    depth: dict[Value, int] = {}
    for value in sorted(values, key=lambda value: value.index):
        maps = [source for source in value.inputs if source.is_map]
        if value.op not in _LINEAR or (value.op in _SCALES and len(maps) > 1):
            return False
        before = max((depth.get(source, 0) for source in maps), default=0)
        depth[value] = before + (value.op in MIXING)
    return max(depth.values(), default=0) == 1


def _is_light(side: set[Value]) -> bool:
    projections = sum(value.op in MIXING for value in side)
    return all(value.op in _LIGHT for value in side) and projections <= _MOST_PROJECTIONS


def _cone(value: Value, call: Call) -> set[Value]:
    """What ``value`` was made from inside ``call``, and the maps that entered it."""
    seen: set[Value] = set()
    pending = [value]
    while pending:
        current = pending.pop()
        if current in seen or not current.from_example:
            continue
        seen.add(current)
        if current.is_inside(call):
            pending.extend(current.inputs)
    return seen


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
    last = backbone_end or _find_backbone_end(trace, blocks, image, limit)
    if ends:
        kept = sorted(ends, key=lambda end: end.index)
        if backbone_end is None and (last is None or last.index < kept[-1].index):
            last = kept[-1]
    else:
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


def find_image(trace: Trace) -> Value | None:
    """The map that the first convolution reads."""
    for value in trace.maps:
        if value.op == "conv2d":
            return next((v for v in value.inputs if v.is_map), None)
    return None


def find_upsamples(trace: Trace, image: Value) -> Iterator[Value]:
    """Yield the maps that an upsampling operation enlarged, after the image was read."""
    for value in trace.maps:
        source = next((v for v in value.inputs if v.is_map), None)
        grows = source is not None and value.size[0] > source.size[0]
        if value.op in UPSAMPLES and grows and value.index > image.index:
            yield value


def _resolution_falls(trace: Trace, image: Value, limit: int) -> Iterator[tuple[float, Value]]:
    """Yield each resolution that is left, with the first operation that leaves it."""
    falls: dict[float, Value] = {}
    for value in trace.maps:
        source = next((v for v in value.inputs if v.is_map), None)
        if source is None or value.index > limit or value.op not in _DOWNSAMPLES:
            continue
        height, below = source.size[0], value.size[0]
        if source is image or source.op == "pad" or below <= 1 or below * 1.5 > height:
            continue
        resolution = image.size[0] / 2 ** round(math.log2(image.size[0] / height))
        falls.setdefault(resolution, value)
    yield from sorted(falls.items(), reverse=True)


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


def _find_backbone_end(
    trace: Trace, blocks: list[ResidualBlock], image: Value, limit: int
) -> Value | None:
    """The map before the global collapse, or else the output of the last block's stage.

    A detector's heads flatten many maps, and those of a network with a neck may flatten regions:
    there only a global pooling ends the backbone.
    """
    pooled: list[Value] = []
    flattened: list[Value] = []
    for value in trace.values:
        source = next((v for v in value.inputs if v.is_map), None)
        if source is None or value.op not in _COLLAPSES or source.index <= image.index:
            continue
        if max(value.shape[2:], default=1) == 1 or value.op in _FLATTENS:
            if _feeds_a_map(value):
                continue
            (flattened if value.op in _FLATTENS else pooled).append(source)
    has_heads = limit < len(trace.values) or len({source.size for source in flattened}) > 1
    ends = pooled if has_heads else sorted(pooled + flattened, key=lambda value: value.index)
    if ends:
        return ends[0]
    inner = [block for block in blocks if block.add.index < limit]
    return _output_around(inner[-1], trace, limit) if inner else None


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
