"""Give the layers of a module PyTorch's own initialization."""

from torch import nn


def reset_layers(module: nn.Module) -> None:
    """Call ``reset_parameters`` of every layer inside ``module`` that has one, not its own.

    >>> block = nn.Sequential(nn.BatchNorm2d(2))
    >>> _ = nn.init.zeros_(block[0].weight)
    >>> reset_layers(block)
    >>> block[0].weight.tolist()
    [1.0, 1.0]
    """
    for layer in module.modules():
        reset = getattr(layer, "reset_parameters", None)
        if layer is not module and callable(reset):
            reset()
