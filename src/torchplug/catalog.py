"""The catalogue: every card of ``torchplug.modules``, and those that other packages add.

A module file is found by its ``CARD``; nothing registers itself. Another package adds a card by an
entry point in the group ``torchplug.cards`` that points at a :class:`~torchplug.card.Card`.
"""

import importlib
import pkgutil
from collections.abc import Mapping
from functools import cache
from importlib.metadata import entry_points
from typing import Any

import torchplug.modules
from torchplug.card import Card, State
from torchplug.errors import UsageError, explain, nearest

ENTRY_POINT_GROUP = "torchplug.cards"


@cache
def _built_in() -> tuple[Card, ...]:
    package = torchplug.modules
    files = sorted(info.name for info in pkgutil.iter_modules(package.__path__))
    modules = [importlib.import_module(f"{package.__name__}.{name}") for name in files]
    return tuple(module.CARD for module in modules if hasattr(module, "CARD"))


@cache
def _third_party() -> tuple[Card, ...]:
    return tuple(point.load() for point in entry_points(group=ENTRY_POINT_GROUP))


def cards() -> dict[str, Card]:
    """Return every card by its key, in alphabetical order.

    Raises:
        UsageError: if two cards have one key.

    >>> cards()["se"].title
    'Squeeze-and-Excitation'
    """
    found: dict[str, Card] = {}
    for card in sorted((*_built_in(), *_third_party()), key=lambda card: card.key):
        if card.key in found:
            text = explain(
                "each card needs a key of its own",
                f"{card.key!r} for {found[card.key].factory.__name__} and {card.factory.__name__}",
                "rename one of the two keys",
            )
            raise UsageError(text)
        found[card.key] = card
    return found


def get_card(key: str) -> Card:
    """Return the card of ``key``.

    Raises:
        UsageError: if ``key`` is no text, or no module has it; the text names the nearest.

    >>> get_card("se").factory.__name__
    'SqueezeExcite'
    """
    known = cards()
    given: Any = key  # whatever a caller without a type checker passes
    if not isinstance(given, str):
        fix = "pass a text such as 'se'"
        raise UsageError(explain("a module is named by its key", repr(key), fix))
    if key not in known:
        text = explain("a module is named by its key", f"{key!r}", nearest(key, known))
        raise UsageError(text)
    return known[key]


def convert_state_dict(state: Mapping[str, Any], key: str, *, source: str) -> State:
    """Return the weights of another implementation under the names of our module ``key``.

    ``state`` holds the entries of one module only, with its prefix removed.

    Args:
        state: the other implementation's state dict.
        key: key of the module, such as ``"se"``.
        source: whose names ``state`` uses, such as ``"official"`` or ``"timm"``.

    Raises:
        UsageError: if the module or the source is unknown.

    >>> import torch
    >>> state = {"fc1.weight": torch.zeros(4, 64, 1, 1), "fc2.weight": torch.zeros(64, 4, 1, 1)}
    >>> list(convert_state_dict(state, "se", source="timm"))
    ['reduce.weight', 'expand.weight']
    """
    return get_card(key).convert(state, source)
