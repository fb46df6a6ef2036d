"""Choose sites: by role, path, glob, regular expression, type, predicate, or a list of these."""

import re
from collections.abc import Callable, Sequence
from typing import Any

from torch import nn

from torchplug.errors import PlugError, explain, nearest
from torchplug.surgery.sites import ROLES, Site, Sites

Where = str | type[nn.Module] | Callable[[str, nn.Module], bool]
At = Where | Sequence[Where]


def select_sites(model: nn.Module, sites: Sites, at: At) -> list[Site]:
    """Return the sites that ``at`` names, each once, in the order they were found.

    Raises:
        PlugError: if ``at`` names nothing, or if one entry of a list names nothing: a typing
            error in a list must not pass in silence.
    """
    entries: Sequence[Where] = at if isinstance(at, (list, tuple)) else [at]  # type: ignore[list-item]
    chosen: dict[str, Site] = {}
    for entry in entries:
        for site in _select_one(model, sites, entry):
            chosen.setdefault(site.path, site)
    return list(chosen.values())


def _select_one(model: nn.Module, sites: Sites, entry: Any) -> list[Site]:
    if isinstance(entry, str):
        found = _select_by_text(sites, entry)
    elif isinstance(entry, type):
        found = _select_by_module(model, sites, lambda _, module: isinstance(module, entry))
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


def _select_by_text(sites: Sites, text: str) -> list[Site]:
    if text in ROLES:
        return list(sites.with_role(text))
    pattern = re.compile(text[3:]) if text.startswith("re:") else _glob_pattern(text)
    return [site for path, site in sites.outputs.items() if pattern.fullmatch(path)]


def _glob_pattern(glob: str) -> re.Pattern[str]:
    """Compile a glob over dotted paths: ``*`` stays within one name, ``**`` crosses dots."""
    parts = re.split(r"(\*\*|\*|\?)", glob)
    rules = {"**": ".*", "*": "[^.]*", "?": "[^.]"}
    return re.compile("".join(rules.get(part, re.escape(part)) for part in parts))


def _select_by_module(
    model: nn.Module, sites: Sites, where: Callable[[str, nn.Module], bool]
) -> list[Site]:
    return [site for path, site in sites.outputs.items() if where(path, model.get_submodule(path))]


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
            f"use a role of this model: {_join(sites)}" if sites.roles else "name a module path",
        )
    if entry in dict(model.named_modules()):
        return explain(
            "a plug needs a module that runs and returns one map (N, C, H, W)",
            f"{entry!r}, which did not",
            f"use a role of this model: {_join(sites)}",
        )
    hint = nearest(entry, [*ROLES, *sites.outputs]) if not _is_pattern(entry) else _join(sites)
    return explain(
        "a place must match at least one module that returns a map",
        f"{entry!r}, which matches none",
        hint if not _is_pattern(entry) else f"use a role of this model: {hint}, or another pattern",
    )


def _is_pattern(text: str) -> bool:
    return text.startswith("re:") or any(mark in text for mark in "*?")


def _join(sites: Sites) -> str:
    counts = ", ".join(f"{role!r} ({count} sites)" for role, count in sites.roles.items())
    return counts or "none was found"
