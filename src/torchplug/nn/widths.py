"""The hidden width of a bottleneck."""

from torchplug.errors import explain
from torchplug.nn.sizes import check_whole


def hidden_width(
    channels: int,
    *,
    reduction: int,
    hidden_channels: int | None = None,
    at_least: int = 1,
    floor: int = 0,
) -> int:
    """Return the hidden width of a bottleneck over ``channels``.

    ``reduction`` is a divisor; ``hidden_channels`` is a count and overrides it. The division
    rounds down, as in the papers' code; a width below ``at_least`` is refused, since a layer of
    no channels silently turns the module into a constant. ``floor`` is what the division does not
    go below where a paper says so (L in selective kernels).

    Raises:
        ValueError: if ``channels``, ``reduction`` or the width that results is too small.

    >>> hidden_width(64, reduction=16)
    4
    >>> hidden_width(64, reduction=16, hidden_channels=10)
    10
    >>> hidden_width(64, reduction=16, floor=32)
    32
    """
    check_whole("channels", channels)
    if channels < 1:
        raise ValueError(
            explain("channels must be at least 1", f"channels={channels}", "pass the map's width")
        )
    if hidden_channels is None:
        check_whole("reduction", reduction)
        if reduction < 1:
            raise ValueError(
                explain("reduction must be at least 1", f"reduction={reduction}", "pass a divisor")
            )
        check_whole("min_hidden", floor)
        hidden = max(channels // reduction, floor)
        got = f"channels={channels} and reduction={reduction}"
    else:
        check_whole("hidden_channels", hidden_channels)
        hidden, got = hidden_channels, f"hidden_channels={hidden_channels}"
    if hidden < at_least:
        plural = "" if at_least == 1 else "s"
        limit = channels // at_least
        fix = f"pass hidden_channels={at_least}" + (f" or reduction <= {limit}" if limit else "")
        rule = f"the bottleneck must keep at least {at_least} hidden channel{plural}"
        raise ValueError(explain(rule, got, fix))
    return hidden
