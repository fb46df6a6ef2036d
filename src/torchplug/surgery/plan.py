"""The plan: what was plugged where, as data that a file can hold."""

import dataclasses
import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

from torchplug.errors import UsageError, explain
from torchplug.surgery.classes import is_class, read_options, write_options
from torchplug.surgery.specimen import Specimen, is_specimen
from torchplug.surgery.strict_json import parse_json

Start = Literal["identity", "seeded", "paper"]
Mode = Literal["attach", "replace", "merge"]
"""Behind a host's module, in its place, or at the entrance of one that receives several maps."""

Layout = Literal["NCHW", "NHWC"]

FORMAT = 1

LARGEST = 2**16
"""No width, size or option of a plan may be larger: a file must not ask for all memory."""

LARGEST_MAP = 2**28
"""Numbers in the map of one image: a gigabyte."""

MOST_PLUGS = 10_000
_LONGEST_TEXT = 1000


@dataclass(frozen=True, kw_only=True)
class PlannedPlug:
    """One module at one place."""

    path: str
    """The module of the host that is plugged."""

    name: str
    """Name of the plug: its weights are called ``<path>.torchplug.<name>.…``."""

    module: str
    """Key of the catalogue, or ``package.module:Class`` of a module of the user's own."""

    shape: tuple[int, ...]
    """Shape of the map when the plan was made."""

    channels: int
    options: Mapping[str, Any] = field(default_factory=dict)
    start: Start = "identity"
    role: str = "named"
    stage: int | None = None
    mode: Mode = "attach"
    layout: Layout = "NCHW"
    """Where the channels of ``shape`` are."""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """A list of plugs for one host, in the order in which they are attached.

    >>> plan = Plan(host="ResNet", plugs=(), seed=0)
    >>> Plan.from_json(plan.to_json()) == plan
    True
    """

    host: str
    """Class name of the model that was planned for."""

    plugs: tuple[PlannedPlug, ...]
    seed: int
    example: Specimen | None = None
    """Shapes and types of the example, where a place shows itself only when the model runs."""

    def to_json(self) -> str:
        """Return the plan as JSON text, the same for equal plans.

        Raises:
            UsageError: if an option is not JSON, and no class of torch.nn or torchplug.
        """
        content = {"format": FORMAT, **dataclasses.asdict(self)}
        if self.example is None:
            del content["example"]
        try:
            for entry in content["plugs"]:
                entry["options"] = write_options(entry["options"])
                if entry["layout"] == "NCHW":  # nearly all are: said where it differs
                    del entry["layout"]
            return json.dumps(content, indent=2, sort_keys=True, allow_nan=False) + "\n"
        except (TypeError, ValueError) as error:
            text = explain(
                "a plan file holds numbers, texts, booleans, classes of torch.nn or torchplug, and "
                "lists of these",
                str(error),
                "keep such options in code and plug without a plan",
            )
            raise UsageError(text) from error

    @classmethod
    def from_json(cls, text: str) -> "Plan":
        """Read a plan from JSON text. Nothing that it names is imported or run.

        Raises:
            UsageError: if the text is no plan of this format.
        """
        try:
            return cls._from_content(parse_json(text))
        except (AttributeError, KeyError, RecursionError, TypeError, ValueError) as error:
            text = explain(
                "a plan is the JSON text that Plan.to_json writes",
                f"{type(error).__name__}: {error}",
                "make the plan again with plug(model, …).plan",
            )
            raise UsageError(text) from error

    @classmethod
    def _from_content(cls, content: dict[str, Any]) -> "Plan":
        if content.pop("format") != FORMAT:
            raise ValueError(f"only format {FORMAT} is known")
        entries = content.pop("plugs")
        if type(entries) is not list or len(entries) > MOST_PLUGS:
            raise ValueError(f"plugs is a list of at most {MOST_PLUGS} entries")
        plugs = tuple(_read_plug(entry, place) for place, entry in enumerate(entries))
        check_fields(content, _PLAN_RULES, "the plan")
        plan = cls(plugs=plugs, **content)
        taken = [(plug.path, plug.name) for plug in plugs]
        if len(set(taken)) != len(taken):
            path, name = next(pair for pair in taken if taken.count(pair) > 1)
            raise ValueError(f"two plugs are called {name!r} at {path}")
        return plan


