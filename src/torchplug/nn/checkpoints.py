"""Adjust the tensors of other implementations' checkpoints."""

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
