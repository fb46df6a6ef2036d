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

    ``rename`` maps their prefixes to ours (the longest match wins, ``""`` matches every name);
    ``None`` drops the entry. ``transform`` then adjusts the renamed tensors, for example a
    linear layer's matrix to a 1x1 kernel.
    """

    source: str
    rename: Mapping[str, str | None]
    transform: Callable[[State], State] | None = None


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
        """Return ``state`` of the implementation ``source`` under this module's names."""
        for known in self.formats:
            if known.source == source:
                renamed = _rename(state, known.rename)
                return known.transform(renamed) if known.transform else renamed
        names = [known.source for known in self.formats]
        text = explain(
            f"{self.key} reads only the checkpoint formats on its card",
            f"source={source!r}",
            nearest(source, names),
        )
        raise UsageError(text)


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
    return not prefix or name == prefix or name.startswith(prefix.rstrip(".") + ".")
