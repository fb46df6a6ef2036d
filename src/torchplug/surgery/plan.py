"""The plan: what was plugged where, as data that a file can hold."""

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from torchplug.errors import UsageError, explain

Start = Literal["identity", "seeded", "paper"]
Mode = Literal["attach", "replace", "merge"]
"""Behind a host's module, in its place, or at the entrance of one that receives several maps."""

FORMAT = 1


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

    def to_json(self) -> str:
        """Return the plan as JSON text, the same for equal plans.

        Raises:
            UsageError: if an option is not JSON: a class, say.
        """
        content = {"format": FORMAT, **dataclasses.asdict(self)}
        try:
            return json.dumps(content, indent=2, sort_keys=True) + "\n"
        except TypeError as error:
            text = explain(
                "a plan file holds numbers, texts, booleans and lists of these",
                str(error),
                "keep such options in code and plug without a plan",
            )
            raise UsageError(text) from error

    @classmethod
    def from_json(cls, text: str) -> "Plan":
        """Read a plan from JSON text.

        Raises:
            UsageError: if the text is no plan of this format.
        """
        try:
            content = json.loads(text)
            if content.pop("format") != FORMAT:
                raise ValueError(f"only format {FORMAT} is known")  # noqa: TRY301
            plugs = tuple(
                PlannedPlug(**{**entry, "shape": tuple(entry["shape"])})
                for entry in content.pop("plugs")
            )
            return cls(plugs=plugs, **content)
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            text = explain(
                "a plan is the JSON text that Plan.to_json writes",
                f"{type(error).__name__}: {error}",
                "make the plan again with plug(model, …).plan",
            )
            raise UsageError(text) from error
