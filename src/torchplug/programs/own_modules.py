"""Find a module of the script's own by the name in its plan: the script hands in the class.

A plan is a file of data, and nothing that it names is imported. It names a class by its source
and holds a hash of that file, so that no class of another version is taken for the one meant.
"""

import contextlib
import hashlib
import inspect
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from torch import nn

from torchplug.errors import UsageError, explain, nearest
from torchplug.surgery.request import Request

OwnModules = Mapping[str, type[nn.Module] | Callable[..., nn.Module]]
"""Classes of the script's own by name."""


def find_module(
    request: Request, sources: Mapping[str, str], modules: OwnModules | None
) -> str | type[nn.Module] | Callable[..., nn.Module]:
    """Return what a request plugs: a key of the catalogue, or a class that the script handed in.

    Args:
        request: names the module.
        sources: SHA-256 of the file of each module of one's own, as far as known.
        modules: what the script handed in.

    Raises:
        UsageError: if the script handed in no class of this name, or one of another source.

    >>> request = Request.parse("own.py:Scale@stage")
    >>> find_module(request, {}, {"Scale": nn.Identity})
    <class 'torch.nn.modules.linear.Identity'>
    >>> find_module(request, {}, None)
    Traceback (most recent call last):
    ...
    torchplug.errors.UsageError: a script hands in its own modules, since nothing that a plan names
    is imported: got own.py:Scale; pass apply_plan(…, modules={'Scale': Scale})
    """
    if not request.is_own:
        return request.module
    name = request.module.rpartition(":")[2]
    if modules is None or name not in modules:
        rule = "a script hands in its own modules, since nothing that a plan names is imported"
        fix = f"pass apply_plan(…, modules={{{name!r}: {name}}})"
        if modules:
            fix = f"{nearest(name, modules)} {fix}"
        raise UsageError(explain(rule, request.module, fix))
    found = modules[name]
    _check_source(request.module, found, sources.get(request.module, ""))
    return found


def _find_file(found: Any) -> Path | None:
    """Return the file that defines a class; one that was made at a prompt has none."""
    parts: tuple[Any, ...] = (found, getattr(found, "forward", None))
    for part in parts:
        with contextlib.suppress(OSError, TypeError):
            file = Path(inspect.getsourcefile(part) or "")
            if file.is_file():
                return file
    return None


def _check_source(name: str, found: Any, wanted: str) -> None:
    """Refuse a class whose file is another than the one that was hashed; it may lie elsewhere."""
    file = _find_file(found)
    content = file.read_bytes() if file is not None else b""
    if wanted and file is not None and hashlib.sha256(content).hexdigest() != wanted:
        text = explain(
            "the class that a script hands in is the one that the comparison names",
            f"{file} instead of {name}, or that file changed after the comparison began",
            "name the file that defines it, and begin a new comparison after a change",
        )
        raise UsageError(text)
