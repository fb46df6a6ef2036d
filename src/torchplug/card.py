"""What torchplug knows about a module, as data: the card and its parts.

Standard library only, so that a list of the catalogue needs no tensor. Each fact on a card has a
test in ``tests/contract`` that fails when the fact is wrong; an untested field may not exist.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from torchplug.errors import UsageError, explain, nearest

Kind = Literal["refine", "conv", "block", "context", "merge", "rewrite"]
"""How a module meets a network; see the vocabulary in the README."""

State = dict[str, Any]
"""A state dict: names to tensors."""


@dataclass(frozen=True, kw_only=True)
class Paper:
    """Where a module was published, and the code its authors released."""

    title: str
    authors: str
    venue: str
    year: int
    arxiv: str
    code: str

    @property
    def url(self) -> str:
        """The paper's page on arXiv."""
        return f"https://arxiv.org/abs/{self.arxiv}"


@dataclass(frozen=True, kw_only=True)
class Place:
    """Where the paper puts a module: the default of ``plug(model, key)``.

    ``stages`` count from 1, the first after the stem; ``None`` means all. ``every=2`` takes the
    second, fourth, … site of each stage.
    """

    role: str
    stages: tuple[int, ...] | None = None
    every: int = 1
    note: str

    def __str__(self) -> str:
        limits = []
        if self.stages is not None:
            limits.append("stages " + ", ".join(map(str, self.stages)))
        if self.every > 1:
            limits.append(f"one in {self.every}")
        return f"{self.role} ({'; '.join(limits)})" if limits else self.role


@dataclass(frozen=True, kw_only=True)
class Sample:
    """One construction that the contract tests exercise: positional ``args`` and ``options``."""

    args: tuple[Any, ...]
    options: Mapping[str, Any] = field(default_factory=dict)
    shape: tuple[int, ...] = ()
    """Shape of an input; the contract tests vary batch and map size around it."""

    other_shapes: tuple[tuple[int, ...], ...] = ()
    """Shapes of further inputs, for a module that merges maps."""

    parameters: int
    """Learned parameters, counted by hand from the paper's formula."""

    learned: tuple[str, ...] = ()
    """Parameters that are inert on the card and learn with these options."""


@dataclass(frozen=True, kw_only=True)
class CheckpointFormat:
    """How the weights of another implementation are named.

    ``rename`` maps their prefixes to ours (the longest match wins); ``None`` drops the entry.
    ``transform`` then adjusts the renamed tensors, for example a linear layer's matrix to a 1x1
    kernel. A name that neither knows belongs to another module.
    """

    source: str
    rename: Mapping[str, str | None]
    transform: Callable[[State], State] | None = None
    options: Mapping[str, Any] = field(default_factory=dict)
    """With which of our options the weights fit and compute the same, beside sizes."""

    def read(self, state: Mapping[str, Any]) -> State | None:
        """Return ``state`` under our names, or ``None`` if it holds anything else or nothing."""
        converted = self._convert(state)
        empty = not converted and bool(self.rename or self.transform)
        return None if empty or self._left(state, converted) else converted

    def unread(self, state: Mapping[str, Any]) -> list[str]:
        """Return the names that it cannot read, or all if no single ones are at fault."""
        left = self._left(state, self._convert(state))
        strange = [
            name
            for name in left
            if self.read({other: state[other] for other in state if other != name}) is not None
        ]
        return strange or left or list(state)

    def _convert(self, state: Mapping[str, Any]) -> State | None:
        renamed = _rename(state, self.rename)
        try:
            return self.transform(renamed) if self.transform else renamed
        except (LookupError, ValueError, StopIteration):  # of a name that is not there
            return None

    def _left(self, state: Mapping[str, Any], converted: State | None) -> list[str]:
        """Return the names that nothing renamed."""
        return [
            name
            for name in state
            if (converted is None or name in converted) and not self._knows(name)
        ]

    def _knows(self, name: str) -> bool:
        return any(_has_prefix(name, prefix) for prefix in self.rename)


