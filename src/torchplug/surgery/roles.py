"""Find residual blocks in a trace, and where maps are enlarged.

A residual add joins two equal maps that come from one map inside the same module call, where one
side (the shortcut) has nothing of its own, or at most a projection.
"""

from collections.abc import Iterator
from dataclasses import dataclass

from torchplug.surgery.trace import Call, Trace, Value

_ADDS = {"add", "add_", "__add__", "__iadd__", "__radd__"}
JOINS = _ADDS | {"cat", "concat", "concatenate"}
MIXING = {"conv1d", "conv2d", "conv_transpose2d", "linear", "matmul", "bmm", "__matmul__"} | {
    "einsum",
    "deform_conv2d",
    "scaled_dot_product_attention",
    "stand_in",  # a plug in the place of a convolution
}
POOLS = {"max_pool2d", "avg_pool2d", "lp_pool2d", "boolean_dispatch", "fn"} | {
    "adaptive_avg_pool2d",
    "adaptive_max_pool2d",
}
UPSAMPLES = {"interpolate", "upsample", "conv_transpose2d", "pixel_shuffle", "grid_sample"}
# what a projection shortcut may consist of
_LIGHT = {"batch_norm", "layer_norm", "group_norm", "instance_norm", "conv2d", "pad", "dropout"} | (
    POOLS
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


def find_on_shortcut(block: ResidualBlock) -> set[str]:
    """Return the paths of the modules in a block that work on its shortcut only."""
    others = [value for value in block.add.inputs if value.is_map and value is not block.branch]
    branch = _cone(block.branch, block.call)
    own = {value for other in others for value in _cone(other, block.call)} - branch
    paths = {call.path for value in own for call in value.calls if value.is_inside(block.call)}
    return paths - {call.path for value in branch for call in value.calls}


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
        if source is None or value.op not in UPSAMPLES or value.index <= image.index:
            continue
        if value.size[0] > source.size[0] and _keeps_its_form(value, source):
            yield value


def _keeps_its_form(value: Value, source: Value) -> bool:
    """Whether both sides grew alike, or a pooled row or column was spread.

    Points that are read off a map, as deformable attention does, are no larger map.
    """
    if min(source.size) == 1:
        return True
    growth = [after / before for after, before in zip(value.size, source.size, strict=True)]
    return max(growth) <= 2 * min(growth)


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


def kernel_of(value: Value) -> int:
    """The larger side of the kernel of the convolution that made a map; 1 without one."""
    shapes = [source.shape for source in value.inputs if not source.from_example]
    return max((max(shape[2:]) for shape in shapes if len(shape) == 4), default=1)
