"""Run trials in several processes at once, one thread or one GPU each.

A trial's record is a function of its specification, so it does not matter which process makes it:
the records of a pool equal those of one process, byte for byte. A process that is killed costs its
own trial only; processes whose driver was killed end by themselves.
"""

import contextlib
import multiprocessing
import os
import pickle
import signal
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess
from typing import Any

from torchplug.comparison.engines.work import Ended, Job, OnEpoch, Work
from torchplug.errors import UsageError, explain

_THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
_STARTS = 3
_JOIN_SECONDS = 2.0


@dataclass
class _Worker:
    process: SpawnProcess
    connection: Connection
    is_ready: bool = False
    job: Job | None = None


class PoolEngine:
    """Keeps processes that run one job each."""

    def __init__(
        self, work: Work, on_epoch: OnEpoch, *, workers: int, device: str = "cpu", devices: int = 1
    ) -> None:
        self.slots = workers
        self._work, self._on_epoch = work, on_epoch
        self._device, self._devices = device, devices
        self._context = multiprocessing.get_context("spawn")
        self._workers: dict[int, _Worker] = {}
        self._failed_starts = 0

    def submit(self, job: Job) -> None:
        """Give the job to a process without one, which may be a new one."""
        idle = next((each for each in self._workers.values() if each.job is None), None)
        worker = idle or self._begin(next(i for i in range(self.slots) if i not in self._workers))
        worker.job = job
        with contextlib.suppress(OSError):  # it has died, which the next look finds
            worker.connection.send(job)

    def _begin(self, index: int) -> _Worker:
        ours, theirs = self._context.Pipe()
        process = self._context.Process(target=_serve, args=(theirs, self._work))
        with _environment(_settings(index, self._device, self._devices)):
            process.start()
        theirs.close()
        self._workers[index] = _Worker(process, ours)
        return self._workers[index]

    def wait(self, seconds: float) -> list[Ended]:
        """Return the jobs that ended, and those whose process died."""
        busy = {index: each for index, each in self._workers.items() if each.job is not None}
        watched = [each.connection for each in busy.values()]
        found = wait([*watched, *(each.process.sentinel for each in busy.values())], seconds)
        ended: list[Ended] = []
        for index, worker in busy.items():
            if worker.connection in found or worker.process.sentinel in found:
                ended += self._read(index, worker)
        return ended

    def _read(self, index: int, worker: _Worker) -> Iterator[Ended]:
        job = worker.job
        if job is None:
            return
        try:
            while worker.connection.poll():
                kind, content = worker.connection.recv()
                if kind == "ready":
                    worker.is_ready, self._failed_starts = True, 0
                elif kind == "epoch":
                    self._on_epoch(job, content)
                else:
                    worker.job = None
                    yield Ended(job, content) if kind == "end" else Ended(job, error=content)
                    return
        except (EOFError, OSError, pickle.UnpicklingError):
            worker.process.join(_JOIN_SECONDS)
        if not worker.process.is_alive():
            del self._workers[index]
            worker.connection.close()
            yield self._explain_death(worker, job)

    def _explain_death(self, worker: _Worker, job: Job) -> Ended:
        if worker.is_ready:
            return Ended(job, death=f"exit code {worker.process.exitcode}")
        self._failed_starts += 1
        if self._failed_starts < _STARTS * self.slots:
            return Ended(job, death="it was not ready yet")
        text = explain(
            "a process of the pool must be able to start",
            f"{self._failed_starts} that ended before they were ready",
            'put the call of a script under `if __name__ == "__main__":`, or pass workers=1',
        )
        return Ended(job, error=UsageError(text))

    def stop(self) -> None:
        """End all processes."""
        for worker in self._workers.values():
            if worker.job is None:
                worker.connection.close()  # it ends by itself
            else:
                worker.process.kill()
        for worker in self._workers.values():
            worker.process.join(_JOIN_SECONDS)
            if worker.process.is_alive():
                worker.process.kill()
                worker.process.join()
        self._workers = {}


def _settings(index: int, device: str, devices: int) -> dict[str, str]:
    """Return the environment of a process: one thread, and GPUs of its own."""
    settings = dict.fromkeys(_THREADS, "1")
    if device == "cuda":
        settings["CUDA_VISIBLE_DEVICES"] = ",".join(choose_gpus(index, devices, list_gpus()))
    return settings


def list_gpus() -> list[str]:
    """Return the names of the GPUs that this process may use."""
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    if named is not None:
        return [name for name in named.split(",") if name]
    import torch

    return [str(index) for index in range(torch.cuda.device_count())]


def choose_gpus(index: int, devices: int, gpus: list[str]) -> list[str]:
    """Return the GPUs of one process; they are dealt out in turn when there are too few.

    >>> choose_gpus(1, 2, ["0", "1", "2", "3"]), choose_gpus(3, 1, ["0", "1"])
    (['2', '3'], ['1'])
    """
    if not gpus:
        return []
    return [gpus[(index * devices + i) % len(gpus)] for i in range(min(devices, len(gpus)))]


@contextlib.contextmanager
def _environment(settings: dict[str, str]) -> Iterator[None]:
    before = {name: os.environ.get(name) for name in settings}
    os.environ.update(settings)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def _serve(connection: Connection, work: Work) -> None:
    """Run jobs until the driver closes the connection or dies."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the driver ends its processes itself
    threading.Thread(target=_end_with_parent, daemon=True).start()
    try:
        state = work.start(*work.arguments)
    except Exception as error:
        _send(connection, "error", error)
        return
    connection.send(("ready", None))
    with contextlib.suppress(EOFError):
        while True:
            job = connection.recv()
            try:
                result = work.run(state, job, lambda epoch: connection.send(("epoch", epoch)))
            except Exception as error:
                _send(connection, "error", error)
            else:
                _send(connection, "end", result)


def _send(connection: Connection, kind: str, content: Any) -> None:
    try:
        pickle.loads(pickle.dumps(content))
    except Exception:  # an exception class of the user may not survive the way
        content = RuntimeError(f"{type(content).__name__}: {content}")
    connection.send((kind, content))


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        wait([parent.sentinel])
        os._exit(1)
