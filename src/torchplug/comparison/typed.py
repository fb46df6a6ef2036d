"""Hold what a file says to Python's type hints; errors name the place in the file."""

import dataclasses
import inspect
import tomllib
import types
import typing
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin

from torchplug.errors import UsageError, explain, nearest

_NAMES = {
    int: "a whole number",
    float: "a number",
    str: "a text",
    bool: "true or false",
    type(None): "nothing",
}
_LISTS = {Sequence, Iterable, list, tuple}


def read_toml(path: str | Path, example: str) -> dict[str, Any]:
    """Read a TOML file.

    Args:
        path: of the file; a relative one is looked for where the command runs.
        example: a line that such a file may have.

    Raises:
        UsageError: if it is not there, cannot be read, or is no TOML.

    >>> read_toml("stduy.toml", "seeds = 5")
    Traceback (most recent call last):
    ...
    torchplug.errors.UsageError: stduy.toml must be a TOML file: got no such file; check its name...
    """
    rule, fix = f"{path} must be a TOML file", f"write lines such as: {example}"
    try:
        return tomllib.loads(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        fix = f"check its name; this is {Path.cwd()}"
        raise UsageError(explain(rule, "no such file", fix)) from error
    except (OSError, tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UsageError(explain(rule, str(error), fix)) from error


def check_keys(content: Mapping[str, Any], known: Iterable[str], path: str = "") -> None:
    """Refuse a key that is not one of ``known``, naming the nearest.

    >>> check_keys({"seed": 3}, ["seeds", "task"])
    Traceback (most recent call last):
    ...
    torchplug.errors.UsageError: a study has only its own keys: got 'seed'; did you mean 'seeds'?
    """
    names = list(known)
    for key in content:
        if key not in names:
            rule = f"{path} has only its own keys" if path else "a study has only its own keys"
            raise UsageError(explain(rule, repr(join(path, key)), nearest(key, names)))


def check_value(value: Any, hint: Any, path: str) -> Any:
    """Return ``value`` if it is what ``hint`` says; lists become tuples where tuples are meant.

    Raises:
        UsageError: naming the path, such as ``variants[1].options.reduction``.

    >>> check_value("big", int, "variants[1].options.reduction")
    Traceback (most recent call last):
    ...
    torchplug.errors.UsageError: variants[1].options.reduction is a whole number: got 'big'; ...
    """
    if fits(value, hint):
        return tuple(value) if isinstance(value, list) and _means_tuple(hint) else value
    words = _choices(hint)
    fix = "write it so"
    if words and isinstance(value, str):
        fix = nearest(value, words)
    elif not describe(hint):
        fix = "pass it in Python: a file has no classes"
    raise UsageError(
        explain(f"{path} is {describe(hint) or 'no value of a file'}", repr(value), fix)
    )


def check_fields(content: Any, kind: Any, path: str, *, skip: Iterable[str] = ()) -> dict[str, Any]:
    """Check a table against the fields of a dataclass."""
    table = check_table(content, path)
    hints = typing.get_type_hints(kind)
    check_keys(table, [f.name for f in dataclasses.fields(kind) if f.name not in set(skip)], path)
    return {key: check_value(value, hints[key], join(path, key)) for key, value in table.items()}


def check_table(content: Any, path: str) -> dict[str, Any]:
    """Return a table of a file."""
    if isinstance(content, dict):
        return content
    fix = f"write [{path}] and its keys below it"
    raise UsageError(explain(f"{path} is a table", repr(content), fix))


def join(path: str, key: str) -> str:
    """Return the path of a key."""
    return f"{path}.{key}" if path else key


def hints_of(factory: Any) -> dict[str, Any]:
    """Return the type hints of a module's own options; what has none may be anything.

    >>> import torchplug
    >>> hints_of(torchplug.SqueezeExcite)["reduction"] in (int, float)
    True
    """
    target: Any = vars(factory).get("__init__") if isinstance(factory, type) else factory
    try:
        hints = typing.get_type_hints(target) if target is not None else {}
    except (NameError, TypeError):  # a third party's annotation that cannot be resolved
        hints = {}
    parameters = inspect.signature(factory).parameters.values()
    names = [p.name for p in parameters if p.kind is p.KEYWORD_ONLY]
    return {name: hints.get(name, Any) for name in names or [p.name for p in parameters][1:]}


def fits(value: Any, hint: Any) -> bool:
    """Whether a value of a file is what a type hint says; ``true`` is no number.

    >>> fits(3, float), fits(True, int), fits([1, 2], tuple[int, ...]), fits("a", Literal["b"])
    (True, False, True, False)
    """
    origin = get_origin(hint)
    if origin in {Union, types.UnionType}:
        return any(fits(value, part) for part in get_args(hint))
    if origin is Literal:
        return any(value == word and type(value) is type(word) for word in get_args(hint))
    if origin in _LISTS or hint in _LISTS:
        return _fits_list(value, hint)
    if origin is not None and isinstance(origin, type) and issubclass(origin, Mapping):
        return isinstance(value, dict)
    if hint is float:
        return type(value) in {int, float}
    return type(value) is hint if hint in _NAMES else hint is Any


def _fits_list(value: Any, hint: Any) -> bool:
    if not isinstance(value, (list, tuple)):
        return False
    parts = get_args(hint)
    if not parts:
        return True
    if get_origin(hint) is tuple and parts[-1] is not Ellipsis:
        return len(value) == len(parts) and all(map(fits, value, parts))
    return all(fits(item, parts[0]) for item in value)


def _means_tuple(hint: Any) -> bool:
    parts = get_args(hint) if get_origin(hint) in {Union, types.UnionType} else (hint,)
    return any(get_origin(part) in _LISTS for part in parts)


def describe(hint: Any) -> str:
    """Say what a type hint asks for, in words; empty for what no file can hold."""
    if hint in _NAMES:
        return _NAMES[hint]
    origin, parts = get_origin(hint), get_args(hint)
    if origin in {Union, types.UnionType}:
        words = [describe(part) for part in parts if part is not type(None)]
        return " or ".join(word for word in words if word)
    if origin is Literal:
        return "one of " + ", ".join(map(repr, parts))
    if origin in _LISTS:
        inner = describe(parts[0]) if parts else ""
        return f"a list, each {inner}" if inner else "a list"
    return "a table" if isinstance(origin, type) and issubclass(origin, Mapping) else ""


def _choices(hint: Any) -> list[str]:
    if get_origin(hint) is Literal:
        return [word for word in get_args(hint) if isinstance(word, str)]
    return [word for part in get_args(hint) for word in _choices(part)]
