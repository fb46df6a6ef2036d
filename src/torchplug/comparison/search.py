"""Search settings for every arm before the comparison, on validation images only.

A variant that was tuned against a baseline that was not has won nothing. Here the baseline gets the
same number of settings, the same seeds and the same epochs: settings are drawn by Optuna, the same
learning rates for all arms, and stopped by successive halving (Jamieson and Talwalkar, arXiv
1502.07943): at each rung the better third goes on, from its checkpoint. The settings chosen are
then compared on seeds that the search has not seen, and on test images that it never touches.
"""

import csv
import dataclasses
import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torchplug.catalog import get_card
from torchplug.comparison.arms import Study
from torchplug.comparison.recipe import Recipe
from torchplug.comparison.spec import BASELINE, Comparison, Variant
from torchplug.comparison.store import read_json, write_json
from torchplug.comparison.trial import run_trial
from torchplug.comparison.typed import check_fields, hints_of
from torchplug.errors import UsageError, explain, import_extra

ETA = 3
"""One in so many settings goes on at a rung."""

_FIRST_SEED = 5_000_000  # no seed of a comparison is as large, but of one who wants it
_AROUND = 5.0
_RUNGS_FILE = "rungs.json"
_LOGS = "logs/metrics.csv"

OnSearch = Callable[[str], None]


@dataclass(frozen=True, kw_only=True)
class Search:
    """What is tried for every arm."""

    settings: int = 9
    """Of each arm; the first is the one that was asked for."""

    rungs: tuple[int, ...] = ()
    """Epochs at which the worse two thirds are stopped; empty is a ninth, a third and all."""

    seeds: int = 1
    """Trainings of each setting, whose mean counts."""

    learning_rate: tuple[float, float] | None = None
    """Least and largest; ``None`` is a fifth to five times that of the recipe."""

    options: Mapping[str, Any] = field(default_factory=dict)
    """Choices for options of modules, ``{"reduction": [4, 8, 16]}``: for plugs that have them."""

    def __post_init__(self) -> None:
        low, high = self.learning_rate or (1.0, 2.0)
        wrong = [
            (self.settings < 1, "settings counts from 1", self.settings),
            (self.seeds < 1, "seeds of a search count from 1", self.seeds),
            (not 0 < low < high, "learning_rate is a range above 0", self.learning_rate),
            (
                list(self.rungs) != sorted({each for each in self.rungs if each > 0}),
                "rungs are epochs in rising order",
                self.rungs,
            ),
        ]
        for is_wrong, rule, got in wrong:
            if is_wrong:
                raise UsageError(explain(rule, repr(got), "write it like rungs = [2, 6, 20]"))

    def rungs_for(self, epochs: int) -> tuple[int, ...]:
        """Return the epochs at which is chosen; the last is the recipe's own.

        >>> Search().rungs_for(20), Search(rungs=(2, 40)).rungs_for(20)
        ((2, 6, 20), (2, 20))
        """
        asked = self.rungs or tuple(max(epochs // ETA**power, 1) for power in (2, 1))
        return (*sorted({rung for rung in asked if rung < epochs}), epochs)

    def count_epochs(self, epochs: int) -> int:
        """Return the epochs that each arm is given, the baseline as any other.

        >>> Search(settings=9).count_epochs(9)
        21
        """
        total, before = 0, 0
        for place, rung in enumerate(self.rungs_for(epochs)):
            total += math.ceil(self.settings / ETA**place) * (rung - before)
            before = rung
        return total * self.seeds


def read_search(content: Mapping[str, Any]) -> Search | None:
    """Read the ``[search]`` table of a study; ``None`` if it has none.

    >>> read_search({"search": {"settings": 3, "learning_rate": [0.01, 1]}}).learning_rate
    (0.01, 1)
    """
    if "search" not in content:
        return None
    fields = check_fields(content["search"], Search, "search")
    for name, values in fields.get("options", {}).items():
        if not isinstance(values, list) or not values:
            fix = f"write {name} = [4, 8, 16]"
            raise UsageError(explain(f"search.options.{name} is a list", repr(values), fix))
    return Search(**fields)


@dataclass(frozen=True)
class Setting:
    """A learning rate and options of modules."""

    learning_rate: float
    options: Mapping[str, Any]


def tune(study: Study, search: Search, folder: Path, tell: OnSearch) -> Comparison:
    """Search for every arm and return the comparison of the settings that were chosen.

    What was run is kept in ``folder``, so an interrupted search goes on. The recipe becomes the
    baseline's; a variant with another learning rate has it in ``details["recipe"]``.

    Args:
        study: what is compared.
        search: what is tried.
        folder: of the search, beside that of the run.
        tell: told of each arm's choice, in a sentence.

    Raises:
        UsageError: for a program of the user's own, or where every setting diverges.
        MissingExtra: if Optuna is not installed.
    """
    comparison = study.comparison
    if comparison.command:
        fix = "search with the program's own means, with the same budget for the baseline"
        raise UsageError(explain("a search trains here", "a command", fix))
    import_extra("optuna", extra="search", purpose="a search for settings")
    chosen: dict[str, Setting] = {}
    arms = (Variant(name=BASELINE), *comparison.variants)
    for arm in arms:
        settings = draw(search, comparison.recipe, arm)
        setting, value = _halve(study, search, arm, settings, folder / arm.slug)
        chosen[arm.name] = setting
        tell(_describe(arm, setting, value, search, comparison.recipe.epochs))
    write_json(folder / "search.json", {
        "search": dataclasses.asdict(search),
        "chosen": {name: dataclasses.asdict(setting) for name, setting in chosen.items()},
    })  # fmt: skip
    rate = chosen[BASELINE].learning_rate
    recipe = dataclasses.replace(comparison.recipe, learning_rate=rate)
    variants = tuple(_adopt(arm, chosen[arm.name], rate) for arm in comparison.variants)
    return dataclasses.replace(comparison, recipe=recipe, variants=variants)


def draw(search: Search, recipe: Recipe, arm: Variant) -> list[Setting]:
    """Draw the settings of an arm: the same learning rates for all arms, the recipe's first."""
    optuna = import_extra("optuna", extra="search", purpose="a search for settings")
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    low, high = search.learning_rate or (
        recipe.learning_rate / _AROUND,
        recipe.learning_rate * _AROUND,
    )
    rates = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    others = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=1))
    choices = {name: values for name, values in search.options.items() if _takes(arm, name)}
    settings = []
    for index in range(search.settings):
        rate = rates.ask().suggest_float("learning_rate", low, high, log=True)
        trial = others.ask()
        options = {
            name: json.loads(trial.suggest_categorical(name, [json.dumps(v) for v in values]))
            for name, values in choices.items()
        }
        first = index == 0
        settings.append(Setting(recipe.learning_rate if first else rate, {} if first else options))
    return settings


