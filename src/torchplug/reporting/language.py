"""The words of a report, one file a language."""

import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Any

from torchplug.errors import UsageError, explain, nearest

LANGUAGES = ("en", "zh")


@dataclass(frozen=True)
class Wording:
    """Texts by their key; calling one fills its placeholders.

    >>> load_wording("en")("table.variant")
    'variant'
    """

    lang: str
    texts: Mapping[str, str]

    def __call__(self, key: str, **values: Any) -> str:
        """Return the text of ``key`` with ``values`` in its braces."""
        text = self.texts[key].format(**values)
        return _set_apart(text) if self.lang == "zh" else text

    def word(self, group: str, name: str) -> str:
        """Return the word for a name of the program's own, or the name if there is none."""
        return self.texts.get(f"{group}.{name}", name)


_HAN = r"[\u4e00-\u9fff]"
_EDGE = re.compile(rf"(?<=[A-Za-z0-9%])(?={_HAN})|(?<={_HAN})(?=[A-Za-z0-9+\u2212])")


def _set_apart(text: str) -> str:
    """Return a text with a space between Chinese characters and what is not, as print has it."""
    return _EDGE.sub(" ", text)


@cache
def load_wording(lang: str) -> Wording:
    """Return the texts of a language.

    Raises:
        UsageError: if there are none; the text names the languages.

    >>> load_wording("zh")("verdict.better")
    '优于基线'
    """
    if lang not in LANGUAGES:
        text = explain(
            "a report is written in a language that it knows", repr(lang), nearest(lang, LANGUAGES)
        )
        raise UsageError(text)
    path = files("torchplug.reporting") / "wording" / f"{lang}.toml"
    content = tomllib.loads(path.read_text(encoding="utf-8"))
    return Wording(lang, dict(_flatten(content)))


def _flatten(content: Mapping[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    found: list[tuple[str, str]] = []
    for key, value in content.items():
        path = f"{prefix}{key}"
        found += _flatten(value, f"{path}.") if isinstance(value, dict) else [(path, value)]
    return found
