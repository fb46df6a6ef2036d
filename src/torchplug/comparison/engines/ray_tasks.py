"""Run trials as tasks of a Ray cluster: one machine or a thousand GPUs.

Ray core only. What came out of a trial is pulled into the ledger when it has ended, so a driver
that dies loses what is in flight and no more. A node that sees the ledger's folder works in it and
leaves checkpoints there; another works in a temporary folder and sends its files back.
"""

import contextlib
import dataclasses
import hashlib
import os
import shutil
import socket
import tempfile
import time
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

from torchplug.comparison.engines.work import Ended, Job, Work
from torchplug.errors import UsageError, explain, import_extra

_STAYS = frozenset({"checkpoint.ckpt", "progress.json"})
_SLOTS_SECONDS = 2.0
_CONNECT_SECONDS = 20.0
_RESOURCES = {"num_cpus": "CPU", "num_gpus": "GPU"}


class RayEngine:
    """Keeps as many tasks under way as the cluster has room for."""

    def __init__(
        self,
        work: Work,
        *,
        address: str | None,
        workers: int | None,
        options: Mapping[str, Any],
        gpus: int,
        owner: str,
    ) -> None:
        self._ray = load_ray()
        self._began_it = not self._ray.is_initialized()
        if self._began_it:
            _connect(self._ray, address, workers)
        self._options = {"num_cpus": 1, "num_gpus": gpus, **options}
        self._workers, self._owner = workers, owner
        self._work = self._ray.put(work)
        self._key = self._work.hex()
        self._task = self._ray.remote(run_task).options(max_retries=0, **self._options)
        self._running: dict[Any, Job] = {}
        self._slots, self._looked = 0, 0.0
        self._warn_if_too_small()

    @property
    def slots(self) -> int:
        """How many trials fit into the cluster as it is now; one waits if there is no room."""
        if time.monotonic() - self._looked > _SLOTS_SECONDS:
            self._slots, self._looked = self._count_slots(), time.monotonic()
        return self._slots

    def _count_slots(self) -> int:
        fits = count_fits(self._options, self._ray.cluster_resources())
        return max(min(fits, self._workers or fits), 1)

    def _warn_if_too_small(self) -> None:
        have = self._ray.cluster_resources()
        if count_fits(self._options, have) < 1:
            text = explain(
                "a cluster must have what one trial asks for",
                f"{self._options} for a cluster of {have}",
                "start nodes that have it, or change the engine's options",
            )
            warnings.warn(text, stacklevel=2)  # a cluster that grows by itself may get there

    def submit(self, job: Job) -> None:
        """Send the job to the cluster."""
        self._running[self._task.remote(self._work, self._key, job, self._owner)] = job

    def wait(self, seconds: float) -> list[Ended]:
        """Return the jobs that ended, and those whose process or node died."""
        ready, _ = self._ray.wait(list(self._running), timeout=seconds)
        return [self._collect(reference) for reference in ready]

    def _collect(self, reference: Any) -> Ended:
        job = self._running.pop(reference)
        try:
            result, files = self._ray.get(reference)
        except self._ray.exceptions.RayTaskError as error:  # of the task's surroundings
            return Ended(job, error=error.cause if isinstance(error.cause, Exception) else error)
        except self._ray.exceptions.RayError as error:
            return Ended(job, death=type(error).__name__)
        for name, content in files.items():
            path = Path(job.folder, name)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
        return Ended(job, result)

    def stop(self) -> None:
        """End the tasks that are under way, and a Ray that was started for this."""
        for reference in self._running:
            with contextlib.suppress(Exception):  # it may have ended, or its cluster
                self._ray.cancel(reference, force=True)
        self._running = {}
        if self._began_it:
            self._ray.shutdown()
            self._began_it = False


def load_ray() -> ModuleType:
    """Import Ray with its usage statistics off.

    Raises:
        MissingExtra: if it is not installed.
    """
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    return import_extra("ray", extra="ray", purpose="the Ray engine")


def _connect(ray: ModuleType, address: str | None, workers: int | None) -> None:
    settings: dict[str, Any] = {"log_to_driver": False, "logging_level": "ERROR"}
    if address is None and not os.environ.get("RAY_ADDRESS"):
        settings |= {"include_dashboard": False, "num_cpus": workers}
    try:
        _check_listens(address)
        ray.init(address=address, **settings)
    except Exception as error:  # Ray raises what it likes where a node does not start
        ray.shutdown()
        text = explain(
            "the Ray engine needs a cluster that answers",
            f"{address or 'a Ray of its own'} ({error})",
            "name its address, or none to start one on this machine",
        )
        raise UsageError(text) from error


def _check_listens(address: str | None) -> None:
    """Fail at once where nothing listens: Ray itself asks for minutes."""
    host, colon, port = (address or "").rpartition("://")[2].rpartition(":")
    if colon and port.isdigit():
        socket.create_connection((host.strip("[]"), int(port)), timeout=_CONNECT_SECONDS).close()


def count_fits(options: Mapping[str, Any], have: Mapping[str, float]) -> int:
    """Return how many trials fit into a cluster.

    >>> count_fits({"num_cpus": 1, "num_gpus": 0.5}, {"CPU": 16.0, "GPU": 2.0})
    4
    """
    asked = {_RESOURCES[name]: options.get(name) or 0 for name in _RESOURCES}
    asked |= options.get("resources") or {}
    fits = [int(have.get(name, 0.0) / amount + 1e-9) for name, amount in asked.items() if amount]
    return min(fits, default=1_000)


_states: dict[str, Any] = {}  # of a worker process: a study is made once


def run_task(work: Work, key: str, job: Job, owner: str) -> tuple[Any, dict[str, bytes]]:
    """Run a trial on a node; return what came out and the files that the ledger cannot see."""
    if key not in _states:
        _states.clear()
        _states[key] = work.start(*work.arguments)
    if _sees(Path(job.folder), owner):
        return work.run(_states[key], job, _tell_nobody), {}
    name = hashlib.sha256(f"{owner} {job.folder}".encode()).hexdigest()[:16]
    folder = Path(tempfile.gettempdir(), f"torchplug-{name}")  # the same when it is tried again
    folder.mkdir(parents=True, exist_ok=True)
    result = work.run(_states[key], dataclasses.replace(job, folder=str(folder)), _tell_nobody)
    files = dict(_read_files(folder))
    shutil.rmtree(folder, ignore_errors=True)
    return result, files


def _sees(folder: Path, owner: str) -> bool:
    """Whether this node sees the ledger, and not another folder of the same name."""
    try:
        return owner in (folder / "lease.json").read_text(encoding="utf-8")
    except OSError:
        return False


def _read_files(folder: Path) -> Iterator[tuple[str, bytes]]:
    for path in sorted(folder.rglob("*")):
        if path.is_file() and path.name not in _STAYS:
            yield path.relative_to(folder).as_posix(), path.read_bytes()


def _tell_nobody(epoch: int) -> None:
    del epoch
