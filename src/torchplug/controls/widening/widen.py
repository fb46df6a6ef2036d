"""Widen a model in place: new channels beside the old ones, whose weights stay as they are."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from torchplug.controls.widening.flow import find_groups
from torchplug.controls.widening.groups import Group, Slot
from torchplug.errors import UsageError, explain
from torchplug.surgery.trace import Arguments, read_example

Widths = dict[str, int]
"""New widths by group; a group is named after the first module that makes its channels."""


@torch.no_grad()
def widen(
    model: nn.Module,
    widths: Mapping[str, int],
    *,
    example: Any,
    generator: torch.Generator,
    silent: bool = False,
) -> None:
    """Give groups of channels more channels, in place.

    The weights of the old channels do not change. A new weight is a copy of one of the same
    tensor's own values, drawn at random: so it has the scale and the law of the layer's
    initialization, whatever that was, a norm's constant included.

    Args:
        model: any network whose run on ``example`` shows these groups; weights and widths change.
        widths: the new width of each group, by the path of the first module that makes its
            channels: ``{"layer3.conv1": 66}``. A convolution in groups grows by whole groups.
        example: what :func:`torchplug.plug` takes.
        generator: of the new weights; on the CPU.
        silent: let no layer read the new channels at first (their weights are zero), so that the
            model computes what it did, up to rounding. They learn from the first step.

    Raises:
        UsageError: if a name is no group that can grow, or a width is none it can have.

    >>> from torchplug.hosts import build_model
    >>> model = build_model("torchplug:resnet8")
    >>> widen(model, {"layer3.conv1": 66}, example=(1, 3, 8, 8), generator=torch.Generator())
    >>> model.layer3.conv1.weight.shape, model.layer3.bn1.weight.shape
    (torch.Size([66, 32, 3, 3]), torch.Size([66]))
    """
    groups = {group.name: group for group in find_groups(model, read_example(example, model))}
    chosen = [_find(groups, name, width) for name, width in widths.items()]
    slots = sorted(
        ((slot, width) for group, width in chosen for slot in group.slots.values()),
        key=lambda pair: (pair[0].path, pair[0].name, pair[0].dim),
    )
    layers = {slot.path: model.get_submodule(slot.path) for slot, _ in slots}
    shares = {path: _outputs_of_a_group(layer) for path, layer in layers.items()}
    for slot, width in slots:
        _grow(layers[slot.path], slot, width, generator, silent=silent and slot.role == "reads")
    for path, layer in layers.items():
        _count_again(layer, shares[path])


def _find(groups: Mapping[str, Group], name: str, width: int) -> tuple[Group, int]:
    group = groups.get(name)
    if group is None or not group.can_grow:
        known = ", ".join(key for key, other in groups.items() if other.can_grow)
        got = name if group is None else f"{name}: {group.obstacle or 'nothing reads it'}"
        fix = f"choose from {known}" if known else "take another model"
        raise UsageError(explain("a group to widen is one that can grow", got, fix))
    if width < group.width or (width - group.width) % group.step:
        rule = f"{name} has {group.width} channels and grows by {group.step}"
        raise UsageError(explain(rule, str(width), f"pass {group.width + group.step}"))
    return group, width


def _grow(
    layer: nn.Module, slot: Slot, width: int, generator: torch.Generator, *, silent: bool
) -> None:
    """Lengthen one dimension of one tensor."""
    old: Tensor = getattr(layer, slot.name)
    shape = list(old.shape)
    shape[slot.dim] = width - shape[slot.dim]
    drawn = torch.randint(old.numel(), (math.prod(shape),), generator=generator)
    new = old.detach().flatten()[drawn.to(old.device)].view(shape)
    grown = torch.cat([old.detach(), torch.zeros_like(new) if silent else new], slot.dim)
    if isinstance(old, nn.Parameter):
        grown = nn.Parameter(grown, requires_grad=old.requires_grad)
    setattr(layer, slot.name, grown)


def _outputs_of_a_group(layer: Any) -> int:
    """Return how many outputs one group of a convolution in groups has, 0 for other layers."""
    is_grouped = isinstance(layer, nn.Conv2d) and layer.groups > 1
    return layer.out_channels // layer.groups if is_grouped else 0


def _count_again(layer: Any, share: int) -> None:
    """Let a layer's own numbers say what its tensors are."""
    if isinstance(layer, nn.Conv2d):
        layer.out_channels = layer.weight.shape[0]
        layer.groups = layer.out_channels // share if share else layer.groups
        layer.in_channels = layer.weight.shape[1] * layer.groups
    elif isinstance(layer, nn.Linear):
        layer.out_features, layer.in_features = layer.weight.shape
    elif isinstance(layer, _BatchNorm):
        tensors = (layer.weight, layer.running_mean)
        layer.num_features = next(len(each) for each in tensors if each is not None)


