"""Find the sites of a model: run it once, and ask it and its library what they know."""

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any

from torch import nn

from torchplug.errors import PlugError, explain
from torchplug.surgery.attach import Holder
from torchplug.surgery.decoder import find_decoder_blocks, find_encoder_blocks, find_levels
from torchplug.surgery.metadata import TRACE, USER, Known, read_roles
from torchplug.surgery.neck import Neck, find_neck
from torchplug.surgery.op_anchor import OpPoint, family, parse_anchor
from torchplug.surgery.operations import Operations
from torchplug.surgery.roles import ResidualBlock, find_blocks, find_image
from torchplug.surgery.sites import NAMED, ROLES, Site, Sites
from torchplug.surgery.stages import Stages, find_stages
from torchplug.surgery.trace import Call, Trace, Value, read_example, record_host

_Said = dict[str, list[tuple[Value, Call]]]


def find_sites(model: nn.Module, example: Any) -> Sites:
    """Return the places in ``model`` where a module can go, found by running it once.

    The model runs in evaluation mode without gradients and is left exactly as it was. What its
    own attribute ``torchplug_roles`` (role → module paths) says goes first, then what its library
    knows (timm's ``feature_info``, say), then what the run shows.

    Args:
        model: any module with feature maps; it is not changed.
        example: the shape of a small batch, a tensor, a tuple of positional arguments, a dict of
            keyword arguments, or a pair ``(args, kwargs)`` of both.

    Returns:
        Sites in the order of roles, then of execution; printing them gives a table.

    Raises:
        UsageError: if ``example`` cannot be read, or the model does not run on it.
        PlugError: if ``torchplug_roles`` names what is not there.

    >>> from torchplug.hosts import build_model
    >>> found = find_sites(build_model("torchplug:resnet8", in_channels=1), (1, 1, 8, 8))
    >>> [site.path for site in found.with_role("bottleneck")]
    ['layer1.bn2', 'layer2.bn2', 'layer3.bn2']
    """
    return sites_in(model, record_host(model, read_example(example, model)))


def sites_in(model: nn.Module, trace: Trace) -> Sites:
    """Return the sites that a trace of ``model`` shows and its library names."""
    known = read_roles(model, list(ROLES))
    said = _resolve(known, trace)
    blocks = find_blocks(trace)
    stages = _find_stages(trace, blocks, model, known, said)
    maker = _SiteMaker(model, trace, stages)
    found = [*_said_sites(known, said, stages, maker)]
    told = {site.role for site in found if site is not None}
    found += [site for site in _traced_sites(blocks, maker) if site and site.role not in told]
    order = list(ROLES)
    unique = {site.id: site for site in found if site is not None}
    outputs = {
        call.path: site
        for value in trace.maps
        for call in value.producers
        if call.path and (site := maker.make(NAMED, value, [call], source=USER)) is not None
    }
    for site in unique.values():  # an operation that has a role can be named too
        if site.kind == "op":
            outputs[site.path] = dataclasses.replace(site, role=NAMED, source=USER)
    several = _find_several(trace, maker)
    for site in (site for places in several.values() for site in places if site is not None):
        outputs.setdefault(site.path, site)
    return Sites(
        tuple(sorted(unique.values(), key=lambda site: order.index(site.role))),
        outputs,
        several=several,
        idle=frozenset(path for path, _ in model.named_modules() if not trace.runs[path]),
        aliases=_find_aliases(model),
        find_operation=Operations(trace, tuple(dict(model.named_modules())), maker.at).find,
    )


def _find_several(trace: Trace, maker: "_SiteMaker") -> dict[str, tuple[Site | None, ...]]:
    """Where the maps are made that a module returns together, in the order in which it does."""
    found: dict[str, tuple[Site | None, ...]] = {}
    for group in trace.groups:
        call = group.call
        if call is not None and call.path and call.path not in found:
            places = (maker.place(NAMED, value, maker.outermost(value)) for value in group.values)
            found[call.path] = tuple(
                None if place is None else dataclasses.replace(place, source=USER)
                for place in places
            )
    return found


def _find_aliases(model: nn.Module) -> dict[str, str]:
    first: dict[int, str] = {}
    named = model.named_modules(remove_duplicate=False)
    pairs = [(path, first.setdefault(id(module), path)) for path, module in named]
    return {path: known for path, known in pairs if path != known}


