"""What to plug as one word of a command line or of a list: ``cbam@stage:reduction=8``."""

import ast
import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, get_args

from torchplug.catalog import get_card
from torchplug.errors import UsageError, explain
from torchplug.surgery.plan import (
    LARGEST,
    MOST_PLUGS,
    Rule,
    Start,
    are_options,
    check_fields,
    is_text,
)
from torchplug.surgery.strict_json import parse_json


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


_WORDS_OF_PLUG = (
    *("model", "what", "at", "example", "start", "stages", "every", "within", "where", "seed"),
    *("name", "mode"),
)
"""What :func:`torchplug.plug` takes itself, beside the options that it hands on."""

FORMAT = 1


@dataclass(frozen=True, kw_only=True)
class RequestPlan:
    """What to plug into a model that is not there yet: places are found when it is applied.

    A :class:`torchplug.Plan` names modules and widths of one model. This names roles, paths or
    globs, so the driver of a comparison can write it without knowing the model of a user's script.

    >>> plan = RequestPlan(requests=(Request.parse("cbam@stage:reduction=8"),), seed=3)
    >>> RequestPlan.from_json(plan.to_json()) == plan
    True
    """

    requests: tuple[Request, ...]
    """Plugged one after the other; none leaves the model as it is."""

    seed: int
    """Of the modules' own initial weights."""

    receipt: bool = False
    """Whether applying the plan from its file leaves ``<name>.applied.json`` beside it."""

    def to_json(self) -> str:
        """Return the plan as JSON text, the same for equal plans.

        Raises:
            UsageError: if an option is not JSON.
        """
        content = {"format": FORMAT, **dataclasses.asdict(self)}
        try:
            return json.dumps(content, indent=2, sort_keys=True, allow_nan=False) + "\n"
        except (TypeError, ValueError) as error:
            fix = "use options that are numbers, texts, booleans or lists of these"
            raise UsageError(explain("a plan file holds JSON", str(error), fix)) from error

    @classmethod
    def from_json(cls, text: str) -> "RequestPlan":
        """Read a plan from JSON text. Nothing that it names is imported or run.

        Raises:
            UsageError: if the text is no plan of this format.
        """
        try:
            return cls._from_content(parse_json(text))
        except (AttributeError, KeyError, RecursionError, TypeError, ValueError) as error:
            got = f"{type(error).__name__}: {error}"
            fix = "let torchplug compare --command write it"
            raise UsageError(explain("a plan of requests is JSON text", got, fix)) from error

    @classmethod
    def _from_content(cls, content: dict[str, Any]) -> "RequestPlan":
        if content.pop("format") != FORMAT:
            raise ValueError(f"only format {FORMAT} is known")
        entries = content.pop("requests")
        if type(entries) is not list or len(entries) > MOST_PLUGS:
            raise ValueError(f"requests is a list of at most {MOST_PLUGS} entries")
        check_fields(content, _PLAN_RULES, "the plan")
        return cls(requests=tuple(map(_read_entry, entries)), **content)


def _read_entry(entry: Any) -> Request:
    if type(entry) is not dict:
        raise ValueError(f"a request is {type(entry).__name__}, not an object")
    check_fields(entry, _REQUEST_RULES, "a request")
    stages = entry.get("stages")
    return Request(**{**entry, "stages": None if stages is None else tuple(stages)})


def _is_number(value: Any) -> bool:
    return type(value) is int and 1 <= value <= LARGEST


_PLAN_RULES: dict[str, Rule] = {
    "seed": (lambda value: type(value) is int and abs(value) < 2**63, "a whole number"),
    "receipt": (lambda value: type(value) is bool, "true or false"),
}
_REQUEST_RULES: dict[str, Rule] = {
    "module": (is_text, "a text"),
    "at": (lambda value: value is None or is_text(value), "a text or null"),
    "options": (are_options, "numbers, texts, booleans and lists of these by name"),
    "start": (lambda value: value in get_args(Start), f"one of {', '.join(get_args(Start))}"),
    "stages": (
        lambda value: value is None or (type(value) is list and all(map(_is_number, value))),
        "a list of numbers from 1, or null",
    ),
    "every": (lambda value: value is None or _is_number(value), "a number from 1, or null"),
}
