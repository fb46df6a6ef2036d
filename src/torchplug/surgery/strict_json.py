"""Read JSON that somebody else may have written.

Python's reader takes the last of two equal keys, accepts ``NaN``, and recurses as deep as the text
asks it to. A plan or the header of a plug file is data from a stranger, so these are errors here.
"""

import json
from typing import Any

DEEPEST = 16


def parse_json(text: str) -> Any:
    """Return the content of ``text``.

    Raises:
        ValueError: if it is no JSON, repeats a key, nests deeper than 16 levels or holds a number
            that JSON does not have.

    >>> parse_json('{"a": [1, 2.5, null]}')
    {'a': [1, 2.5, None]}
    """
    _check_depth(text)
    return json.loads(text, object_pairs_hook=_read_object, parse_constant=_refuse_constant)


def _check_depth(text: str) -> None:
    # brackets inside of texts count too: neither a plan nor a header has so many
    depth = 0
    for letter in text:
        if letter in "[{":
            depth += 1
            if depth > DEEPEST:
                raise ValueError(f"it nests deeper than {DEEPEST} levels")
        elif letter in "]}":
            depth -= 1


def _read_object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    content = dict(pairs)
    if len(content) != len(pairs):
        names = [name for name, _ in pairs]
        doubled = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"the key {doubled!r} is there twice")
    return content


def _refuse_constant(name: str) -> Any:
    raise ValueError(f"{name} is no number of JSON")
