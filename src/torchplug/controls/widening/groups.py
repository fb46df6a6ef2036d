"""Groups of channels: the dimensions of weights that must grow together."""

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Literal

from torch import nn

Role = Literal["makes", "keeps", "reads"]
"""What a weight does with the channels: a convolution makes its outputs and reads its inputs, a
norm or a depthwise convolution keeps them apart."""


@dataclass(frozen=True)
class Slot:
    """One dimension of one tensor of a module that is as long as the group is wide."""

    module: nn.Module
    path: str
    name: str
    dim: int
    role: Role

    @property
    def key(self) -> tuple[int, str, int]:
        """The same for the same dimension of the same tensor."""
        return id(self.module), self.name, self.dim


@dataclass(eq=False)
class Group:
    """Channels that meet: by an operation on each of them, or by a sum of two maps."""

    width: int
    order: int
    """When the first of its maps was made."""

    slots: dict[tuple[int, str, int], Slot] = field(default_factory=dict)
    step: int = 1
    """By how many channels it can grow: a grouped convolution grows by whole groups."""

    has_maps: bool = False
    """Whether it has maps, and not only vectors that come from a global pool: the hidden layer of a
    gate or of a classifier."""

    obstacle: str = ""
    """Why it cannot grow, if it cannot."""

    joined: bool = False
    """Whether maps are added in it: the trunk of a residual network."""

    _into: "Group | None" = None

    @property
    def root(self) -> "Group":
        """The group that this one was merged into."""
        group = self
        while group._into is not None:
            group = group._into
        return group

    def add(self, slot: Slot) -> None:
        """Note a dimension that is as long as the group is wide."""
        self.slots.setdefault(slot.key, slot)

    def stop(self, reason: str) -> None:
        """Note why it cannot grow; the first reason is kept."""
        self.obstacle = self.obstacle or reason

    def with_role(self, role: Role) -> Iterator[Slot]:
        """Yield the slots of one role."""
        return (slot for slot in self.slots.values() if slot.role == role)

    @property
    def name(self) -> str:
        """Path of the first module that makes its channels."""
        return next((slot.path for slot in self.with_role("makes")), "")

    @property
    def can_grow(self) -> bool:
        """Whether something makes its channels, something reads them, and nothing forbids more."""
        both = any(self.with_role("makes")) and any(self.with_role("reads"))
        return both and not self.obstacle


def join(one: Group, other: Group) -> Group:
    """Merge two groups into one."""
    one, other = one.root, other.root
    if one is other:
        return one
    first, second = sorted((one, other), key=lambda group: group.order)
    if first.width != second.width:
        for group in (first, second):
            group.stop("maps of two widths meet")
        return first
    first.slots |= second.slots
    first.step = math.lcm(first.step, second.step)
    first.has_maps = first.has_maps or second.has_maps
    first.joined = first.joined or second.joined
    first.stop(second.obstacle)
    second._into = first
    return first
