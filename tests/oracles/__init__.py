"""One file a module: its goldens from code that is not ours, and a naive second implementation.

``tests/oracles/<module file>.py`` defines

``GOLDENS``
    the recordings in ``tests/golden`` that the module must reproduce, each with the checkpoint
    format that reads its weights and our arguments;
``reference(module, x)``, ``reference(module, x, *others)`` where a module merges maps
    the same function of ``x`` and of the module's weights, written from the paper with loops and
    plain operations, in evaluation mode.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor


@dataclass(frozen=True)
class Golden:
    """One recording: its file name, whose names its weights use, and our construction.

    ``dtype_eps`` cases (a norm with another eps) go into ``prepare``, which adjusts the module.
    """

    name: str
    source: str
    args: tuple[Any, ...]
    options: Mapping[str, Any] = field(default_factory=dict)
    prepare: Any = None
    """Optional function applied to the module after construction, for what no argument sets."""

    strip: str = ""
    """A prefix removed from the recorded names before conversion."""

    factory: Any = None
    """Another class than the card's, for a piece of the module."""

    inputs: tuple[str, ...] = ("input",)
    """The recorded inputs, in the order of our forward."""


def weights_of(golden: Golden, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The weights of the other implementation, under its own names."""
    return {
        name.removeprefix("state/").removeprefix(golden.strip): tensor
        for name, tensor in tensors.items()
        if name.startswith("state/")
    }
