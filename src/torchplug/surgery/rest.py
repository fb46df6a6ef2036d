"""Notice plugs that cannot learn at first, because the host begins at rest around them.

Residual networks are often built with the last batch norm of each branch at zero. The branch then
returns zeros: a plug behind that norm sees nothing, one before it gets no gradient, until the norm
itself has learned. With pretrained weights neither happens.
"""

import contextlib
from collections.abc import Collection, Iterator, Sequence
from typing import Any, Protocol

from torch import Tensor, nn

from torchplug.surgery.parts import Parts
from torchplug.surgery.plan import PlannedPlug


class Step(Protocol):
    """A plug and its plan."""

    @property
    def planned(self) -> PlannedPlug:
        """What was planned."""

    @property
    def module(self) -> nn.Module:
        """What was built."""


@contextlib.contextmanager
def watching(steps: Sequence[Step]) -> Iterator[set[int]]:
    """Collect the plugs (by id) that receive a map of zeros while the model runs."""
    zeros: set[int] = set()

    def look(module: nn.Module, args: tuple[Any, ...]) -> None:
        x = args[0] if args else None
        if isinstance(x, Tensor) and x.is_floating_point() and not bool(x.any()):
            zeros.add(id(module))

    plugs = [step.module for step in steps if step.planned.mode == "attach"]
    handles = [plug.register_forward_pre_hook(look) for plug in plugs]
    try:
        yield zeros
    finally:
        for handle in handles:
            handle.remove()


def describe_rest(
    model: nn.Module, steps: Sequence[Step], unmoved: Collection[int], zeros: Collection[int]
) -> tuple[str, ...]:
    """Return a note for plugs that see zeros, and one for those without a gradient.

    A missing gradient alone says little: an example on which a detector detects nothing has none.
    It counts where the host has norms at zero.
    """
    norms = _find_zero_norms(model)
    cause = "the host's batch norms before them start at zero" if norms else "on this example"
    blind = [step for step in steps if id(step.module) in zeros]
    notes = []
    if blind:
        text = f"{len(blind)} of {len(steps)} plugs see only zeros ({cause}): they learn"
        text += " once the host does; load the base's weights before plugging if it has any"
        notes.append(text)
    deaf = [s for s in steps if id(s.module) not in zeros and _is_unmoved(s.module, unmoved)]
    if deaf and norms:
        text = f"{len(deaf)} of {len(steps)} plugs get no gradient at first (the host's norms"
        text += f" behind them start at zero, such as {norms[0]}): they learn once the host does"
        notes.append(text)
    return tuple(notes)


def _is_unmoved(module: nn.Module, unmoved: Collection[int]) -> bool:
    learning = [weight for weight in module.parameters() if weight.requires_grad]
    return bool(learning) and all(id(weight) in unmoved for weight in learning)


def _find_zero_norms(model: nn.Module) -> list[str]:
    """Paths of the host's norms whose scale is zero."""
    parts = Parts(model)
    return [
        path
        for path, module in model.named_modules()
        if not parts.is_plug(path) and _is_zero_norm(module)
    ]


def _is_zero_norm(module: nn.Module) -> bool:
    weight = getattr(module, "weight", None)
    is_norm = isinstance(weight, Tensor) and weight.dim() == 1 and not weight.is_meta
    return is_norm and weight.numel() > 0 and not bool(weight.any())  # type: ignore[union-attr]
