"""Tell what captures a program."""

import torch


def is_exporting() -> bool:
    """Tell whether ``torch.export`` is at work.

    ``torch.compiler.is_exporting`` says so in every compiled program too in older PyTorch (2.9 and
    2.11 do, 2.15 does not).

    >>> is_exporting()
    False
    """
    return torch.compiler._is_exporting_flag