def _read_plug(entry: Any, place: int) -> PlannedPlug:
    if type(entry) is not dict:
        raise ValueError(f"plug {place} is {type(entry).__name__}, not an object")
    check_fields(entry, _PLUG_RULES, f"plug {place}")
    options = read_options(entry.get("options", {}))
    return PlannedPlug(**{**entry, "shape": tuple(entry["shape"]), "options": options})


def check_fields(content: Mapping[str, Any], rules: Mapping[str, "Rule"], owner: str) -> None:
    """Hold every field of a file to its rule; a field without one must be a simple value."""
    for name, value in content.items():
        is_right, wanted = rules.get(name, (is_simple, "a simple value"))
        if not is_right(value):
            raise ValueError(f"{name} of {owner} must be {wanted}, not {_shorten(value)}")


def _shorten(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:59] + "…"


def is_text(value: Any) -> bool:
    """Whether it is a printable text of a sane length."""
    return type(value) is str and 0 < len(value) <= _LONGEST_TEXT and value.isprintable()


def _is_count(value: Any) -> bool:
    return type(value) is int and 1 <= value <= LARGEST


def _is_shape(value: Any) -> bool:
    is_map = type(value) is list and len(value) == 4 and all(map(_is_count, value))
    return is_map and math.prod(value[1:]) <= LARGEST_MAP


def is_simple(value: Any) -> bool:
    """Whether it is one of JSON's scalars, of a sane size, or a list of these."""
    if type(value) is list:
        return len(value) <= _LONGEST_TEXT and all(map(is_simple, value))
    if type(value) is int:
        return abs(value) <= LARGEST
    if type(value) is float:
        return math.isfinite(value)
    return value is None or type(value) is bool or value == "" or is_text(value)


def _is_option(value: Any) -> bool:
    if type(value) is list:
        return len(value) <= _LONGEST_TEXT and all(map(_is_option, value))
    return is_simple(value) or is_class(value)


def _are_planned_options(value: Any) -> bool:
    return (
        type(value) is dict
        and all(map(_is_option, value.values()))
        and are_options(dict.fromkeys(value))
    )


def are_options(value: Any) -> bool:
    """Whether these are options of a module; device and type are the host's to say."""
    return (
        type(value) is dict
        and not {"device", "dtype"} & value.keys()
        and all(is_text(name) and is_simple(content) for name, content in value.items())
    )


Rule = tuple[Callable[[Any], bool], str]
_PLAN_RULES: dict[str, Rule] = {
    "host": (is_text, "a text"),
    "seed": (lambda value: type(value) is int and abs(value) < 2**63, "a whole number"),
    "example": (is_specimen, "shapes and types of arguments that fit in memory"),
}
_PLUG_RULES: dict[str, Rule] = {
    **dict.fromkeys(("path", "name", "module", "role"), (is_text, "a text")),
    "shape": (_is_shape, f"four numbers from 1 to {LARGEST}, of a map that fits in memory"),
    "channels": (_is_count, f"a number from 1 to {LARGEST}"),
    "options": (
        _are_planned_options,
        "numbers, texts, booleans, known classes and lists of these by name, without device and "
        "dtype",
    ),
    "start": (lambda value: value in get_args(Start), f"one of {', '.join(get_args(Start))}"),
    "layout": (lambda value: value in get_args(Layout), "NCHW or NHWC"),
    "mode": (lambda value: value in get_args(Mode), f"one of {', '.join(get_args(Mode))}"),
    "stage": (lambda value: value is None or type(value) is int, "a number or null"),
}
