"""Adjust the tensors of other implementations' checkpoints."""

import re
from collections.abc import Callable, Mapping

from torchplug.card import State


def linear_to_conv(state: State) -> State:
    """Turn the matrices of linear layers into 1x1 kernels.

    >>> import torch
    >>> linear_to_conv({"reduce.weight": torch.zeros(4, 8)})["reduce.weight"].shape
    torch.Size([4, 8, 1, 1])
    """
    return {
        name: tensor[:, :, None, None] if tensor.ndim == 2 else tensor
        for name, tensor in state.items()
    }


def rename_matches(patterns: Mapping[str, str]) -> Callable[[State], State]:
    r"""Return a transform that renames by regular expressions, for names that hold numbers.

    Every pattern is replaced wherever it matches, in order.

    >>> rename = rename_matches({r"^convs\.(\d+)\.0": r"branches.\1.conv"})
    >>> rename({"convs.12.0.weight": 0})
    {'branches.12.conv.weight': 0}
    """

    def rename(state: State) -> State:
        for pattern, replacement in patterns.items():
            state = {re.sub(pattern, replacement, name): state[name] for name in state}
        return state

    return rename
