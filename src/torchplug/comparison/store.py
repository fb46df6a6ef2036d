"""The run directory: every result is a file, written whole or not at all.

    runs/<name>/
      comparison.json            the specification
      plans/<variant>.json       what is plugged where
      trials/<variant>--seed-<k>.json    the facts of one trial, equal in every repetition
      timings/<variant>--seed-<k>.json   how long it took, which is not
      environment.json  summary.json  report.html

A trial's record holds nothing that depends on the clock or the machine's name, so two runs of one
comparison can be compared byte by byte.
"""

import contextlib
import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import filelock

from torchplug.comparison.spec import Comparison, Variant, find_differences
from torchplug.errors import UsageError, explain

SPECIFICATION = "comparison.json"


def write_text(path: Path, text: str) -> None:
    """Write a file so that no reader ever sees half of it, even after a crash."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def write_json(path: Path, content: Any) -> None:
    """Write JSON, the same text for equal content."""
    write_text(path, json.dumps(content, indent=1, sort_keys=True) + "\n")


def read_json(path: Path) -> Any:
    """Read JSON; ``None`` if the file is missing or broken."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None


def seal(record: Mapping[str, Any]) -> dict[str, Any]:
    """Return the record with a checksum, by which a damaged or edited file is known."""
    content = {name: value for name, value in record.items() if name != "checksum"}
    text = json.dumps(content, sort_keys=True)
    return content | {"checksum": hashlib.sha256(text.encode()).hexdigest()}


def is_sealed(record: Mapping[str, Any]) -> bool:
    """Whether the record is as it was written."""
    return seal(record) == record


@dataclass(frozen=True)
class Store:
    """The files of one run."""

    root: Path

    def trial_path(self, variant: Variant, seed: int) -> Path:
        """The record of one trial."""
        return self.root / "trials" / f"{variant.slug}--seed-{seed}.json"

    def timing_path(self, variant: Variant, seed: int) -> Path:
        """How long one trial took."""
        return self.root / "timings" / f"{variant.slug}--seed-{seed}.json"

    def plan_path(self, variant: Variant) -> Path:
        """The plan of one variant."""
        return self.root / "plans" / f"{variant.slug}.json"

    def check(self, comparison: Comparison) -> None:
        """Refuse a directory that holds something else; nothing is written.

        Raises:
            UsageError: naming what differs from the comparison that is already there.
        """
        if not self.root.exists():
            return
        path = self.root / SPECIFICATION
        if not path.exists():
            if any(file for file in self.root.iterdir() if not file.name.startswith(".")):
                text = explain(
                    "a run directory is new, empty, or holds a comparison",
                    f"{self.root} with other files",
                    "choose another name",
                )
                raise UsageError(text)
            return
        old = read_json(path)
        if old is None:
            fix = "choose another name, or remove the directory"
            raise UsageError(explain(f"{path} must be readable", "a broken file", fix))
        differences = find_differences(old, json.loads(comparison.to_json()))
        if differences:
            text = explain(
                f"{self.root} holds another comparison, and records of two do not mix",
                "; ".join(differences),
                "choose another name, or go on with the old settings",
            )
            raise UsageError(text)

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Keep a second driver out while this one runs; a killed driver's lock falls with it.

        Raises:
            UsageError: if another process holds the directory.
        """
        self.root.mkdir(parents=True, exist_ok=True)
        lock = filelock.FileLock(self.root / ".lock")
        try:
            lock.acquire(timeout=0)
        except filelock.Timeout as error:
            text = explain(
                "one process at a time writes a run directory",
                f"{self.root}, which another one is writing",
                "wait for it, or choose another name",
            )
            raise UsageError(text) from error
        try:
            for leftover in self.root.rglob(".*.tmp"):  # of a driver that was killed while writing
                leftover.unlink(missing_ok=True)
            yield
        finally:
            lock.release()