@dataclass(frozen=True, kw_only=True)
class Card:
    """The facts of one module of the catalogue."""

    key: str
    """The paper's short name in lower case: ``plug(model, key)``."""

    factory: Callable[..., Any]
    """The class. Its first arguments are channels, the rest are keyword-only."""

    title: str
    summary: str
    """What it computes, in one sentence."""

    equation: str
    paper: Paper
    kind: Kind
    place: Place
    identity_at_start: bool
    """Whether a module with default options returns its input unchanged before training."""

    min_channels: int
    """The smallest width that the defaults accept."""

    flops: Callable[..., int]
    """``flops(module, input_shape)``: two per multiply-add of convolutions and matrix products.

    A module that merges maps takes one shape for each.
    """

    samples: tuple[Sample, ...]
    inert: Mapping[str, str] = field(default_factory=dict)
    """Parameters whose gradient is zero by the mathematics, each with the reason."""

    formats: tuple[CheckpointFormat, ...] = ()
    deviations: tuple[str, ...] = ()
    """Differences from the paper or the official code, one sentence each."""

    def convert(self, state: Mapping[str, Any], source: str) -> State:
        """Return ``state`` of the implementation ``source`` under this module's names.

        Raises:
            UsageError: if the source is unknown or the state holds anything else.
        """
        formats = {known.source: known for known in self.formats}
        if source not in formats:
            rule = f"{self.key} reads only the checkpoint formats on its card"
            raise UsageError(explain(rule, f"source={source!r}", nearest(source, formats)))
        _check_state(state)
        converted = formats[source].read(state)
        if converted is None:
            raise UsageError(self._explain_misfit(state, formats[source]))
        return converted

    def _explain_misfit(self, state: Mapping[str, Any], chosen: CheckpointFormat) -> str:
        rule = f"{self.key} reads the entries of one module of {chosen.source!r} and no others"
        if not state:
            return explain(rule, "an empty state", "pass the module's state_dict()")
        names = chosen.unread(state)
        more = f" and {len(names) - 3} more" if len(names) > 3 else ""
        got = ", ".join(map(repr, names[:3])) + more
        fitting = [repr(known.source) for known in self.formats if known.read(state)]
        if fitting:
            fix = f"these are names of source={' or '.join(fitting)}"
        elif (prefix := _find_prefix(state, chosen)) is not None:
            fix = f"pass the entries below {prefix!r} without this prefix"
        else:
            fix = "pass every entry of the module, with the names that it has in itself"
        return explain(rule, got, fix)


def _check_state(state: object) -> None:
    if not isinstance(state, Mapping):
        rule, got = "weights are a state dict", type(state).__name__
        raise UsageError(explain(rule, got, "pass module.state_dict()"))


def _find_prefix(state: Mapping[str, Any], chosen: CheckpointFormat) -> str | None:
    """Return below which prefix, up to any dot of a name, the most entries can be read."""
    parts = [name.split(".") for name in state]
    found = (".".join(part[:count]) + "." for part in parts for count in range(1, len(part)))
    below = {prefix: _below(state, prefix) for prefix in dict.fromkeys(found)}
    return max(
        (prefix for prefix in below if chosen.read(below[prefix])),
        key=lambda prefix: (len(below[prefix]), prefix.count(".")),
        default=None,
    )


def _below(state: Mapping[str, Any], prefix: str) -> State:
    """Return the entries of one module by their names in it."""
    return {name.removeprefix(prefix): state[name] for name in state if name.startswith(prefix)}


def _rename(state: Mapping[str, Any], rename: Mapping[str, str | None]) -> State:
    """Replace the longest matching prefix of each name; names without a match are kept."""
    renamed: State = {}
    for name, tensor in state.items():
        matches = [prefix for prefix in rename if _has_prefix(name, prefix)]
        if not matches:
            renamed[name] = tensor
            continue
        prefix = max(matches, key=len)
        replacement = rename[prefix]
        if replacement is not None:
            renamed[replacement + name[len(prefix) :]] = tensor
    return renamed


def _has_prefix(name: str, prefix: str) -> bool:
    return name == prefix or name.startswith(prefix + ".")
