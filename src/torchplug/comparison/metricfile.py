"""Read the metric that a program leaves: from JSON, from CSV, or from what it printed."""

import csv
import json
import math
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torchplug.errors import TorchplugError, UsageError, explain, nearest

STDOUT = "stdout"
_FORMS = "write '{out}/metrics.json:map50', '{out}/results.csv:COLUMN' or 'stdout:map50'"
_PLACE = re.compile(r"(?P<file>stdout|.+?\.(?:json|jsonl|csv)):(?P<key>.+)", re.IGNORECASE)


class MetricError(TorchplugError):
    """A program left no metric; the trial failed."""


@dataclass(frozen=True)
class MetricPlace:
    """Where a program leaves its metric.

    >>> MetricPlace.parse("{out}/run/results.csv:metrics/mAP50(B)")
    MetricPlace(file='{out}/run/results.csv', key='metrics/mAP50(B)')
    """

    file: str
    """A path that may have ``{out}`` and wildcards, or ``stdout``."""

    key: str
    """A key of JSON, nested by dots; a column of CSV; a name that is printed as ``name=value``."""

    @classmethod
    def parse(cls, text: str) -> "MetricPlace":
        """Read ``FILE:KEY``.

        Raises:
            UsageError: if it is neither JSON nor CSV nor stdout, or names no key.
        """
        found = _PLACE.fullmatch(text)
        if found is None:
            raise UsageError(explain("a command's metric is FILE:KEY", repr(text), _FORMS))
        return cls(found["file"], found["key"])

    def find(self, out: Path) -> Path | None:
        """Return the file, the last by name if wildcards match several; ``None`` if there is none.

        Folders named by date, as mmengine's, sort by time.
        """
        path = Path(self.file.replace("{out}", str(out)))
        if not any(letter in self.file for letter in "*?["):
            return path if path.is_file() else None
        start = out if self.file.startswith("{out}") else Path(path.anchor or ".")
        pattern = self.file.replace("{out}", "").lstrip("/")
        matches = sorted(match for match in start.glob(pattern) if match.is_file())
        return matches[-1] if matches else None


def read_metric(place: MetricPlace, out: Path, stdout: Path) -> float:
    """Return the metric that a program left.

    Args:
        place: where it should be.
        out: the folder that the program was given.
        stdout: what it printed.

    Raises:
        MetricError: if the file, the key or the number is not there; in three parts.

    >>> import tempfile
    >>> out = Path(tempfile.mkdtemp())
    >>> _ = (out / "m.json").write_text('{"box": {"map50": 0.5}}')
    >>> read_metric(MetricPlace.parse("{out}/m.json:box.map50"), out, out / "stdout.txt")
    0.5
    """
    if place.file == STDOUT:
        return _read_printed(stdout, place.key)
    path = place.find(out)
    if path is None:
        fix = "let the program write it, or correct the metric's place"
        raise MetricError(explain(f"the program leaves {place.file}", "no such file", fix))
    if path.suffix.lower() == ".csv":
        return _read_csv(path, place)
    return _read_json(path, place)


def read_curve(place: MetricPlace, out: Path) -> list[float]:
    """Return the metric of every row of a CSV: a learning curve; empty for other forms."""
    path = place.find(out) if place.file.lower().endswith(".csv") else None
    if path is None:
        return []
    values = [row.get(place.key) for row in _rows(path)]
    try:
        return [float(value) for value in values if value]
    except ValueError:
        return []


def _read_json(path: Path, place: MetricPlace) -> float:
    text = path.read_text(encoding="utf-8", errors="replace")
    try:
        contents = [json.loads(text)]
    except ValueError:
        contents = _read_lines(text, place)
    found: Any = None
    known: dict[str, None] = {}
    for content in contents:  # of a log, the last line that has the key
        value = _dig(content, place.key)
        found = value if value is not None else found
        known |= dict.fromkeys(_leaves(content))
    if found is None:
        raise MetricError(_no_key(place, list(known)))
    return _to_number(found, place)


def _read_lines(text: str, place: MetricPlace) -> list[Any]:
    """One JSON value a line, as mmengine's logs have it."""
    try:
        return [json.loads(line) for line in text.splitlines() if line.strip()]
    except ValueError as error:
        fix = "write it whole, with json.dump"
        raise MetricError(explain(f"{place.file} is JSON", str(error), fix)) from error


def _dig(content: Any, key: str) -> Any:
    if isinstance(content, dict):
        if key in content:
            return content[key]
        # the longest name first: a key may have dots of its own
        for name in sorted((n for n in content if key.startswith(f"{n}.")), key=len, reverse=True):
            value = _dig(content[name], key[len(name) + 1 :])
            if value is not None:
                return value
    if isinstance(content, list):
        head, _, rest = key.partition(".")
        if head.lstrip("-").isdigit() and -len(content) <= int(head) < len(content):
            value = content[int(head)]
            return _dig(value, rest) if rest else value
    return None


def _leaves(content: Any, prefix: str = "") -> list[str]:
    if not isinstance(content, dict):
        return [prefix] if prefix else []
    return [
        leaf
        for name, value in content.items()
        for leaf in _leaves(value, f"{prefix}.{name}" if prefix else str(name))
    ]


def _read_csv(path: Path, place: MetricPlace) -> float:
    rows = _rows(path)
    if not rows:
        fix = "let the program write a row for each epoch"
        raise MetricError(explain(f"{place.file} has rows", "none", fix))
    if place.key not in rows[-1]:
        raise MetricError(_no_key(place, list(rows[-1])))
    return _to_number(rows[-1][place.key], place)


def _rows(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", errors="replace", newline="") as file:
        lines = [row for row in csv.reader(file, skipinitialspace=True) if row]
    names = [name.strip() for name in lines[0]] if lines else []
    return [dict(zip(names, (cell.strip() for cell in row), strict=False)) for row in lines[1:]]


def _read_printed(stdout: Path, name: str) -> float:
    place = MetricPlace(STDOUT, name)
    value = None
    wanted = re.compile(rf"(?:^|[\s,;]){re.escape(name)}\s*=\s*(?P<value>[^\s,;]+)")
    for line in stdout.read_text(encoding="utf-8", errors="replace").splitlines():
        found = wanted.search(line)
        value = found["value"] if found else value
    if value is None:
        fix = f"print {name}=0.5 as the last thing"
        raise MetricError(explain(f"the program prints {name}=NUMBER", "no such line", fix))
    return _to_number(value, place)


def _no_key(place: MetricPlace, known: list[str]) -> str:
    few = known[:20]
    fix = nearest(place.key, few) if few else "let the program write it"
    return explain(f"{place.file} has {place.key}", "no such key", fix)


def _to_number(value: Any, place: MetricPlace) -> float:
    """Return a number; NaN and infinity are numbers here, and the trial diverged."""
    try:
        number = None if isinstance(value, bool) else float(value)
    except (TypeError, ValueError):
        number = None
    if number is None:
        fix = "write one number under this name"
        got = repr(value)[:80]
        raise MetricError(explain(f"{place.key} in {place.file} is a number", got, fix))
    return number


def is_lost(value: float) -> bool:
    """Whether a training has diverged by its metric."""
    return not math.isfinite(value)