def _takes(arm: Variant, option: str) -> bool:
    return any(option in hints_of(get_card(plug.module).factory) for plug in arm.plugs)


def _halve(
    study: Study, search: Search, arm: Variant, settings: Sequence[Setting], folder: Path
) -> tuple[Setting, float]:
    """Return the setting that is best at the end, among those that were best at each rung."""
    sign = 1.0 if study.comparison.goal == "max" else -1.0
    left = list(range(len(settings)))
    scores: dict[int, float] = {}
    for place, rung in enumerate(search.rungs_for(study.comparison.recipe.epochs)):
        left = left[: math.ceil(len(settings) / ETA**place)]
        for index in left:
            values = [
                _advance(study, arm, settings[index], seed, rung, folder / f"{index}-{seed}")
                for seed in range(search.seeds)
            ]
            known = [value for value in values if value is not None]
            whole = len(known) == len(values)
            scores[index] = sign * sum(known) / len(known) if whole else -math.inf
        left.sort(key=lambda index: -scores[index])
    best = left[0]
    if not math.isfinite(scores[best]):
        fix = "lower the range of learning_rate"
        got = f"{arm.name}, which diverged with all"
        raise UsageError(explain("a search needs a setting that trains", got, fix))
    return settings[best], sign * scores[best]


class _RungReached(Exception):  # noqa: N818 - no error: it ends a training for now
    pass


def _advance(
    study: Study, arm: Variant, setting: Setting, seed: int, rung: int, folder: Path
) -> float | None:
    """Train up to a rung, from the last one's checkpoint; return the validation there.

    The training is stopped before its test; ``None`` if it diverged.
    """
    known = read_json(folder / _RUNGS_FILE) or {}
    if str(rung) in known:
        return known[str(rung)]

    def stop(epoch: int) -> None:
        if epoch >= rung:
            raise _RungReached

    comparison = study.comparison
    recipe = dataclasses.replace(comparison.recipe, learning_rate=setting.learning_rate)
    tried = _with_options(arm, setting)
    small = dataclasses.replace(study, comparison=dataclasses.replace(comparison, recipe=recipe))
    value = None
    try:
        run_trial(small, tried, _FIRST_SEED + seed, folder, stop)
    except _RungReached:
        value = _read_validation(folder / _LOGS, rung)
    write_json(folder / _RUNGS_FILE, {**known, str(rung): value})
    return value


def _read_validation(path: Path, rung: int) -> float | None:
    with path.open(encoding="utf-8", newline="") as file:
        rows = [row for row in csv.DictReader(file) if row.get("validation")]
    values = [float(row["validation"]) for row in rows if float(row["epoch"]) == rung]
    return values[-1] if values and math.isfinite(values[-1]) else None


def _with_options(arm: Variant, setting: Setting) -> Variant:
    plugs = tuple(
        dataclasses.replace(plug, options={**plug.options, **_own(plug.module, setting.options)})
        for plug in arm.plugs
    )
    return dataclasses.replace(arm, plugs=plugs)


def _own(module: str, options: Mapping[str, Any]) -> dict[str, Any]:
    hints: Iterable[str] = hints_of(get_card(module).factory)
    return {name: value for name, value in options.items() if name in set(hints)}


def _adopt(arm: Variant, setting: Setting, rate: float) -> Variant:
    tuned = _with_options(arm, setting)
    if setting.learning_rate == rate:
        return tuned
    own = {"recipe": {"learning_rate": setting.learning_rate}}
    return dataclasses.replace(tuned, details={**tuned.details, **own})


def _describe(arm: Variant, setting: Setting, value: float, search: Search, epochs: int) -> str:
    told = [f"learning_rate={setting.learning_rate:.3g}"]
    told += [f"{name}={each}" for name, each in setting.options.items()]
    return (
        f"{arm.name}: {', '.join(told)} (validation {value:.4g}; {search.settings} settings, "
        f"{search.count_epochs(epochs)} epochs)"
    )
