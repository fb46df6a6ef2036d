"""Run trials in several processes at once, one thread each.

A trial's record is a function of its specification, so it does not matter which process makes it:
the files of a pool equal those of one process, byte for byte.
"""

import multiprocessing
import pickle
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from typing import Any

import torch

from torchplug.errors import UsageError, explain

Job = tuple[str, int]
"""Name of a variant, and a seed."""


@dataclass(frozen=True)
class Work:
    """What a worker needs to make the same study again."""

    start: Callable[..., Any]
    """Called once in each process with ``arguments``; returns what ``run`` gets first."""

    arguments: tuple[Any, ...]
    run: Callable[[Any, Job], None]
    """Runs one trial and writes its record."""

    def check(self) -> None:
        """Refuse what cannot be sent to another process.

        Raises:
            UsageError: naming what cannot.
        """
        try:
            pickle.dumps(self)
        except (pickle.PicklingError, AttributeError, TypeError) as error:
            text = explain(
                "several processes need a model that each can make again",
                str(error),
                "pass a name, or a function at the top of a module; or workers=1",
            )
            raise UsageError(text) from error


_state: dict[str, Any] = {}  # of a worker process


def _begin(work: Work) -> None:
    torch.set_num_threads(1)
    _state["study"] = work.start(*work.arguments)


def _do(work: Work, job: Job) -> None:
    work.run(_state["study"], job)


def run_pool(work: Work, jobs: list[Job], workers: int) -> Iterator[tuple[Job, str | None]]:
    """Yield every job when it has ended, and what went wrong if its process died.

    A process that is killed takes the others of its pool with it. What ran then is run again, each
    trial alone: one that kills its process every time does no harm to the rest.
    """
    left = list(jobs)
    while left:
        ended: set[Job] = set()
        try:
            for job in _run_until_broken(work, left, workers):
                ended.add(job)
                yield job, None
        except _PoolDiedError as died:
            ended.update(died.running)
            for job in died.running:
                yield job, _run_alone(work, job)
        left = [job for job in left if job not in ended]


def _run_alone(work: Work, job: Job) -> str | None:
    try:
        list(_run_until_broken(work, [job], 1))
    except _PoolDiedError:
        return "its process died while it ran alone"
    return None


class _PoolDiedError(Exception):
    def __init__(self, running: list[Job]) -> None:
        super().__init__(f"a process died while {running} ran")
        self.running = running


def _run_until_broken(work: Work, jobs: list[Job], workers: int) -> Iterator[Job]:
    context = multiprocessing.get_context("spawn")
    queue, running = list(jobs), dict[Future[None], Job]()
    with ProcessPoolExecutor(workers, context, initializer=_begin, initargs=(work,)) as pool:
        while queue or running:
            while queue and len(running) < workers:  # what waits here did not die with a process
                job = queue.pop(0)
                running[pool.submit(_do, work, job)] = job
            for future in wait(running, return_when=FIRST_COMPLETED).done:
                try:
                    future.result()
                except BrokenProcessPool as error:
                    raise _PoolDiedError(list(running.values())) from error
                yield running.pop(future)


def check_workers(workers: int) -> None:
    """Refuse a number of processes that is none.

    Raises:
        UsageError: if ``workers`` is less than 1.
    """
    if workers < 1:
        text = explain("a comparison runs in at least one process", f"{workers}", "pass workers=1")
        raise UsageError(text)