def _resolve(known: Mapping[str, Known], trace: Trace) -> _Said:
    """Look up in the trace what was said: the map that each named module returned."""
    returned = {call.path: (value, call) for value in trace.maps for call in value.producers}
    for role, entry in known.items():
        missing = [path for path in entry.paths if path not in returned]
        if missing and entry.source == USER:
            text = explain(
                f"a place for the role {role!r} must be a module that runs and returns one map",
                f"{missing[0]!r}, which did not",
                "correct torchplug_roles",
            )
            raise PlugError(text)
    found = {
        role: [returned[path] for path in entry.paths if path in returned]
        for role, entry in known.items()
    }
    return {role: places for role, places in found.items() if places}


def _find_stages(
    trace: Trace,
    blocks: list[ResidualBlock],
    model: nn.Module,
    known: Mapping[str, Known],
    said: _Said,
) -> Stages:
    return find_stages(
        trace,
        blocks,
        model,
        ends=[value for value, _ in said.get("stage", [])],
        backbone_end=next((value for value, _ in said.get("backbone_end", [])), None),
        has_stem="stage" not in said or known["stage"].source != USER,
    )


def _said_sites(
    known: Mapping[str, Known], said: _Said, stages: Stages, maker: "_SiteMaker"
) -> Iterator[Site | None]:
    for role, places in said.items():
        for value, call in places:
            if role != "stage" or value in stages.ends:  # the stem is in metadata too
                yield maker.make(role, value, [call], source=known[role].source)


def _traced_sites(blocks: list[ResidualBlock], maker: "_SiteMaker") -> Iterator[Site | None]:
    trace, stages = maker.trace, maker.stages
    neck = find_neck(trace)
    yield from _ends_of_branches(blocks, maker)
    yield from _sites_of_blocks(blocks, neck, maker)
    for value in stages.ends:
        yield maker.at_end("stage", value)
    if stages.backbone_end is not None:
        yield maker.at_end("backbone_end", stages.backbone_end)
    for value in trace.maps:
        for call in value.producers:
            if trace.runs[call.path] == 1 and maker.kernel_of(call.path) == (3, 3):
                yield maker.make("conv3x3", value, [call])
    yield from _sites_of_neck(neck, maker)


def _sites_of_neck(neck: Neck, maker: "_SiteMaker") -> Iterator[Site | None]:
    for value in neck.upsamples:
        yield maker.place("upsample", value, maker.innermost(value))
    for value in neck.merges:
        yield maker.at_end("merge", value)
    for value in find_levels(maker.trace, neck, maker.stages):
        yield maker.at_end("pyramid", value)


def _ends_of_branches(blocks: list[ResidualBlock], maker: "_SiteMaker") -> Iterator[Site | None]:
    for block in blocks:
        within = [call for call in block.branch.producers if call.path != block.call.path]
        inside = [call for call in within if _is_under(call.path, block.call.path)]
        operand = block.add.inputs.index(block.branch)
        yield maker.place("bottleneck", block.branch, inside[-1:], (block.add, operand))


def _sites_of_blocks(
    blocks: list[ResidualBlock], neck: Neck, maker: "_SiteMaker"
) -> Iterator[Site | None]:
    """The outputs of residual blocks and of a decoder's, and of a plain encoder before it."""
    trace, stages = maker.trace, maker.stages
    outputs: dict[Value, list[Call]] = {}
    for block in blocks:
        returned = [value for value in trace.maps if block.call in value.producers]
        if returned:
            outputs.setdefault(returned[-1], [block.call])
    decoder = find_decoder_blocks(trace, neck, stages)
    for found in decoder:
        outputs.setdefault(found.output, [found.call])
    for value in find_encoder_blocks(neck, stages, blocks) if decoder else []:
        outputs.setdefault(value, maker.outermost(value))
    for value in sorted(outputs, key=lambda value: value.index):
        yield maker.make("block", value, outputs[value])