@dataclass(frozen=True)
class Fit:
    """Widths that come near a number of parameters."""

    widths: Widths
    parameters: int


class Sizes:
    """The number of parameters of a model as a function of the widths of its groups.

    Args:
        model: the network as it is; nothing in it changes.
        arguments: of its forward.
    """

    def __init__(self, model: nn.Module, arguments: Arguments) -> None:
        self.groups = find_groups(model, arguments)
        self._tensors: list[tuple[tuple[int, ...], dict[int, Group]]] = []
        self._fixed = 0
        grown: dict[int, dict[int, Group]] = {}
        for group in self.groups:
            for slot in group.slots.values():
                tensor = getattr(model.get_submodule(slot.path), slot.name)
                grown.setdefault(id(tensor), {})[slot.dim] = group
        for parameter in model.parameters():
            if id(parameter) in grown:
                self._tensors.append((tuple(parameter.shape), grown[id(parameter)]))
            else:
                self._fixed += parameter.numel()

    def count(self, more: Mapping[Group, int]) -> int:
        """Return the parameters with so many more channels in each group."""
        total = self._fixed
        for shape, groups in self._tensors:
            sides = [
                side + (more.get(groups[dim], 0) if dim in groups else 0)
                for dim, side in enumerate(shape)
            ]
            total += math.prod(sides)
        return total

    def fit(
        self, groups: Sequence[Group], target: int, start: Mapping[Group, int]
    ) -> dict[Group, int]:
        """Return the most channels gained with which the model has less than ``target`` parameters.

        All of ``groups`` grow alike, channel by channel in turn.

        Args:
            groups: which may grow.
            target: parameters of the whole model.
            start: channels that other groups have already gained; part of the result.
        """

        def spread(steps: int) -> dict[Group, int]:
            each, rest = divmod(steps, len(groups))
            gains = {g: (each + (i < rest)) * g.step for i, g in enumerate(groups)}
            return {**start, **gains}

        low, high = 0, 1
        while self.count(spread(high)) < target:
            low, high = high, 2 * high
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (middle, high) if self.count(spread(middle)) < target else (low, middle)
        return spread(low)

    def finish(self, gains: Mapping[Group, int], groups: Sequence[Group], target: int) -> Fit:
        """Bring gains nearer to ``target``, channel by channel, until no step helps."""
        best = {**dict.fromkeys(groups, 0), **gains}

        def distance(gains: Mapping[Group, int]) -> int:
            return abs(self.count(gains) - target)

        while True:
            steps = [(g, sign * g.step) for g in groups for sign in (1, -1)]
            near = [{**best, g: best[g] + step} for g, step in steps if best[g] + step >= 0]
            found = min(near, key=distance)
            if distance(found) >= distance(best):
                return Fit(name_widths(best), self.count(best))
            best = found


def name_widths(more: Mapping[Group, int]) -> Widths:
    """Return the new widths of groups by name, without those that do not grow."""
    return {group.name: group.width + gain for group, gain in more.items() if gain}


def list_growing(groups: Iterable[Group]) -> list[Group]:
    """Return the groups that a control widens: inside blocks if there are such, else the trunk.

    Hidden layers of gates and classifiers, which hold pooled vectors only, come last.
    """
    growing = [group for group in groups if group.can_grow]
    kinds = (
        [g for g in growing if g.has_maps and not g.joined],
        [g for g in growing if g.has_maps],
        growing,
    )
    return next((kind for kind in kinds if kind), [])
