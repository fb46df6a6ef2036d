"""Numbers as readers see them. What is not there is a dash, never a zero."""

import math

NOTHING = "\N{EN DASH}"
_SCALES = ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"))


def _is_there(value: float | None) -> bool:
    return value is not None and math.isfinite(value)


def fixed(value: float | None, digits: int = 2) -> str:
    """Return a number with a fixed count of digits.

    >>> fixed(98.6543), fixed(None)
    ('98.65', '–')
    """
    return f"{value:.{digits}f}" if _is_there(value) else NOTHING


def signed(value: float | None, digits: int = 2) -> str:
    """Return a number with its sign, a true minus included; a rounded zero has no sign.

    >>> signed(0.5), signed(-0.25), signed(-0.001)
    ('+0.50', '−0.25', '0.00')
    """
    if value is None or not math.isfinite(value):
        return NOTHING
    text = f"{value:+.{digits}f}"
    if not float(text):
        return text[1:]
    return text.replace("-", "\N{MINUS SIGN}")


def span(low: float | None, high: float | None, digits: int = 2) -> str:
    """Return an interval of signed numbers."""
    return f"[{signed(low, digits)}, {signed(high, digits)}]"


def p_value(value: float | None) -> str:
    """Return a p value with two digits that count.

    >>> p_value(0.0432), p_value(0.00002), p_value(1.0)
    ('0.043', '< 0.001', '1.00')
    """
    if value is None or not math.isfinite(value):
        return NOTHING
    if value < 0.001:
        return "< 0.001"
    return f"{value:.3f}" if value < 0.1 else f"{value:.2f}"


def share(value: float | None) -> str:
    """Return a share as percent.

    >>> share(0.75)
    '75 %'
    """
    return f"{100 * value:.0f} %" if value is not None and math.isfinite(value) else NOTHING


def whole(value: float | None) -> str:
    """Return a count with its thousands set apart.

    >>> whole(78042)
    '78,042'
    """
    return f"{value:,.0f}" if _is_there(value) else NOTHING


def scaled(value: float | None, unit: str = "") -> str:
    """Return a large number with a prefix.

    >>> scaled(4_089_184_256, "FLOPs"), scaled(950)
    ('4.09 GFLOPs', '950')
    """
    if value is None or not math.isfinite(value):
        return NOTHING
    for scale, prefix in _SCALES:
        if abs(value) >= scale:
            return f"{value / scale:#.3g}".rstrip(".") + f" {prefix}{unit}"
    return f"{value:.3g} {unit}".rstrip()


def seconds(value: float | None) -> str:
    """Return a time in the unit that suits it.

    >>> seconds(4.25), seconds(150), seconds(9000)
    ('4.2 s', '2.5 min', '2.5 h')
    """
    if value is None or not math.isfinite(value):
        return NOTHING
    if value < 100:
        return f"{value:.1f} s"
    return f"{value / 60:.1f} min" if value < 6000 else f"{value / 3600:.1f} h"


def times(value: float) -> str:
    """Return a ratio.

    >>> times(1.0731)
    '1.07x'
    """
    return f"{value:.2f}x"
