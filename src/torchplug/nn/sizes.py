"""Refuse sizes that a convolution cannot have."""

from collections.abc import Mapping

from torchplug.errors import explain


def check_positive(sizes: Mapping[str, int]) -> None:
    """Raise ``ValueError`` unless every one of ``sizes`` is at least 1; the keys are their names.

    >>> check_positive({"in_channels": 16, "out_channels": 32})
    """
    for name, size in sizes.items():
        if size < 1:
            raise ValueError(explain(f"{name} must be at least 1", f"{name}={size}", "pass more"))


def check_natural(sizes: Mapping[str, int]) -> None:
    """Raise ``ValueError`` if any of ``sizes`` is negative; the keys are their names.

    >>> check_natural({"padding": 0})
    """
    for name, size in sizes.items():
        if size < 0:
            raise ValueError(explain(f"{name} must be 0 or more", f"{name}={size}", "pass 0"))


def check_fraction(name: str, value: float) -> None:
    """Raise ``ValueError`` unless ``value`` is from 0 to 1.

    >>> check_fraction("dropout", 0.1)
    """
    if not 0 <= value <= 1:
        fix = "pass 0 to leave it out"
        raise ValueError(explain(f"{name} is a share from 0 to 1", f"{name}={value}", fix))


def check_odd(name: str, size: int) -> None:
    """Raise ``ValueError`` unless ``size`` is odd and positive: a kernel needs a center.

    >>> check_odd("kernel_size", 5)
    """
    if size < 1 or size % 2 == 0:
        nearest = f"{size - 1} or {size + 1}" if size > 1 else "1 or 3"
        raise ValueError(explain(f"{name} must be odd", f"{name}={size}", f"pass {nearest}"))
