"""What hosts know about their own places: the protocol by which they say it.

A trace cannot see every place: in a dilated network the last stages share one resolution. Who
knows a library writes a *reader*: a function that gets one of its modules and returns role →
paths below that module, in order, or an empty mapping. :func:`register_reader` enters it under the
library's package; surgery never imports a host. A model of the user's own can say the same in an
attribute ``torchplug_roles``, which goes before everything else.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from torchplug.errors import PlugError, explain, nearest

Roles = Mapping[str, Sequence[str]]
Reader = Callable[[nn.Module], Roles]

ATTRIBUTE = "torchplug_roles"
"""Name of the attribute by which a model says its places itself."""

USER, METADATA, TRACE = "user", "metadata", "trace"

_READERS: dict[str, Reader] = {}


@dataclass(frozen=True)
class Known:
    """The places of one role that somebody said."""

    source: str
    paths: tuple[str, ...]


def register_reader(package: str, reader: Reader) -> None:
    """Let ``reader`` speak for the modules whose class, or a base of it, is in ``package``.

    Args:
        package: top-level package of a library of models.
        reader: returns role → paths below the module it gets; it must not run the module.

    >>> from torch import nn
    >>> register_reader("a_library", lambda module: {"stage": ["one", "two"]})
    """
    _READERS[package] = reader


def read_roles(model: nn.Module, known_roles: Sequence[str]) -> dict[str, Known]:
    """Return what the model's attribute and the libraries' readers say, by role.

    The outermost module that says something about a role is heard.

    Raises:
        PlugError: if the attribute names a role or a module that is not there. What a library
            says is taken as far as it fits.
    """
    found: dict[str, Known] = {}
    for source, path, roles in _statements(model):
        for role, names in roles.items():
            prefix = f"{path}." if path else ""
            paths = tuple(prefix + name for name in names)
            if source == USER:
                _check(model, role, paths, known_roles)
            if paths and (role not in found or _outranks(source, found[role].source)):
                found[role] = Known(source, paths)
    return found


def _outranks(source: str, other: str) -> bool:
    return source == USER and other != USER


def _statements(model: nn.Module) -> Iterator[tuple[str, str, Roles]]:
    for path, module in model.named_modules():
        said: Any = getattr(module, ATTRIBUTE, None)
        if isinstance(said, Mapping):
            yield USER, path, said
        reader = _reader_of(type(module))
        if reader is not None:
            yield METADATA, path, reader(module)


def _reader_of(module_class: type) -> Reader | None:
    packages = (base.__module__.partition(".")[0] for base in module_class.__mro__)
    return next((_READERS[package] for package in packages if package in _READERS), None)


def _check(model: nn.Module, role: str, paths: tuple[str, ...], roles: Sequence[str]) -> None:
    if role not in roles:
        text = explain(f"{ATTRIBUTE} maps roles to paths", repr(role), nearest(role, roles))
        raise PlugError(text)
    modules = dict(model.named_modules(remove_duplicate=False))
    for path in paths:
        if path not in modules:
            text = explain(
                f"{ATTRIBUTE} must name modules of the model",
                f"{path!r} for the role {role!r}",
                nearest(path, modules),
            )
            raise PlugError(text)
