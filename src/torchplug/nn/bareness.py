"""Tell whether the weights of a layer may be used without calling it."""

from typing import TypeGuard

from torch import nn
from torch.nn.modules.conv import _ConvNd
from torch.nn.utils import parametrize

_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)


def is_bare(layer: nn.Module) -> bool:
    """Tell whether calling ``layer`` runs its own ``forward`` and nothing more.

    A hook (pruning and old weight norms are hooks), a parametrization or a replaced ``forward``
    would not be seen by those who take the weights out of it.

    >>> is_bare(nn.Conv2d(1, 1, 1))
    True
    """
    hooks = (
        layer._forward_hooks,
        layer._forward_pre_hooks,
        layer._backward_hooks,
        layer._backward_pre_hooks,
    )
    if any(hooks) or parametrize.is_parametrized(layer):
        return False
    return "forward" not in vars(layer)


def is_bare_conv(layer: nn.Module) -> TypeGuard[_ConvNd]:
    """Tell whether ``layer`` is PyTorch's convolution, bare, with zeros around the map.

    >>> is_bare_conv(nn.Conv2d(1, 1, 1)), is_bare_conv(nn.Linear(1, 1))
    (True, False)
    """
    if not isinstance(layer, _CONVOLUTIONS):  # not a union: PyTorch 2.9 does not compile those
        return False
    is_own = type(layer) in _CONVOLUTIONS
    return is_own and layer.padding_mode == "zeros" and is_bare(layer)
