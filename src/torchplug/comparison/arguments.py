"""Read what a caller in Python passes into the parts of a specification."""

import dataclasses
import typing
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from torch import nn

from torchplug.catalog import cards
from torchplug.comparison.recipe import Recipe
from torchplug.comparison.spec import Comparison, Variant, read_seeds
from torchplug.comparison.studyfile import make_recipe, read_variant
from torchplug.comparison.typed import check_fields, check_value
from torchplug.errors import UsageError, explain

Plug = str | Variant | Mapping[str, Any] | type[nn.Module]
"""``"cbam@stage"``; a variant; a table as in a study file; a class of the catalogue."""

_FORMS = "write 'cbam@stage', {'module': 'cbam', 'at': 'stage'} or Variant(name=…, plugs=(…))"


def read_plugs(plugs: Plug | Sequence[Plug]) -> tuple[Variant, ...]:
    """Read the variants of a comparison; one that is no list stands for itself.

    Raises:
        UsageError: naming the place, such as ``plugs[1].at``.

    >>> table = {"module": "cbam", "at": ["block", "stage"]}
    >>> [variant.name for variant in read_plugs(["se", table])]
    ['se', 'cbam@block', 'cbam@stage']
    """
    is_one = isinstance(plugs, (str, Variant, Mapping, type, nn.Module))
    entries: Any = [plugs] if is_one else plugs
    if not isinstance(entries, Iterable):
        raise UsageError(explain("plugs is a list of variants", repr(plugs), _FORMS))
    return tuple(
        variant
        for index, entry in enumerate(entries)
        for variant in _read_plug(entry, f"plugs[{index}]")
    )


def _read_plug(entry: Any, path: str) -> Iterator[Variant]:
    if isinstance(entry, Variant):
        yield entry
    elif isinstance(entry, type):
        yield from read_variant(_find_key(entry, path), path)
    elif isinstance(entry, str):
        yield from read_variant(entry, path)
    elif isinstance(entry, Mapping):
        module = entry.get("module")
        found = {"module": _find_key(module, path)} if isinstance(module, type) else {}
        yield from read_variant({**entry, **found}, path)
    else:
        text = explain(f"{path} names what is plugged", f"a {type(entry).__name__}", _FORMS)
        raise UsageError(text)


def _find_key(kind: type, path: str) -> str:
    """Return the key of a class of the catalogue: a record holds names."""
    for key, card in cards().items():
        if card.factory is kind:
            return key
    fix = "name a class of your own by its source and place: 'path/to/file.py:Class@stage'"
    rule = f"{path} is a class of the catalogue"
    raise UsageError(explain(rule, kind.__qualname__, fix))


def read_recipe(recipe: Any, task: str, epochs: int | None) -> Recipe:
    """Return the recipe of a comparison; what a table does not name is as the task has it.

    >>> read_recipe({"batch_size": 64}, "classification", 5).epochs
    5
    """
    if isinstance(recipe, Recipe):
        found = recipe
    elif recipe is None or isinstance(recipe, Mapping):
        found = make_recipe(task, check_fields(dict(recipe or {}), Recipe, "recipe"))
    else:
        fix = "write {'epochs': 5}, Recipe(epochs=5) or Recipe.load('recipe.toml')"
        raise UsageError(explain("recipe is a Recipe or its settings", repr(recipe), fix))
    return found if epochs is None else dataclasses.replace(found, epochs=epochs)


def check_seeds(seeds: Any) -> tuple[int, ...]:
    """Return the seeds of a comparison.

    >>> check_seeds(3), check_seeds(range(7, 9))
    ((0, 1, 2), (7, 8))
    """
    if isinstance(seeds, str) or not isinstance(seeds, int | Iterable):
        fix = "write 5, or [3, 5, 8]"
        raise UsageError(explain("seeds are a number or a list of numbers", repr(seeds), fix))
    return read_seeds(seeds if isinstance(seeds, int) else tuple(seeds))


def read_words(**words: Any) -> dict[str, Any]:
    """Hold what is a word, or a list of them, to what the specification knows.

    >>> read_words(goal="min", controls="placebo")
    {'goal': 'min', 'controls': ('placebo',)}
    """
    hints = typing.get_type_hints(Comparison)
    controls = words.get("controls")
    if isinstance(controls, str):
        words["controls"] = (controls,)
    return {name: check_value(value, hints[name], name) for name, value in words.items()}
