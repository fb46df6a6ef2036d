"""What to plug as one word of a command line or of a list: ``cbam@stage:reduction=8``."""

import ast
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from torchplug.catalog import get_card
from torchplug.errors import UsageError, explain
from torchplug.surgery.build import KEYWORDS
from torchplug.surgery.plan import Start


@dataclass(frozen=True, kw_only=True)
class Request:
    """A module of the catalogue or a class of one's own, where it goes, and its options."""

    module: str
    """A key of the catalogue; ``package.module:Class`` or ``path/to/file.py:Class``."""

    at: str | None = None
    """A role, path or glob; ``None`` is the place in the module's paper."""

    options: Mapping[str, Any] = field(default_factory=dict)
    start: Start = "identity"
    stages: tuple[int, ...] | None = None
    every: int | None = None

    def __post_init__(self) -> None:
        taken = [option for option in self.options if option in _WORDS_OF_PLUG]
        if self.is_own and taken:
            rule = f"options of a module of your own are none of {', '.join(_WORDS_OF_PLUG)}"
            raise UsageError(explain(rule, ", ".join(taken), "rename it in your class"))

    @classmethod
    def parse(cls, text: str) -> "Request":
        """Read ``MODULE[@PLACE][:OPTION=VALUE,…]``.

        MODULE is a key of the catalogue, or names a class of one's own; nothing is imported here.

        Raises:
            UsageError: if the module is unknown or the text has another form.

        >>> Request.parse("cbam@stage:reduction=8")
        Request(module='cbam', at='stage', options={'reduction': 8}, start='identity', stages=None,
                every=None)
        """
        head, colon, tail = text.rpartition(":")
        if not colon or "=" not in tail:  # "se@re:layer.*" has a colon and no options
            head, tail = text, ""
        module, at_sign, place = head.partition("@")
        if at_sign and not place:
            fix = "write cbam or cbam@stage"
            raise UsageError(explain("a place follows the @", repr(text), fix))
        request = cls(module=module, at=place or None, options=_read_options(tail, text))
        if request.is_own:
            _check_own(request, text)
        else:
            get_card(module)  # an unknown key is named before anything is built
        return request

    @property
    def is_own(self) -> bool:
        """Whether the module is a class of one's own, and no key of the catalogue."""
        return ":" in self.module


def _check_own(request: Request, text: str) -> None:
    """Refuse a class of one's own that is half named, or has no place."""
    source, _, name = request.module.rpartition(":")
    if not source or not name.isidentifier():
        fix = "write package.module:Class or path/to/file.py:Class"
        raise UsageError(explain("a module of your own is a class by its source", repr(text), fix))
    if request.at is None:
        fix = f"write {request.module}@stage, or another role, path or glob"
        rule = "a module of your own has no paper that says where it goes"
        raise UsageError(explain(rule, repr(text), fix))


def _read_options(text: str, whole: str) -> dict[str, Any]:
    if not text:
        return {}
    fix = "write MODULE@PLACE:reduction=8,bias=False"
    try:
        call = ast.parse(f"f({text})", mode="eval").body
        words = call.keywords if isinstance(call, ast.Call) and not call.args else []
        options = {str(word.arg): _read_value(word.value) for word in words}
    except (SyntaxError, ValueError) as error:
        raise UsageError(explain("options are OPTION=VALUE pairs", repr(whole), fix)) from error
    if not options:
        raise UsageError(explain("options are OPTION=VALUE pairs", repr(whole), fix))
    return options


def _read_value(node: ast.expr) -> Any:
    # a bare word is a text, so that a shell needs no quotes
    return node.id if isinstance(node, ast.Name) else ast.literal_eval(node)


_WORDS_OF_PLUG = ("model", "what", *KEYWORDS)
"""What :func:`torchplug.plug` takes itself, beside the options that it hands on."""
