"""The run directory, a ledger: every result is a file, written whole or not at all.

    runs/<name>/
      comparison.json            the specification
      data.json                  what the data were
      arms.json                  all arms that were run, the controls of winners among them
      plans/<variant>.json       what is plugged where
      missing.json               controls that do not exist, and why
      stopped.json               why arms have fewer seeds than were asked for
      costs.json                 parameters, FLOPs, memory, latency of every arm
      trials/<variant>--seed-<k>--<hash>/
          specification.json     all that decides the trial; its hash is in the folder's name
          record.json            the facts of the trial, equal in every repetition
          timing.json            how long it took, which is not
          lease.json progress.json checkpoint.ckpt logs/
      base/<hash>/               a base that is trained once
      drivers/                   who works here now
      environment.json  summary.json  report.html  report.md

A record holds nothing that depends on the clock or the machine's name, so two runs of one
comparison can be compared byte by byte.
"""

import dataclasses
import errno
import hashlib
import json
import os
import time
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torchplug.comparison.spec import Comparison, Variant, find_differences
from torchplug.errors import TorchplugError, UsageError, explain

SPECIFICATION = "comparison.json"
RECORD = "record.json"
TIMING = "timing.json"
PROGRESS = "progress.json"
CHECKPOINT = "checkpoint.ckpt"
TRIAL_SPECIFICATION = "specification.json"
FREE_TO_CHANGE = ("budget_hours",)
"""What a later call may say otherwise without being another comparison."""

_ZEROS = "0" * 64
_LEFTOVER_SECONDS = 600
_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


class DiskFullError(TorchplugError, OSError):
    """No space is left; what was there is whole, and a later call goes on."""


def explain_full(path: Path | str, error: BaseException) -> DiskFullError:
    """Return the error of a full disk."""
    text = explain(
        "a run needs space for its records and checkpoints",
        f"{error} at {path}",
        "free some and call again: what is there is kept, and the rest is run",
    )
    return DiskFullError(text)


def is_disk_full(error: BaseException | None) -> bool:
    """Whether an error, or what caused it, is a full disk; torch's writer tells only in words."""
    while error is not None:
        if isinstance(error, DiskFullError) or getattr(error, "errno", None) in _FULL:
            return True
        if isinstance(error, RuntimeError) and "PytorchStreamWriter failed writing" in str(error):
            return True
        error = error.__cause__ or error.__context__
    return False


