"""Read from a host's module what the module in its place must be built with."""

import inspect
from collections.abc import Callable, Mapping
from typing import Any

from torch import nn

from torchplug.errors import PlugError, explain

Options = dict[str, Any]


def fit_convolution(
    factory: Callable[..., nn.Module], key: str, conv: nn.Module, given: Mapping[str, Any]
) -> Options:
    """Return the options that make ``factory`` stand in the place of ``conv``.

    Of stride, padding, dilation, groups, padding mode and bias, the constructor gets those that it
    has an argument for and that the user has not given. What it has no argument for must have the
    plain value.

    Args:
        factory: a class ``(in_channels, out_channels, **options)``.
        key: its name in errors.
        conv: the convolution.
        given: the user's own options.

    Raises:
        PlugError: naming the first property that cannot be expressed.

    >>> from torchplug.modules import AsymmetricConv
    >>> conv = nn.Conv2d(8, 8, 3, stride=2, padding=1, groups=2)
    >>> options = fit_convolution(AsymmetricConv, "acnet", conv, {})
    >>> options["stride"], options["padding"], options["groups"]
    (2, 1, 2)
    """
    if not isinstance(conv, nn.Conv2d):
        got, fix = type(conv).__name__, "name convolutions with at=, such as at=nn.Conv2d"
        raise PlugError(explain(f"{key} stands in the place of an nn.Conv2d", got, fix))
    takes = inspect.signature(factory).parameters
    read_groups = _OWN_WAYS.get(key, _read_groups)
    found = {**_read_size(key, conv, takes), **read_groups(key, conv, given)}
    if conv.groups > 1 and key not in _OWN_WAYS and "groups" not in takes:
        _refuse(key, f"groups={conv.groups}", "choose dense convolutions with at=")
    if "padding_mode" in takes:
        found["padding_mode"] = conv.padding_mode
    elif conv.padding_mode != "zeros":
        _refuse(key, f"padding_mode={conv.padding_mode!r}")
    if "bias" in takes:
        found["bias"] = conv.bias is not None
    return {name: value for name, value in found.items() if name in takes} | dict(given)


def is_plain(conv: nn.Module) -> bool:
    """Whether a module is a convolution that computes what its kernel says, no more."""
    is_own = isinstance(conv, nn.Conv2d) and "weight" in conv._parameters
    plugged = getattr(type(conv), "_torchplug_class", type(conv))
    return is_own and plugged.forward is nn.Conv2d.forward and "forward" not in vars(conv)


def _read_size(key: str, conv: nn.Conv2d, takes: Mapping[str, inspect.Parameter]) -> Options:
    """Kernel size, stride, dilation and padding, each one number for both directions."""
    pairs = {
        "kernel_size": conv.kernel_size,
        "stride": conv.stride,
        "dilation": conv.dilation,
    }
    for name, pair in pairs.items():
        can_tell = name in takes or name == "kernel_size" or pair[0] == 1
        if len(set(pair)) > 1 or not can_tell:
            _refuse(key, f"{name}={pair if len(set(pair)) > 1 else pair[0]}")
    sizes = {name: int(pair[0]) for name, pair in pairs.items()}
    if not is_plain(conv):
        return sizes  # such as TensorFlow's padding: the shape on the example decides
    reach = sizes["dilation"] * (sizes["kernel_size"] - 1)
    padding = _read_padding(key, conv, reach)
    if "padding" in takes and not isinstance(takes["padding"].default, str):
        return {**sizes, "padding": padding}
    if 2 * padding != reach:
        _refuse(key, f"padding={padding} with kernel_size={sizes['kernel_size']}")
    return sizes


def _read_padding(key: str, conv: nn.Conv2d, reach: int) -> int:
    """The padding to each side, as one number; ``reach`` is what keeps the map's size."""
    padding = conv.padding
    if isinstance(padding, str):
        if padding == "same" and reach % 2:
            _refuse(key, f"padding='same' with kernel_size={conv.kernel_size[0]}")
        return reach // 2 if padding == "same" else 0
    if len(set(padding)) > 1:
        _refuse(key, f"padding={padding}")
    return int(padding[0])


_ReadGroups = Callable[[str, nn.Conv2d, Mapping[str, Any]], Options]


def _read_groups(key: str, conv: nn.Conv2d, given: Mapping[str, Any]) -> Options:  # noqa: ARG001
    return {"groups": conv.groups}


def _read_cardinality(key: str, conv: nn.Conv2d, given: Mapping[str, Any]) -> Options:  # noqa: ARG001
    """Split-Attention calls its groups so."""
    return {"cardinality": conv.groups}


def _read_separable(key: str, conv: nn.Conv2d, given: Mapping[str, Any]) -> Options:  # noqa: ARG001
    """Leave the last norm and activation to the host, which has its own behind a convolution."""
    if conv.groups > 1:
        _refuse(key, f"groups={conv.groups}", "choose dense convolutions with at=")
    return {"norm_after": "depthwise", "act_after": "depthwise"}


def _read_wiring(key: str, conv: nn.Conv2d, given: Mapping[str, Any]) -> Options:
    """A depthwise convolution becomes a mixed depthwise one, a dense one a mixed dense one."""
    if "wiring" in given:
        return {}
    if conv.groups == 1:
        return {"wiring": "dense"}
    if conv.groups != conv.in_channels:
        fix = "pass wiring=, or choose dense or depthwise convolutions with at="
        _refuse(key, f"groups={conv.groups} of {conv.in_channels} channels", fix)
    return {"wiring": "depthwise"}


_OWN_WAYS: dict[str, _ReadGroups] = {
    "splat": _read_cardinality,
    "dwconv": _read_separable,
    "mixconv": _read_wiring,
}


def _refuse(key: str, got: str, fix: str = "choose other convolutions with at=") -> None:
    rule = f"{key} must be able to express the convolution it replaces"
    raise PlugError(explain(rule, got, fix))


def fit_block(
    factory: Callable[..., nn.Module],
    entry: tuple[int, ...],
    output: tuple[int, ...],
    given: Mapping[str, Any],
) -> Options:
    """Return the options that make ``factory`` turn a map of one shape into one of another.

    Args:
        factory: a class ``(in_channels, out_channels, **options)``.
        entry: shape of the map that the host's module receives.
        output: shape of the map that it returns.
        given: the user's own options.
    """
    takes = inspect.signature(factory).parameters
    found: Options = {}
    if "stride" in takes:
        found["stride"] = max(round(entry[2] / max(output[2], 1)), 1)
    return found | dict(given)
