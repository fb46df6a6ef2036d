"""What is compared: the specification of a comparison, as data."""

import dataclasses
import functools
import hashlib
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal
from urllib.parse import quote

from torchplug.comparison.recipe import Recipe
from torchplug.errors import UsageError, explain
from torchplug.surgery.request import Request

BASELINE = "baseline"
AGAIN = "baseline again"
FEWEST_SEEDS = 2
_FRESH = 10_000_000  # what the seeds of the A/A control are moved by

_GAP = "\0"

TaskName = Literal["classification", "segmentation", "detection"]
Control = Literal["again", "parameters", "latency", "placebo"]
Goal = Literal["max", "min"]


@dataclass(frozen=True, kw_only=True)
class Variant:
    """One plan to try; the baseline has no plugs.

    >>> Variant(name="both", plugs=("se", "cbam@stage")).plugs[1].at
    'stage'
    """

    name: str
    plugs: tuple[Request, ...] = ()
    """Plugged one after the other; texts such as ``"cbam@stage:reduction=8"`` are read."""

    control: Control | None = None
    """What the arm controls for; ``None`` for the baseline and what is compared with it."""

    of: str = ""
    """The variant that a control belongs to."""

    details: Mapping[str, Any] = field(default_factory=dict)
    """What a control was brought to, such as the widths of a widened stage."""

    def __post_init__(self) -> None:
        read = tuple(Request.parse(plug) if isinstance(plug, str) else plug for plug in self.plugs)
        object.__setattr__(self, "plugs", read)

    @classmethod
    def parse(cls, text: str) -> "Variant":
        """Read ``MODULE[@PLACE][:OPTION=VALUE,…]``, several of them joined by `` + ``.

        >>> [plug.module for plug in Variant.parse("se + cbam@stage").plugs]
        ['se', 'cbam']
        """
        parts = [part.strip() for part in text.split(" + ")]
        return cls(name=text, plugs=tuple(Request.parse(part) for part in parts))

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> "Variant":
        """Read what :func:`dataclasses.asdict` and JSON made of a variant."""
        plugs = tuple(_read_request(plug) for plug in content.get("plugs", ()))
        return cls(**{**content, "plugs": plugs})

    @property
    def slug(self) -> str:
        """The name as part of a file name; two names never share one."""
        return quote(self.name, safe="@=,")

    @functools.cached_property
    def as_text(self) -> str:
        """The variant as JSON."""
        return json.dumps(dataclasses.asdict(self), sort_keys=True)

    def stream(self, seed: int) -> int:
        """Return the seed that the random streams of a trial are derived from.

        It is the trial's own, and so shared by all arms; the A/A control gets a fresh one.
        """
        return seed + _FRESH if self.control == "again" else seed


