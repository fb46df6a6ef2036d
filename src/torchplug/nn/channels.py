"""Refuse layers without channels."""

from torchplug.errors import explain


def check_channels(name: str, channels: int) -> None:
    """Raise ``ValueError`` unless there is at least one channel.

    >>> check_channels("in_channels", 64)
    """
    if channels < 1:
        rule = f"{name} must be at least 1"
        raise ValueError(explain(rule, f"{name}={channels}", "pass the map's width"))
