"""What is compared: the specification of a comparison, as data."""

import dataclasses
import hashlib
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import quote

from torchplug.comparison.recipe import Recipe
from torchplug.errors import UsageError, explain
from torchplug.surgery.request import Request

BASELINE = "baseline"
FEWEST_SEEDS = 2


@dataclass(frozen=True, kw_only=True)
class Variant:
    """One plan to try: a module, where it goes, and its options; the baseline has none."""

    name: str
    module: str | None = None
    at: str | None = None
    """A role, path or glob; ``None`` is the place in the module's paper."""

    options: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def parse(cls, text: str) -> "Variant":
        """Read ``MODULE[@PLACE][:OPTION=VALUE,…]``.

        >>> Variant.parse("cbam@stage:reduction=8")
        Variant(name='cbam@stage:reduction=8', module='cbam', at='stage', options={'reduction': 8})
        """
        request = Request.parse(text)
        return cls(name=text, module=request.module, at=request.at, options=request.options)

    @property
    def slug(self) -> str:
        """The name as part of a file name; two names never share one."""
        return quote(self.name, safe="@=,")


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """Everything that decides the numbers: two equal specifications give equal records."""

    model: str
    data: str
    variants: tuple[Variant, ...]
    seeds: tuple[int, ...]
    recipe: Recipe = field(default_factory=Recipe)
    image_size: int | None = None
    model_options: Mapping[str, Any] = field(default_factory=dict)
    margin: float | None = None
    """The smallest difference worth having, in points; ``None`` is 0.2 or one standard error."""

    device: str = "cpu"
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
            fix = "name each variant once"
            raise UsageError(explain("variants must differ", ", ".join(doubled), fix))

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> "Comparison":
        """Read what :meth:`to_json` wrote."""
        fields = dict(content)
        fields["variants"] = tuple(Variant(**variant) for variant in content["variants"])
        fields["seeds"] = tuple(content["seeds"])
        fields["recipe"] = Recipe.from_dict(content["recipe"])
        return cls(**fields)

    @property
    def arms(self) -> tuple[Variant, ...]:
        """The baseline and the variants."""
        return (Variant(name=BASELINE), *self.variants)

    def trials(self) -> Iterator[tuple[Variant, int]]:
        """Yield every trial, seed by seed: an interrupted comparison holds whole pairs."""
        for seed in self.seeds:
            for arm in self.arms:
                yield arm, seed

    def to_json(self) -> str:
        """Return the specification as JSON text, the same for equal specifications."""
        try:
            return json.dumps(dataclasses.asdict(self), indent=2, sort_keys=True) + "\n"
        except TypeError as error:
            fix = "use options that are numbers, texts, booleans or lists of these"
            raise UsageError(explain("a comparison is kept as JSON", str(error), fix)) from error

    def digest(self, variant: Variant, seed: int) -> str:
        """Return the hash of all that decides one trial: not how many others there are."""
        content = dataclasses.asdict(self)
        for other in ("variants", "seeds", "margin"):
            del content[other]
        content |= {"variant": dataclasses.asdict(variant), "seed": seed}
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


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
