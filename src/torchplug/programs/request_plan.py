"""What a training script is told to plug: requests whose places are found in the script's model."""

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

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
from torchplug.surgery.request import Request
from torchplug.surgery.strict_json import parse_json

FORMAT = 1

ProgramControl = Literal["parameters", "placebo"]
"""Controls that a script can make of its own model; latency is measured, so it would be another
one in every trial."""


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

    control: ProgramControl | None = None
    """``placebo`` cuts the information of what is plugged; ``parameters`` plugs nothing and widens
    the model until it has as many parameters as it would have with the plugs."""

    sources: Mapping[str, str] = field(default_factory=dict)
    """SHA-256 of the file of each module of one's own, by the name in its request."""

    def __post_init__(self) -> None:
        if self.control is not None and not self.requests:
            fix = "name what is plugged in the variant that is controlled for"
            raise UsageError(explain("a control belongs to plugs", "a plan without any", fix))

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


def _are_texts(table: dict[str, Any]) -> bool:
    return len(table) <= MOST_PLUGS and all(map(is_text, (*table, *table.values())))


def _is_number(value: Any) -> bool:
    return type(value) is int and 1 <= value <= LARGEST


_PLAN_RULES: dict[str, Rule] = {
    "seed": (lambda value: type(value) is int and abs(value) < 2**63, "a whole number"),
    "receipt": (lambda value: type(value) is bool, "true or false"),
    "control": (
        lambda value: value is None or value in get_args(ProgramControl),
        f"null or one of {', '.join(get_args(ProgramControl))}",
    ),
    "sources": (lambda value: type(value) is dict and _are_texts(value), "texts by name"),
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
