"""Refuse an option that is not one of a few words."""

from collections.abc import Sequence

from torchplug.errors import explain, nearest


def check_choice(name: str, value: str, choices: Sequence[str]) -> None:
    """Raise ``ValueError`` unless ``value`` is one of ``choices``.

    >>> check_choice("fusion", "add", ("add", "max"))
    """
    if value not in choices:
        rule = f"{name} is one of {', '.join(map(repr, choices))}"
        hint = nearest(str(value), choices)
        fix = hint if hint.startswith("did you mean") else "choose one of these"
        raise ValueError(explain(rule, repr(value), fix))
