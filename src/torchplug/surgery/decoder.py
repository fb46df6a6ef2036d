"""Find the blocks of a decoder in a trace: what enlarges a map, joins it with a finer one, refines.

The module call that executes the upsampling and the merge is the block (a U-Net's ``Up``), or else
the module that alone reads the merged map (a double convolution after a bare ``cat``). A pyramid
that pools a map and joins it at its own size goes down before it goes up: it is no block.
"""

from collections.abc import Iterator
from dataclasses import dataclass

from torchplug.surgery.neck import Neck
from torchplug.surgery.roles import MIXING, UPSAMPLES, ResidualBlock, is_computed_from, kernel_of
from torchplug.surgery.stages import Stages
from torchplug.surgery.trace import Call, Trace, Value


@dataclass(frozen=True, eq=False)
class DecoderBlock:
    """A module call, and the map that it returns."""

    output: Value
    call: Call


def find_decoder_blocks(trace: Trace, neck: Neck, stages: Stages) -> list[DecoderBlock]:
    """Return the blocks of a decoder in order of execution."""
    finder = _Finder(trace, neck, _lowest_height(trace, neck, stages))
    found = (finder.find(upsampled, merge) for upsampled, merge in neck.joined)
    unique = {block.call: block for block in found if block is not None}
    return sorted(unique.values(), key=lambda block: block.output.index)


def find_levels(trace: Trace, neck: Neck, stages: Stages) -> tuple[Value, ...]:
    """Return the levels of the pyramid: what a neck returns, or what a decoder makes step by step.

    Going up, that is the projected end of the backbone, if there is one, and the last map of each
    size that a merging block returns; one that fuses all levels is a level only where it is the
    only map of its size. What a pooled pyramid joins on its way back is coarser, and nothing is
    computed from a network's scores: neither is a level.
    """
    if neck.returned:
        return neck.returned
    finder = _Finder(trace, neck, _lowest_height(trace, neck, stages))
    end = stages.backbone_end
    levels: dict[tuple[int, int], Value] = {}
    fused: dict[tuple[int, int], Value] = {}
    for upsampled, merge in neck.joined:
        if merge is None or merge.size[0] < finder.lowest:
            continue
        source = next(value for value in upsampled.inputs if value.is_map)
        if end is not None and source.size == end.size and source.index > end.index:
            levels.setdefault(source.size, source)
        level = finder.level_of(upsampled, merge)
        if is_computed_from(level):
            (fused if neck.fuses(merge) else levels)[level.size] = level
    levels = {**fused, **levels}
    ordered = sorted(levels.values(), key=lambda level: level.index)
    return tuple(ordered) if len(ordered) > 1 else ()


def find_encoder_blocks(neck: Neck, stages: Stages, blocks: list[ResidualBlock]) -> list[Value]:
    """Return the maps that end the blocks of an encoder without residual blocks, such as U-Net's.

    There each resolution is one block; the last map is the one that the decoder first enlarges.
    """
    first = min((value.index for value in neck.upsamples), default=0)
    if any(block.add.index < first for block in blocks):
        return []
    ends = [end for end in stages.ends if end.index < first]
    bottom = next((v for value in neck.upsamples[:1] for v in value.inputs if v.is_map), None)
    if ends and bottom is not None and bottom.size[0] < ends[-1].size[0]:
        ends.append(bottom)
    return ends


def _lowest_height(trace: Trace, neck: Neck, stages: Stages) -> int:
    """Height of the coarsest map that the encoder computes, pooled pyramids left aside."""
    first = min((value.index for value in neck.upsamples), default=0)
    heights = [
        value.size[0]
        for value in trace.maps
        if value.op == "conv2d" and value.index < first and kernel_of(value) > 1
    ]
    if stages.backbone_end is not None:
        heights.append(stages.backbone_end.size[0])
    return min(heights, default=0)


class _Finder:
    """Looks for the block around one upsampled map."""

    def __init__(self, trace: Trace, neck: Neck, lowest: int) -> None:
        self.trace, self.neck, self.lowest = trace, neck, lowest
        self.outputs = {call: value for value in trace.maps for call in value.producers}

    def find(self, upsampled: Value, merge: Value | None) -> DecoderBlock | None:
        """Return the block that enlarges a map, or takes in the enlarged one."""
        joined = upsampled if merge is None or merge.size != upsampled.size else merge
        if joined.size[0] <= self.lowest:
            return None
        for call in (*self._executing(joined), *self._reading(joined)):
            output = self.outputs[call]
            # convolutions without padding shrink a map a little
            if output.size[0] * 1.5 > joined.size[0] and is_computed_from(output):
                return DecoderBlock(output, call)
        return None

    def level_of(self, upsampled: Value, merge: Value) -> Value:
        """Return what the block of a merge returns, or else the call that executes it."""
        block = self.find(upsampled, merge)
        if block is not None:
            return block.output
        call = merge.calls[-1]
        output = self.outputs.get(call, merge) if call.path else merge
        return output if output.size == merge.size else merge

    def _executing(self, joined: Value) -> Iterator[Call]:
        """The innermost call that executes this merge, or this upsampling, alone and convolves.

        A call around it that returns the same map is the block's full name.
        """
        is_bare = joined in self.neck.upsamples
        others = self.neck.upsamples if is_bare else self.neck.merges
        block: Call | None = None
        for call in reversed(joined.calls):
            if not call.path or sum(value.is_inside(call) for value in others) > 1:
                break
            if not self._is_usable(call):
                continue
            if block is None:
                layers = self._count_layers(call, joined.index if is_bare else -1)
                block = call if layers else None
            elif self.outputs[call] is self.outputs[block]:
                block = call
        if block is not None:
            yield block

    def _reading(self, joined: Value) -> Iterator[Call]:
        """The outermost call of a module of several layers that alone reads the map.

        One convolution behind a bare upsampling is a head's, not a block's.
        """
        least = 2 if joined in self.neck.upsamples else 1
        for call, entry in self.trace.entries.items():
            is_alone = all(user.is_inside(call) for user in joined.users)
            if entry is joined and is_alone and self._is_usable(call):
                if self._count_layers(call, -1) >= least:
                    yield call
                return

    def _is_usable(self, call: Call) -> bool:
        return call in self.outputs and self.trace.runs[call.path] == 1

    def _count_layers(self, call: Call, after: int) -> int:
        """Count the convolutions in a call after a moment; a module of one layer has none."""
        inside = [value for value in self.trace.values if value.is_inside(call)]
        if len({value.calls[-1] for value in inside}) < 2:
            return 0
        return sum(v.op in MIXING - UPSAMPLES and v.index > after for v in inside)
