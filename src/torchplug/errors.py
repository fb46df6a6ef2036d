"""What torchplug raises.

    TorchplugError
    ├── UsageError   (also a ValueError)    an argument, a name or a file that cannot be used
    ├── PlugError    (also a RuntimeError)  a plug that cannot be attached; the model is as before
    └── MissingExtra (also an ImportError)  an optional package is not installed

Every text has three parts, made by :func:`explain`: the rule, what was received, the way out.
Constructors of modules raise a plain ``ValueError`` with the same three parts, or a ``TypeError``
where the type is another than the argument's.
"""

import difflib
import importlib
import importlib.util
from collections.abc import Iterable
from types import ModuleType


class TorchplugError(Exception):
    """Base of everything that torchplug raises on purpose."""


class UsageError(TorchplugError, ValueError):
    """An argument, a name or a file cannot be used; nothing was written or changed."""


class PlugError(TorchplugError, RuntimeError):
    """A plug cannot be attached or does not work; the model is as it was before the call."""


class MissingExtra(TorchplugError, ImportError):  # noqa: N818 - reads as what is wrong
    """An optional package is needed; the text names the extra that brings it."""


def explain(rule: str, got: str, fix: str) -> str:
    """Return the text of an error from its three parts.

    >>> explain("reduction must be at least 1", "reduction=0", "pass 1 to keep the full width")
    'reduction must be at least 1: got reduction=0; pass 1 to keep the full width'
    """
    return f"{rule}: got {got}; {fix}"


def count(number: int, noun: str) -> str:
    """Return a number with its noun, for texts that people read.

    >>> count(1, "channel"), count(1200, "site")
    ('1 channel', '1,200 sites')
    """
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"


def nearest(word: str, choices: Iterable[str]) -> str:
    """Return a hint that names the choices closest to ``word``, or all of them if none is close.

    >>> nearest("cbma", ["se", "cbam", "bam"])
    "did you mean 'cbam' or 'bam'?"
    >>> nearest("xyz", ["se", "cbam"])
    "choose from 'se', 'cbam'"

    Upper and lower case count as equal: papers and people write ``CBAM``.

    >>> nearest("SE", ["se", "cbam"])
    "did you mean 'se'?"
    """
    known = list(choices)
    folded = {name.casefold(): name for name in reversed(known)}
    found = difflib.get_close_matches(word.casefold(), folded, n=3, cutoff=0.5)
    close = [folded[name] for name in found]
    if close:
        return "did you mean " + " or ".join(repr(name) for name in close) + "?"
    return "choose from " + ", ".join(repr(name) for name in known)


def require_extra(packages: Iterable[str], *, extra: str, purpose: str) -> None:
    """Raise :class:`MissingExtra` if one of ``packages`` is not installed; nothing is imported."""
    missing = [name for name in packages if importlib.util.find_spec(name) is None]
    if missing:
        raise MissingExtra(_explain_missing(", ".join(missing), extra, purpose))


def _explain_missing(package: str, extra: str, purpose: str) -> str:
    return explain(
        f"{purpose} needs {package}",
        "an environment without it",
        f"install it from the clone of torchplug: pip install '.[{extra}]'",
    )


def import_extra(package: str, *, extra: str, purpose: str) -> ModuleType:
    """Import an optional package, or raise :class:`MissingExtra` naming the extra that has it."""
    try:
        return importlib.import_module(package)
    except ModuleNotFoundError as error:
        top = package.partition(".")[0]
        if (error.name or "").partition(".")[0] != top:
            raise  # the package is there and one of its own imports is broken
        raise MissingExtra(_explain_missing(top, extra, purpose)) from error