def write_text(path: Path, text: str, *, sync: bool = True) -> None:
    """Write a file so that no reader ever sees half of it, even after a crash.

    Args:
        path: of the file; its folders are made.
        text: what to write.
        sync: wait until the disk has it, which nothing but results needs.

    Raises:
        DiskFullError: if there is no space; the file is as it was.
    """
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex[:12]}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with temporary.open("w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            if sync:
                os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException as error:
        temporary.unlink(missing_ok=True)
        if is_disk_full(error):
            raise explain_full(path, error) from error
        raise


def to_text(content: Any) -> str:
    """Return JSON text, the same for equal content."""
    return json.dumps(content, indent=1, sort_keys=True) + "\n"


def write_json(path: Path, content: Any, *, sync: bool = True) -> None:
    """Write JSON, the same text for equal content."""
    write_text(path, to_text(content), sync=sync)


def read_json(path: Path) -> Any:
    """Read JSON; ``None`` if the file is missing or broken."""
    try:
        return json.loads(path.read_bytes())
    except (OSError, ValueError):
        return None


def seal(record: Mapping[str, Any]) -> dict[str, Any]:
    """Return the record with a checksum, by which a damaged or edited file is known.

    It is the hash of the file's text with zeros in the place of the checksum: to check it, nothing
    has to be parsed.
    """
    text = to_text({**record, "checksum": _ZEROS})
    return {**record, "checksum": hashlib.sha256(text.encode()).hexdigest()}


def is_sealed(record: Mapping[str, Any]) -> bool:
    """Whether the record is as it was written."""
    return seal(record) == record


def read_sealed(path: Path) -> dict[str, Any] | None:
    """Read a record; ``None`` if it is missing, damaged or edited."""
    try:
        raw = path.read_bytes()
        record = json.loads(raw)
        mark = str(record["checksum"]).encode()
    except (OSError, ValueError, TypeError, KeyError):
        return None
    if raw.count(mark) != 1 or len(mark) != len(_ZEROS):
        return None
    found = hashlib.sha256(raw.replace(mark, _ZEROS.encode())).hexdigest()
    return record if found == record["checksum"] else None


@dataclass(frozen=True)
class Store:
    """The files of one run."""

    root: Path

    def trial_folder(self, comparison: Comparison, variant: Variant, seed: int) -> Path:
        """Return the folder of one trial; it may not exist."""
        digest = comparison.digest(variant, seed)[:12]
        return self.root / "trials" / f"{variant.slug[:40]}--seed-{seed}--{digest}"

    def plan_path(self, variant: Variant) -> Path:
        """Return the file with the plan of one variant."""
        return self.root / "plans" / f"{variant.slug}.json"

    def read_record(
        self, comparison: Comparison, variant: Variant, seed: int
    ) -> dict[str, Any] | None:
        """Return the record of a trial if it is whole and of this specification."""
        record = read_sealed(self.trial_folder(comparison, variant, seed) / RECORD)
        ours = comparison.digest(variant, seed)
        return record if record is not None and record.get("specification") == ours else None

    def write_outcome(
        self, folder: Path, record: Mapping[str, Any], timing: Mapping[str, Any]
    ) -> None:
        """Write what came out of a trial and remove what only its training needed.

        Raises:
            DiskFullError: if there is no space; then there is no record.
        """
        write_json(folder / TIMING, timing)
        write_json(folder / RECORD, seal(record))  # last: a record has its timing
        (folder / CHECKPOINT).unlink(missing_ok=True)

    def read_arms(self) -> tuple[Variant, ...] | None:
        """Return all arms that were run, ``None`` before the first was written."""
        content = read_json(self.root / "arms.json")
        return None if content is None else tuple(Variant.from_dict(each) for each in content)

    def write_arms(self, arms: tuple[Variant, ...]) -> None:
        """Write the arms, the controls of winners among them."""
        write_json(self.root / "arms.json", [dataclasses.asdict(arm) for arm in arms])

    def check(self, comparison: Comparison, data_digest: str = "") -> None:
        """Refuse a directory that holds something else; nothing is written.

        Raises:
            UsageError: naming what differs from the comparison that is already there.
        """
        if not self.root.exists():
            return
        path = self.root / SPECIFICATION
        if not path.exists():
            self._check_empty()
            return
        old = read_json(path)
        if old is None:
            fix = "choose another name, or remove the directory"
            raise UsageError(explain(f"{path} must be readable", "a broken file", fix))
        new = json.loads(comparison.to_json())
        for name in FREE_TO_CHANGE:
            old[name] = new[name]
        differences = find_differences(old, new)
        known = (read_json(self.root / "data.json") or {}).get("digest", data_digest)
        if data_digest not in {"", known}:
            differences.append(f"data: {comparison.data} holds other samples than before")
        if differences:
            text = explain(
                f"{self.root} holds another comparison, and records of two do not mix",
                "; ".join(differences),
                "choose another name, or go on with the old settings",
            )
            raise UsageError(text)

    def _check_empty(self) -> None:
        made_here = {"drivers"}  # of a driver that was killed before it wrote the first file
        files = (file.name for file in self.root.iterdir() if not file.name.startswith("."))
        if set(files) - made_here:
            text = explain(
                "a run directory is new, empty, or holds a comparison",
                f"{self.root} with other files",
                "choose another name",
            )
            raise UsageError(text)

    def sweep(self, folder: Path) -> None:
        """Remove half-written files of killed writers; a living one is done within minutes."""
        now = time.time()
        for leftover in folder.glob(".*.tmp"):
            try:
                if folder != self.root or now - leftover.stat().st_mtime > _LEFTOVER_SECONDS:
                    leftover.unlink()
            except OSError:
                continue  # its writer was quicker
