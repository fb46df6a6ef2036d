"""The gradient of a map that passes through several operators: written once, by the last.

Automatic differentiation makes a map for the gradient of every use of a map and adds them. Here
an operator that only reads a map hands it on, so the gradient of its later use arrives at the
operator's own backward pass, which adds its share to it. And what scales the map at the end does
not write its gradient: it leaves that to the operator before it, which writes each piece and adds
to it while the piece is in the cache.

The map that is handed on must go to an operator of this package or to modules beside one: theirs
is the gradient that is written to.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from torchplug.kernels.eager import cut


class Owed(NamedTuple):
    """A gradient of a map that is not written yet."""

    dy: Tensor
    """What stands for it."""

    write: Callable[..., object]
    """Takes a piece of ``dy`` and of ``tensors``, and ``out``, a piece of the gradient."""

    tensors: tuple[Tensor, ...]
    """Without graphs: theirs leads back to the node that keeps them."""

    task: int
    """The backward pass that it is owed in."""


def owe(node: Any, dy: Tensor, write: Callable[..., object], tensors: Sequence[Tensor]) -> None:
    """Leave it to ``node`` to write the gradient of the map that it handed on, in this pass."""
    bare = tuple(tensor.detach() for tensor in tensors)
    node.owed = Owed(dy, write, bare, torch._C._current_graph_task_id())


def claim(x: Tensor) -> Any:
    """Return the node that handed ``x`` on, for the first who asks, or None.

    In a backward pass the one who has it may ``owe`` it a gradient ``dy``, and must return ``dy``
    as the gradient of ``x``.
    """
    node: Any = x.grad_fn
    if not hasattr(node, "owed") or x.output_nr or hasattr(node, "claimed"):
        return None
    node.claimed = True
    return node


class Gradient:
    """The gradient of a map that passed, to add to.

    Args:
        node: the node that handed the map on; what is owed to it is settled.
        dx: the gradient that arrived, or None.
        like: the map.
    """

    def __init__(self, node: Any, dx: Tensor | None, like: Tensor) -> None:
        owed, node.owed = node.owed, None
        if owed is not None and owed.task != torch._C._current_graph_task_id():
            owed = None  # of a pass in which nobody asked for the map's gradient
        self.owed: Owed | None = None if dx is None else owed
        if dx is None:
            self.total = torch.zeros_like(like)
        elif self.owed is None:
            self.total = dx
        else:
            self.total = torch.empty_like(like)
            if dx is not self.owed.dy:  # the gradient of another use came with it
                other = dx - self.owed.dy
                self.settle().add_(other)

    def walk(self, *others: Tensor) -> Iterator[tuple[Tensor, ...]]:
        """Yield pieces of the batch: of the gradient, to be added to, and of ``others``."""
        owed, self.owed = self.owed, None
        if owed is None:
            yield from cut(self.total, *others)
            return
        first = len(others) + 1
        for piece in cut(self.total, *others, owed.dy, *owed.tensors):
            owed.write(*piece[first:], out=piece[0])
            yield piece[:first]

    def settle(self) -> Tensor:
        """Return the gradient, with what is owed."""
        for _ in self.walk():
            pass
        return self.total
