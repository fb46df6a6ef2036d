"""Powers of two in operators that a compiler fuses; for ``torch.exp2`` it calls a library."""

import torch
from torch import Tensor

_ROUND, _ONE = 1.5 * 2**23, 127 << 23
"""What added to a float32 leaves the nearest integer in its last bits; the bits of 1.0."""

_COEFFICIENTS = (1.3276472e-3, 9.6755409e-3, 5.5507131e-2, 2.4022120e-1, 6.9314694e-1, 1.0000001)
"""The polynomial of least relative error, 7.5e-8, for ``2**z`` and ``|z| <= 1/2`` (by Remez)."""


def exp2(z: Tensor) -> Tensor:
    """Return ``2**z`` to 3e-7 of its value; float32 keeps within ``2**-126`` and ``2**126``.

    The integer part of ``z`` is written into the exponent's bits, the rest is a polynomial. It has
    no gradient.

    >>> exp2(torch.tensor([-1.0, 0.5]))
    tensor([0.5000, 1.4142])
    """
    if z.dtype != torch.float32:
        return z.exp2()
    z = z.clamp(-126, 126)
    shifted = z + _ROUND
    rest = z - (shifted - _ROUND)
    power = torch.full_like(rest, _COEFFICIENTS[0])
    for coefficient in _COEFFICIENTS[1:]:
        power = power * rest + coefficient
    return power * ((shifted.view(torch.int32) << 23) + _ONE).view(torch.float32)
