"""Choose sites: by role, id, path, glob, regular expression, type, predicate, or a list of these.

A predicate of one argument gets each site of the table; one of two gets the path and the module of
each place whose output is one map.
"""

import inspect
import re
from collections.abc import Callable, Sequence
from typing import Any

from torch import nn

from torchplug.errors import PlugError, count, explain, nearest
from torchplug.surgery.op_anchor import parse_anchor
from torchplug.surgery.sites import ROLES, Site, Sites

Predicate = Callable[[str, nn.Module], bool] | Callable[[Site], bool]
_INDEXED = re.compile(r"(?P<path>.+)\[(?P<index>\d+)\]")

Where = str | type[nn.Module] | Predicate
At = Where | Sequence[Where]


def select_sites(
    model: nn.Module,
    sites: Sites,
    at: At,
    *,
    within: str | None = None,
    where: Callable[[Site], bool] | None = None,
) -> list[Site]:
    """Return the sites that ``at`` names, each once, in the order they were found.

    ``within`` keeps those below a path, or below what a glob matches; ``where`` keeps those for
    which it is true.

    Raises:
        PlugError: if ``at`` names nothing, or if one entry of a list names nothing: a typing
            error in a list must not pass in silence. Also if nothing passes the limits.
    """
    entries: Sequence[Where] = at if isinstance(at, (list, tuple)) else [at]  # type: ignore[list-item]
    chosen: dict[str, Site] = {}
    for entry in entries:
        for site in _select_one(model, sites, entry):
            chosen.setdefault(site.path, site)
    found = list(chosen.values())
    if within is not None:
        scope = re.compile(f"(?:{compile_glob(within).pattern})(?:[.!].*)?")
        found = _keep(found, lambda site: bool(scope.fullmatch(site.path)), f"within={within!r}")
    if where is not None:
        found = _keep(found, where, "where")
    return found


def _keep(sites: list[Site], passes: Callable[[Site], bool], limit: str) -> list[Site]:
    kept = [site for site in sites if passes(site)]
    if not kept:
        text = explain(
            f"{limit} must leave at least one site",
            f"none of {len(sites)}: {', '.join(site.path for site in sites[:4])}, …",
            "widen it, or choose other places with at=",
        )
        raise PlugError(text)
    return kept


def _select_one(model: nn.Module, sites: Sites, entry: Any) -> list[Site]:
    if isinstance(entry, str):
        found = _select_by_text(sites, entry)
    elif isinstance(entry, type):
        found = _select_by_module(model, sites, lambda _, module: isinstance(module, entry))
    elif callable(entry) and _takes_a_site(entry):
        found = [site for site in sites if entry(site)]
    elif callable(entry):
        found = _select_by_module(model, sites, entry)
    else:
        text = explain(
            "a place is a role, a path, a glob, 're:…', a module class or a predicate",
            repr(entry),
            f"pass a role such as {_join(sites)}",
        )
        raise PlugError(text)
    if not found:
        raise PlugError(_explain_nothing(model, sites, entry))
    return found


def _takes_a_site(predicate: Callable[..., bool]) -> bool:
    """Whether a predicate has one argument, a site, rather than a path and a module."""
    try:
        parameters = inspect.signature(predicate).parameters.values()
    except ValueError:  # some built-in callables have no signature
        return False
    positional = {inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD}
    required = [p for p in parameters if p.kind in positional and p.default is p.empty]
    return len(required) == 1 and not any(p.kind is p.VAR_POSITIONAL for p in parameters)


def _select_by_text(sites: Sites, text: str) -> list[Site]:
    if text in ROLES:
        return list(sites.with_role(text))
    by_id = [site for site in sites if site.id == text]
    if by_id:
        return by_id
    indexed = _INDEXED.fullmatch(text)
    if indexed is not None and indexed["path"] in sites.several:
        return [_pick(sites, indexed["path"], int(indexed["index"]))]
    if _is_operation(text) and (at_operations := sites.find_operation(text)):
        return at_operations
    pattern = _compile(text[3:]) if text.startswith("re:") else compile_glob(text)
    return [
        site
        for path, site in sites.outputs.items()
        if pattern.fullmatch(path) and ("!" in text or site.kind == "module")
    ]


