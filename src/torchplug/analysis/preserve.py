"""Run a model to measure it, and leave it as it was."""

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

from torchplug.surgery.trace import evaluating, tensors_in


@contextlib.contextmanager
def preserving(model: nn.Module) -> Iterator[None]:
    """Put a model into evaluation mode, and restore modes, gradients and buffers afterwards.

    The model may be put into training mode inside. The global random state is restored too.

    >>> norm = nn.BatchNorm2d(2)
    >>> with preserving(norm):
    ...     _ = norm.train()(torch.randn(2, 2, 3, 3)).sum().backward()
    >>> int(norm.num_batches_tracked), norm.weight.grad, norm.training
    (0, None, True)
    """
    buffers = {name: buffer.detach().clone() for name, buffer in model.named_buffers()}
    grads = [(parameter, parameter.grad) for parameter in model.parameters()]
    for parameter, _ in grads:
        parameter.grad = None
    try:
        with evaluating(model):
            yield
    finally:
        with torch.no_grad():
            for name, buffer in model.named_buffers():
                if name in buffers:
                    buffer.copy_(buffers[name])
        for parameter, grad in grads:
            parameter.grad = grad


@contextlib.contextmanager
def one_thread() -> Iterator[None]:
    """Use one thread, and as many as before afterwards."""
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        yield
    finally:
        torch.set_num_threads(threads)


def step_back(output: Any) -> None:
    """Run the backward pass of the mean square of an output."""
    parts = [part for part in tensors_in(output) if part.requires_grad]
    if parts:
        sum(part.float().square().mean() for part in parts).backward()  # type: ignore[union-attr]
