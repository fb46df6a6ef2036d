"""Refuse sizes that a layer cannot have."""

import operator
from collections.abc import Iterable, Mapping

from torchplug.errors import explain


def check_whole(name: str, size: object) -> None:
    """Raise ``TypeError`` unless ``size`` is a whole number.

    >>> check_whole("kernel_size", 3)
    """
    try:
        operator.index(size)  # type: ignore[arg-type]
    except TypeError:
        fix = "pass one number, for height and width alike"
        fix = fix if isinstance(size, (tuple, list)) else "pass an int"
        rule = f"{name} must be a whole number"
        raise TypeError(explain(rule, f"{name}={size!r}", fix)) from None


def check_several(name: str, values: object) -> None:
    """Raise ``TypeError`` unless ``values`` is a sequence, of numbers or of words.

    >>> check_several("rates", (6, 12, 18))
    """
    if isinstance(values, str) or not isinstance(values, Iterable):
        rule, fix = f"{name} must be a sequence", f"pass ({values!r},)"
        raise TypeError(explain(rule, f"{name}={values!r}", fix))


def check_number(name: str, value: object) -> None:
    """Raise ``TypeError`` unless ``value`` is a number.

    >>> check_number("scale", 0.1)
    """
    if not isinstance(value, (int, float)):
        raise TypeError(explain(f"{name} must be a number", f"{name}={value!r}", "pass a float"))


def check_positive(sizes: Mapping[str, int]) -> None:
    """Raise ``ValueError`` unless every one of ``sizes`` is at least 1; the keys are their names.

    >>> check_positive({"in_channels": 16, "out_channels": 32})
    """
    for name, size in sizes.items():
        check_whole(name, size)
        if size < 1:
            raise ValueError(explain(f"{name} must be at least 1", f"{name}={size}", "pass more"))


def check_natural(sizes: Mapping[str, int]) -> None:
    """Raise ``ValueError`` if any of ``sizes`` is negative; the keys are their names.

    >>> check_natural({"padding": 0})
    """
    for name, size in sizes.items():
        check_whole(name, size)
        if size < 0:
            raise ValueError(explain(f"{name} must be 0 or more", f"{name}={size}", "pass 0"))


def check_fraction(name: str, value: float) -> None:
    """Raise ``ValueError`` unless ``value`` is from 0 to 1.

    >>> check_fraction("dropout", 0.1)
    """
    check_number(name, value)
    if not 0 <= value <= 1:
        fix = "pass 0 to leave it out"
        raise ValueError(explain(f"{name} is a share from 0 to 1", f"{name}={value}", fix))


def check_odd(name: str, size: int) -> None:
    """Raise ``ValueError`` unless ``size`` is odd and positive: a kernel needs a center.

    >>> check_odd("kernel_size", 5)
    """
    check_whole(name, size)
    if size < 1 or size % 2 == 0:
        nearest = f"{size - 1} or {size + 1}" if size > 1 else "1 or 3"
        raise ValueError(explain(f"{name} must be odd", f"{name}={size}", f"pass {nearest}"))
