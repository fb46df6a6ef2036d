"""Refuse groups that do not divide the channels."""

import math
from collections.abc import Mapping

from torchplug.errors import explain
from torchplug.nn.sizes import check_positive


def check_divisible(widths: Mapping[str, int], divisor: int, name: str) -> None:
    """Raise ``ValueError`` unless ``divisor`` divides every one of ``widths``.

    Args:
        widths: numbers of channels by the names of their arguments.
        divisor: the number of groups.
        name: what the divisor is called, such as ``"groups"``.

    >>> check_divisible({"in_channels": 64, "out_channels": 96}, 32, "groups")
    """
    check_positive({**widths, name: divisor})
    for width_name, width in widths.items():
        if width % divisor:
            most = math.gcd(divisor, *widths.values())
            fix = f"pass {name}={most} or multiples of {divisor} channels"
            got = f"{width_name}={width} and {name}={divisor}"
            raise ValueError(explain(f"{name} must divide {width_name}", got, fix))
