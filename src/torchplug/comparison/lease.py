"""Who runs which trial: leases of drivers that share one run directory.

A driver says that it lives by a number in ``drivers/<owner>.json`` which it raises every few
seconds, and takes a trial by writing its name into ``lease.json`` of the trial's folder, under a
lock that is held for that moment only. A lease is worth nothing when its driver has ended, when
its process is gone from this machine, or when its number has stood still for a minute by the clock
of who looks: the clocks of two machines are never compared.
"""

import contextlib
import os
import platform
import threading
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Any

import filelock

from torchplug.comparison.store import read_json, write_json
from torchplug.errors import UsageError, explain

BEAT_SECONDS = 5.0
STALE_SECONDS = 60.0
_LOCK_SECONDS = 60.0
_DRIVERS = "drivers"
LEASE = "lease.json"


class Leases:
    """The leases of this driver on one run directory; a context manager.

    >>> import tempfile
    >>> folder = Path(tempfile.mkdtemp())
    >>> with Leases(folder) as mine, Leases(folder) as others:
    ...     mine.take(folder / "trial"), others.take(folder / "trial")
    (True, False)
    """

    def __init__(self, root: Path, *, stale_seconds: float = STALE_SECONDS) -> None:
        self.owner = uuid.uuid4().hex
        self._root = root
        self._stale_seconds = stale_seconds
        self._seen: dict[str, tuple[int, float]] = {}
        self._beat = 0
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._keep_beating, daemon=True)

    def __enter__(self) -> "Leases":
        self._write_beat()
        self._thread.start()
        for path in (self._root / _DRIVERS).glob("*.json"):  # what killed drivers left
            if not self.is_alive(path.stem):
                path.unlink(missing_ok=True)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._ended.set()
        self._thread.join()
        self._path(self.owner).unlink(missing_ok=True)  # with it, all that was not given back

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the lock of the directory for a moment.

        Raises:
            UsageError: if another process keeps it for a minute.
        """
        lock = filelock.FileLock(self._root / ".lock")
        try:
            lock.acquire(timeout=_LOCK_SECONDS)
        except filelock.Timeout as error:
            text = explain(
                "a driver holds the lock of a run directory for a moment only",
                f"{self._root / '.lock'} held for {_LOCK_SECONDS:.0f} s",
                "end the process that was stopped while it held it",
            )
            raise UsageError(text) from error
        try:
            yield
        finally:
            lock.release()

    def take(self, folder: Path) -> bool:
        """Take the trial of a folder unless a living driver has it; return whether it is ours."""
        with self.locked():
            holder = self.find_holder(folder)
            if holder not in {None, self.owner}:
                return False
            write_json(folder / LEASE, self._describe(), sync=False)
            return True

    def holds(self, folder: Path) -> bool:
        """Whether the trial is still ours: a driver that was asleep may have lost it."""
        return self._read_owner(folder) == self.owner

    def give_back(self, folder: Path) -> None:
        """Give a trial back, done or not."""
        if self.holds(folder):
            (folder / LEASE).unlink(missing_ok=True)

    def find_holder(self, folder: Path) -> str | None:
        """Return the living driver that has the trial, if any."""
        owner = self._read_owner(folder)
        return owner if owner is not None and self.is_alive(owner) else None

    def _read_owner(self, folder: Path) -> str | None:
        lease = read_json(folder / LEASE)
        return lease.get("owner") if isinstance(lease, dict) else None

    def is_alive(self, owner: str) -> bool:
        """Whether a driver works on the run, as far as this one has seen."""
        told = read_json(self._path(owner))
        if owner == self.owner:
            return True
        if not isinstance(told, dict):
            return False
        if told["machine"] == identify_machine() and not is_running(told["pid"], told["started"]):
            return False
        now = time.monotonic()
        beat, since = self._seen.get(owner, (-1, now))
        if told["beat"] != beat:
            self._seen[owner] = told["beat"], now
            return True
        return now - since < self._stale_seconds

    def _keep_beating(self) -> None:
        while not self._ended.wait(min(BEAT_SECONDS, self._stale_seconds / 4)):
            with contextlib.suppress(OSError):  # a full disk or a share that is away for a while
                self._write_beat()

    def _write_beat(self) -> None:
        self._beat += 1
        write_json(self._path(self.owner), self._describe() | {"beat": self._beat}, sync=False)

    def _describe(self) -> dict[str, Any]:
        pid = os.getpid()
        return {
            "owner": self.owner,
            "host": platform.node(),
            "machine": identify_machine(),
            "pid": pid,
            "started": read_start(pid),
        }

    def _path(self, owner: str) -> Path:
        return self._root / _DRIVERS / f"{owner}.json"


def identify_machine() -> str:
    """Return what process numbers belong to: host, boot, and the container if there is one."""
    parts = [platform.node()]
    with contextlib.suppress(OSError):
        parts.append(Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip())
        parts.append(str(Path("/proc/self/ns/pid").readlink()))
    return " ".join(parts)


def read_start(pid: int) -> str:
    """Return when a process began, in the kernel's count; empty where the system does not tell."""
    try:
        line = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
    return line.rpartition(")")[2].split()[19]


def is_running(pid: int, started: str) -> bool:
    """Whether the process lives, and is not another one that got its number."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True  # it is another user's
    return read_start(pid) == started