def _is_operation(text: str) -> bool:
    return not text.startswith("re:") and parse_anchor(text) is not None


def _pick(sites: Sites, path: str, index: int) -> Site:
    """The place where the map is made that a module returns as its ``index``-th."""
    places = sites.several[path]
    site = places[index] if index < len(places) else None
    if site is None:
        got = f"{path}[{index}] of {len(places)} maps"
        if index < len(places):
            got += ", which is the input or one of several that an operation made"
        text = explain(
            "an index counts the maps that a module returns, from 0", got, _list(sites, path)
        )
        raise PlugError(text)
    return site


def _list(sites: Sites, path: str) -> str:
    """The maps that a module returns, each with the place where it is made."""
    shown = [
        f"{path}[{index}] ({site.path}: {count(site.channels, 'channel')}, "
        f"{site.size[0]} x {site.size[1]})"
        for index, site in enumerate(sites.several[path])
        if site is not None
    ]
    return f"name one of them: {', '.join(shown) or 'none of them has a place'}"


def _compile(expression: str) -> re.Pattern[str]:
    try:
        return re.compile(expression)
    except re.error as error:
        text = explain("'re:…' is a regular expression", f"{expression!r}: {error}", "correct it")
        raise PlugError(text) from error


def compile_glob(glob: str) -> re.Pattern[str]:
    """Compile a glob over dotted paths: ``*`` stays within one name, ``**`` crosses dots."""
    parts = re.split(r"(\*\*|\*|\?)", glob)
    rules = {"**": ".*", "*": "[^.]*", "?": "[^.]"}
    return re.compile("".join(rules.get(part, re.escape(part)) for part in parts))


def _select_by_module(
    model: nn.Module, sites: Sites, where: Callable[[str, nn.Module], bool]
) -> list[Site]:
    return [
        site
        for path, site in sites.outputs.items()
        if site.kind == "module" and where(path, model.get_submodule(path))
    ]


def _explain_nothing(model: nn.Module, sites: Sites, entry: Any) -> str:
    if not isinstance(entry, str):
        return explain(
            "a place must name a module that ran and returned one map",
            f"{entry!r}, which matches none",
            f"use a role of this model: {_join(sites)}",
        )
    if entry in ROLES:
        return explain(
            f"the role {entry!r} ({ROLES[entry]}) needs at least one site",
            f"{type(model).__name__}, which has none",
            _advise(sites),
        )
    if entry in sites.aliases:
        got = f"{entry!r}, another name of {sites.aliases[entry]!r}"
        fix = f"name {sites.aliases[entry]!r}; a plug on it is on both"
        return explain("a module with several names is plugged by its first", got, fix)
    if entry in sites.several:
        got = f"{entry!r}, which returns {len(sites.several[entry])} in a list or mapping"
        return explain("a plug refines one map", got, _list(sites, entry))
    if entry in dict(model.named_modules()):
        why = "did not run on the example" if entry in sites.idle else "returned none"
        return explain(
            "a plug needs a module that runs and returns one map (N, C, H, W)",
            f"{entry!r}, which {why}",
            f"use a role of this model: {_join(sites)}",
        )
    if "!" in entry and not entry.startswith("re:"):
        rule = "a place at an operation is 'module!op#call', or 'module!op#call.operand'"
        return explain(rule, f"{entry!r}, which matches none", "count from 0: 'layer1.0!relu#0'")
    hint = nearest(entry, [*ROLES, *sites.outputs]) if not _is_pattern(entry) else _join(sites)
    return explain(
        "a place must match at least one module that returns a map",
        f"{entry!r}, which matches none",
        hint if not _is_pattern(entry) else f"use a role of this model: {hint}, or another pattern",
    )


def _advise(sites: Sites) -> str:
    if sites.roles:
        return f"use a role of this model: {_join(sites)}"
    if sites.outputs:
        return "name a module path"
    return "plug a model of images: no module of this one returns a map (N, C, H, W)"


def _is_pattern(text: str) -> bool:
    return text.startswith("re:") or any(mark in text for mark in "*?")


def _join(sites: Sites) -> str:
    counts = ", ".join(f"{role!r} ({count(n, 'site')})" for role, n in sites.roles.items())
    return counts or "none was found"
