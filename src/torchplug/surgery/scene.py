"""A host as one run on the example showed it, and what it has where a plug goes."""

import dataclasses
from functools import cached_property

from torch import nn

from torchplug.errors import PlugError, count, explain
from torchplug.surgery.attach import find_plugs
from torchplug.surgery.build import Place
from torchplug.surgery.find import sites_in
from torchplug.surgery.intake import Entrance, drop_unused, find_entrances
from torchplug.surgery.measure import counting_flops
from torchplug.surgery.op_anchor import parse_anchor
from torchplug.surgery.plan import Mode, Plan, PlannedPlug
from torchplug.surgery.roles import find_blocks, find_foldable
from torchplug.surgery.sites import NAMED, Site, Sites
from torchplug.surgery.trace import Arguments, Call, record_host

MERGE = "merge"
"""The role of a module that receives maps of several sizes."""


class Scene:
    """A host, the record of one forward, and its sites.

    Args:
        model: the host; it is not changed.
        arguments: of its forward.

    Raises:
        UsageError: if the host does not run on them.
    """

    def __init__(self, model: nn.Module, arguments: Arguments) -> None:
        self.model, self.arguments = model, arguments
        with counting_flops() as counter:
            self.trace = record_host(model, arguments)
        self.flops = int(counter.get_total_flops())
        self.sites = sites_in(model, self.trace)
        self._taken = {(path, name) for path, name, _ in find_plugs(model)}

    @cached_property
    def entrances(self) -> dict[str, Entrance]:
        """Every module that receives maps of several sizes, in order of execution."""
        return find_entrances(self.model, self.arguments)

    @cached_property
    def entrance_sites(self) -> Sites:
        """The same modules as sites, chosen by name."""
        return Sites((), {path: _describe(entrance) for path, entrance in self.entrances.items()})

    def sites_for(self, mode: Mode) -> Sites:
        """Return the sites among which a plug of this mode chooses."""
        return self.entrance_sites if mode == "merge" else self.sites

    @cached_property
    def residual_blocks(self) -> frozenset[str]:
        """Paths of the modules that execute a residual add."""
        return frozenset(block.call.path for block in find_blocks(self.trace))

    @cached_property
    def foldable(self) -> frozenset[str]:
        """Paths of modules in sums of branches that the host may fold into one convolution."""
        calls = (call for value in find_foldable(self.trace) for call in value.producers)
        return frozenset(call.path for call in calls)

    @cached_property
    def first_convolution(self) -> str | None:
        """Path of the convolution that runs first."""
        calls = (value.calls for value in self.trace.maps if value.op == "conv2d")
        return next((stack[-1].path for stack in calls if stack), None)

    @cached_property
    def stem(self) -> frozenset[str | None]:
        """Paths of the convolutions before the first residual block; without blocks, the first."""
        blocks = find_blocks(self.trace)[:1]
        inside = (v.index for b in blocks for v in self.trace.values if v.is_inside(b.call))
        start = min(inside, default=0)
        before = (v for v in self.trace.maps if v.op == "conv2d" and v.index < start)
        found = frozenset(value.calls[-1].path for value in before if value.calls)
        return found or frozenset({self.first_convolution})

    def find_place(self, planned: PlannedPlug, plan: Plan) -> Place:
        """Return what the host has where a plug is planned.

        Raises:
            PlugError: if this model has no such place, or no plug can go there.
        """
        site = self._find_site(planned, plan)
        _check_site(site, planned, self._taken)
        point = parse_anchor(planned.path)
        host = self.model.get_submodule(planned.path if point is None else point.path)
        if planned.mode == "merge":
            entrance = self.entrances[planned.path]
            used = drop_unused(self.model, self.arguments, entrance)
            return Place(site=site, host=host, entrance=dataclasses.replace(entrance, levels=used))
        entry = self.trace.entries.get(Call(planned.path, 1))
        shape = entry.shape if entry is not None and entry.is_map else None
        return Place(site=site, host=host, entry=shape)

    def take(self, planned: PlannedPlug) -> None:
        """Note that a plug will be at this place under this name."""
        self._taken.add((planned.path, planned.name))

    def _find_site(self, planned: PlannedPlug, plan: Plan) -> Site:
        """Return the site that a plan means, if this model has it."""
        sites = self.sites_for(planned.mode)
        candidates = [sites.outputs[planned.path]] if planned.path in sites.outputs else []
        if planned.role == NAMED and not candidates:
            candidates = sites.find_operation(planned.path)
        if planned.role not in {NAMED, MERGE}:
            candidates = [
                site
                for site in sites.with_role(planned.role)
                if planned.path == (site.path if planned.mode == "replace" else site.anchor)
            ]
        for site in candidates:
            if site.channels == planned.channels:
                return site
        kind = "map" if planned.role == NAMED else planned.role
        text = explain(
            f"the plan needs a {kind} of {count(planned.channels, 'channel')} at {planned.path}",
            count(candidates[0].channels, "channel") if candidates else "a model without one there",
            f"use it on a {plan.host} like the one it was made for, or make a new plan",
        )
        raise PlugError(text)


def _describe(entrance: Entrance) -> Site:
    """The finest map that a module receives, as a site."""
    shape = max((entrance.shapes[level.low] for level in entrance.levels), key=_area)
    return Site(
        role=MERGE,
        path=entrance.path,
        anchor=entrance.path,
        stage=None,
        shape=shape,
        channels=shape[1],
        size=(shape[2], shape[3]),
        stride=1,
        runs=entrance.runs,
        layout="NCHW",
        device=entrance.device,
        dtype=entrance.dtype,
    )


def _area(shape: tuple[int, ...]) -> int:
    return shape[2] * shape[3]


def _check_site(site: Site, planned: PlannedPlug, taken: set[tuple[str, str]]) -> None:
    if site.layout != "NCHW" and planned.mode != "attach":
        text = explain(
            "a plug in the place of a module works on maps (N, C, H, W)",
            f"{site.path}, whose map is {site.layout}",
            "choose a place where the channels come second",
        )
        raise PlugError(text)
    if site.runs != 1:
        text = explain(
            "a plugged module must run once in a forward",
            f"{site.path}, which runs {site.runs} times",
            "choose the module around it, such as its block",
        )
        raise PlugError(text)
    if (planned.path, planned.name) in taken:
        text = explain(
            "each plug at one place needs a name of its own",
            f"a second {planned.name!r} at {planned.path}",
            "pass name=, or take the first one out with unplug",
        )
        raise PlugError(text)