class _SiteMaker:
    """Turns values of a trace into sites."""

    def __init__(self, model: nn.Module, trace: Trace, stages: Stages) -> None:
        self.model, self.trace, self.stages = model, trace, stages
        image = next((v for v in trace.values if v.op == "input" and len(v.shape) == 4), None)
        image = image or find_image(trace)  # a detector takes a list of images of three axes
        self.input_height = image.size[0] if image else 0

    def make(self, role: str, value: Value, calls: list[Call], source: str = TRACE) -> Site | None:
        """A site at the output of the given call; None where no module carries it."""
        if not calls:
            return None
        path = calls[-1].path
        anchor = self._innermost(path)
        return self._site(role, value, path, anchor, self.trace.runs[anchor], source)

    def _site(
        self, role: str, value: Value, path: str, anchor: str, runs: int, source: str
    ) -> Site:
        return Site(
            role=role,
            path=path,
            anchor=anchor,
            stage=self.stages.number(value),
            shape=value.shape,
            channels=value.channels,
            size=value.size,
            stride=max(round(self.input_height / max(value.size[0], 1)), 1),
            runs=runs,
            layout=value.layout or "NCHW",
            kernel=None if parse_anchor(anchor) else self.kernel_of(anchor),
            source=source,
            device=value.device,
            dtype=value.dtype,
        )

    def at(self, value: Value, anchor: str) -> Site:
        """A site that the user named at an operation; its module runs once."""
        return self._site(NAMED, value, anchor, anchor, 1, USER)

    def at_end(self, role: str, value: Value) -> Site | None:
        """A site at the outermost call that returns the value, or at its operation."""
        return self.place(role, value, self.outermost(value))

    def place(
        self, role: str, value: Value, calls: list[Call], at: tuple[Value, int] | None = None
    ) -> Site | None:
        """A site at the module that makes the value and runs once, or else at the operation.

        ``at`` is an operation and the operand of it that the value is.
        """
        site = self.make(role, value, calls)
        if site is not None and site.runs == 1:
            return site
        op, operand = at or (_without_plugs(value), None)
        point = locate(op, operand, self.trace)
        if point is None:
            return site
        text = str(point)
        return self._site(role, value, text, text, self.trace.runs[point.path], TRACE)

    def kernel_of(self, path: str) -> tuple[int, int] | None:
        """Kernel size of a two-dimensional convolution, None for any other module."""
        module = self.model.get_submodule(path)
        if not isinstance(module, nn.Conv2d):
            return None
        height, width = module.kernel_size
        return height, width

    def innermost(self, value: Value) -> list[Call]:
        """The innermost call that returns ``value`` and did not only hand it on."""
        return [call for call in value.producers if self.trace.entries.get(call) is not value][:1]

    def outermost(self, value: Value) -> list[Call]:
        """The outermost call that returns ``value`` and began at about its resolution.

        A whole backbone also returns the last stage's map; it is not the stage. Neither is a
        call that only hands the map on, such as an ``Identity``.
        """
        named = [call for call in value.producers if call.path]
        named = [call for call in named if self.trace.entries.get(call) is not value] or named
        for call in reversed(named):
            entry = self.trace.entries.get(call)
            if entry is None or not entry.is_map or entry.size[0] <= 2 * value.size[0]:
                return [call]
        return named[-1:]

    def _innermost(self, path: str) -> str:
        """Descend from a container to its last child, which returns the same map."""
        module = self.model.get_submodule(path)
        while isinstance(module, nn.Sequential) and len(module) > 0:
            last = [name for name in module._modules if name != "torchplug"][-1]
            child = module._modules[last]
            if child is None or self.trace.runs[f"{path}.{last}"] != 1:
                break
            path, module = f"{path}.{last}", child
        return path


def locate(value: Value, operand: int | None, trace: Trace) -> OpPoint | None:
    """Name the operation that made ``value``, counted in the innermost module that runs once.

    None where an operation cannot carry a plug: it made several tensors, or nothing ran it.
    """
    call = next((call for call in reversed(value.calls) if trace.runs[call.path] == 1), None)
    if call is None or not value.alone or value.op in {"input", "constant"}:
        return None
    op = family(value.op)
    earlier = [
        other
        for other in trace.values[: value.index]
        if other.alone and len(other.shape) == 4 and other.is_inside(call)
    ]
    return OpPoint(call.path, op, sum(family(other.op) == op for other in earlier), operand)


def _without_plugs(value: Value) -> Value:
    """The value that the host itself made, before the plugs that are already there."""
    while value.op == Holder.apply_one.__name__:
        value = value.inputs[0]
    return value


def _is_under(path: str, parent: str) -> bool:
    return not parent or path.startswith(parent + ".")