def _read_request(content: Mapping[str, Any]) -> Request:
    stages = content.get("stages")
    return Request(**{**content, "stages": None if stages is None else tuple(stages)})


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """Everything that decides the numbers: two equal specifications give equal records."""

    model: str
    data: str
    variants: tuple[Variant, ...]
    seeds: tuple[int, ...]
    task: TaskName = "classification"
    metric: str = ""
    """The one that decides, named before the start; empty is the task's own."""

    goal: Goal = "max"
    """Whether more of the metric is better, or less."""

    recipe: Recipe = field(default_factory=Recipe)
    image_size: int | None = None
    data_options: Mapping[str, Any] = field(default_factory=dict)
    """Handed to :func:`torchplug.comparison.data.load_data`."""

    model_options: Mapping[str, Any] = field(default_factory=dict)
    base: str = "scratch"
    """Where training starts: ``scratch``; ``trained``, a baseline trained once by the same recipe;
    or the path of a checkpoint. All arms start from it and are trained for the same steps."""

    margin: float | None = None
    """The smallest difference worth having, in points; ``None`` is 0.2 or one standard error."""

    controls: tuple[Control, ...] = ()
    """Asked for, for every variant. The baseline again is always there, and a variant that wins
    gets ``parameters`` and ``placebo`` in any case."""

    futility: bool = False
    """Stop a variant that can no longer reach the margin; it is reported, never dropped."""

    budget_hours: float | None = None
    """Begin no trial after this time."""

    command: str = ""
    """A program that is the trial: ``python train.py --seed {seed} --plan {plan} --out {out}``."""

    metric_file: str = ""
    """Where the program leaves the metric: ``{out}/metrics.json:map50``."""

    device: str = "cpu"
    devices: int = 1
    """Of one trial; more than one train together by Lightning's DDP."""

    model_digest: str = ""
    """Hash of the base: a changed file or function is another model under the same name."""

    def __post_init__(self) -> None:
        if len(self.seeds) < FEWEST_SEEDS:
            text = explain(
                "a comparison needs at least 2 seeds, since one difference has no spread",
                f"{len(self.seeds)}",
                "take 5 for a screen, 10 for a verdict",
            )
            raise UsageError(text)
        if self.margin is not None and not (math.isfinite(self.margin) and self.margin > 0):
            fix = "name a number of points above 0, or leave it out"
            raise UsageError(explain("a margin is above 0", repr(self.margin), fix))
        if not self.variants:
            fix = "name at least one module to plug, such as 'se'"
            raise UsageError(explain("a comparison needs a variant", "none", fix))
        names = [variant.name for variant in self.arms]
        doubled = sorted({name for name in names if names.count(name) > 1})
        if doubled:
            fix = "name each variant once, and none 'baseline'"
            raise UsageError(explain("variants must differ", ", ".join(doubled), fix))

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> "Comparison":
        """Read what :meth:`to_json` wrote."""
        fields = dict(content)
        fields["variants"] = tuple(Variant.from_dict(each) for each in content["variants"])
        for name in ("seeds", "controls"):
            fields[name] = tuple(content[name])
        fields["recipe"] = Recipe.from_dict(content["recipe"])
        return cls(**fields)

    @property
    def arms(self) -> tuple[Variant, ...]:
        """The baseline, the variants, and the baseline again; other controls come by the run."""
        again = Variant(name=AGAIN, control="again", of=BASELINE)
        return (Variant(name=BASELINE), *self.variants, again)

    def trials(self, arms: Sequence[Variant] | None = None) -> Iterator[tuple[Variant, int]]:
        """Yield every trial, seed by seed: an interrupted comparison holds whole pairs."""
        for seed in self.seeds:
            for arm in self.arms if arms is None else arms:
                yield arm, seed

    def to_json(self) -> str:
        """Return the specification as JSON text, the same for equal specifications."""
        try:
            return json.dumps(dataclasses.asdict(self), indent=2, sort_keys=True) + "\n"
        except TypeError as error:
            fix = "use options that are numbers, texts, booleans or lists of these"
            raise UsageError(explain("a comparison is kept as JSON", str(error), fix)) from error

    def specify(self, variant: Variant, seed: int) -> dict[str, Any]:
        """Return all that decides one trial: not how many others there are, nor when to stop."""
        content = dataclasses.asdict(self)
        for other in ("variants", "seeds", "margin", "controls", "futility", "budget_hours"):
            del content[other]
        return content | {"variant": dataclasses.asdict(variant), "seed": seed}

    def digest(self, variant: Variant, seed: int) -> str:
        """Return the hash of what decides one trial: of :meth:`specify` as JSON."""
        before, between, after = self._frame
        text = f"{before}{seed}{between}{variant.as_text}{after}"
        return hashlib.sha256(text.encode()).hexdigest()

    @functools.cached_property
    def _frame(self) -> tuple[str, str, str]:
        """The JSON of a trial around its seed and its variant; a study has many trials."""
        gap = Variant(name=_GAP)
        text = json.dumps(self.specify(gap, _FRESH), sort_keys=True)
        before, rest = text.split(f'"seed": {_FRESH}')
        between, after = rest.split(gap.as_text)
        return f'{before}"seed": ', between, after


def find_differences(old: Any, new: Any, path: str = "") -> list[str]:
    """Return what differs between two JSON values, one line a place.

    >>> find_differences({"seeds": [0, 1], "data": "a"}, {"seeds": [0, 1, 2], "data": "a"})
    ['seeds: [0, 1] -> [0, 1, 2]']
    """
    if isinstance(old, dict) and isinstance(new, dict):
        return [
            line
            for key in sorted({*old, *new})
            for line in find_differences(
                old.get(key), new.get(key), f"{path}.{key}" if path else key
            )
        ]
    return [] if old == new else [f"{path}: {json.dumps(old)} -> {json.dumps(new)}"]


def read_seeds(seeds: int | Sequence[int]) -> tuple[int, ...]:
    """Return the seeds of a comparison: ``5`` means 0 to 4."""
    numbers = tuple(range(seeds)) if isinstance(seeds, int) else tuple(seeds)
    if len(set(numbers)) != len(numbers):
        raise UsageError(explain("seeds must differ", str(numbers), "name each seed once"))
    return numbers
