"""Refuse layers without channels."""

from torchplug.errors import explain
from torchplug.nn.sizes import check_whole


def check_channels(name: str, channels: int) -> None:
    """Raise ``ValueError`` unless there is at least one channel.

    >>> check_channels("in_channels", 64)
    """
    check_whole(name, channels)
    if channels < 1:
        rule = f"{name} must be at least 1"
        raise ValueError(explain(rule, f"{name}={channels}", "pass the map's width"))
