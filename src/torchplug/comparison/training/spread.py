"""One trial on several devices: a process each, joined by Lightning's DDP."""

import contextlib
import importlib
import importlib.util
import multiprocessing
import os
import pickle
import socket
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection, wait
from pathlib import Path
from types import ModuleType
from typing import Any

import torch

from torchplug.comparison.arms import Study
from torchplug.comparison.spec import Variant
from torchplug.errors import TorchplugError, UsageError, explain

OnEpoch = Callable[[int], None]
_SECONDS_TO_END = 10.0


def perform_spread(
    study: Study, variant: Variant, seed: int, folder: Path, on_epoch: OnEpoch | None
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return record and timing of a trial whose batches are divided among processes.

    Raises:
        UsageError: if the batch cannot be divided.
        TorchplugError: if one of them ends with an error; the others are ended then.
    """
    check_devices(study)
    content = _find_pickler().dumps((study, variant, seed, folder))
    context = multiprocessing.get_context("spawn")
    world, port = study.comparison.devices, _find_port()
    processes, pipes = [], []
    for rank in range(world):
        here, there = context.Pipe(duplex=False)
        process = context.Process(target=_work, args=(content, rank, world, port, there))
        process.start()
        there.close()
        processes.append(process)
        pipes.append(here)
    try:
        return _listen(pipes, on_epoch)
    finally:
        for process in processes:
            process.join(_SECONDS_TO_END if process.is_alive() else 0)
            if process.is_alive():
                process.kill()
                process.join()


def check_devices(study: Study) -> None:
    """Refuse a batch that the devices of a trial cannot divide.

    Raises:
        UsageError: naming both numbers.
    """
    size, devices = study.comparison.recipe.batch_size, study.comparison.devices
    if size % devices:
        text = explain(
            "the batch size is divided among the devices of a trial",
            f"batch_size={size} for {devices} devices",
            "take a multiple of their number",
        )
        raise UsageError(text)


def _listen(pipes: list[Any], on_epoch: OnEpoch | None) -> tuple[dict[str, Any], dict[str, Any]]:
    found: Any = None
    opened: list[Any] = list(pipes)
    while opened:
        ready: list[Any] = wait(opened)
        for pipe in ready:
            rank = pipes.index(pipe)
            try:
                kind, content = pipe.recv()
            except EOFError:
                raise TorchplugError(_explain_dead(rank, "its process died")) from None
            if kind == "epoch" and on_epoch is not None:
                on_epoch(content)
            elif kind == "error":
                raise TorchplugError(_explain_dead(rank, content))
            elif kind == "end":
                found = content or found
                opened.remove(pipe)
    return found


def _explain_dead(rank: int, reason: str) -> str:
    return explain(
        "all devices of a trial work to its end",
        f"{reason} (device {rank})",
        "run again: the trial goes on from its checkpoint",
    )


def _find_pickler() -> ModuleType:
    """Return what can also send functions of a prompt, where it is installed."""
    found = importlib.util.find_spec("cloudpickle")
    return pickle if found is None else importlib.import_module("cloudpickle")


def _find_port() -> int:
    with contextlib.closing(socket.socket()) as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _work(content: bytes, rank: int, world: int, port: int, pipe: Connection) -> None:
    """Run in a process of its own."""
    torch.set_num_threads(1)
    with _environment(rank, world, port):
        try:
            from torchplug.comparison.training.fit import Place
            from torchplug.comparison.training.perform import perform

            study, variant, seed, folder = pickle.loads(content)  # of the parent
            place = Place(folder, rank, world)
            result = perform(study, variant, seed, place, lambda epoch: pipe.send(("epoch", epoch)))
        except BaseException as error:
            pipe.send(("error", f"{type(error).__name__}: {error}"))
            raise
    pipe.send(("end", result if rank == 0 else None))


@contextlib.contextmanager
def _environment(rank: int, world: int, port: int) -> Iterator[None]:
    """Tell Lightning that its processes are there."""
    os.environ.update(
        LOCAL_RANK=str(rank),
        NODE_RANK="0",
        WORLD_SIZE=str(world),
        MASTER_ADDR="127.0.0.1",
        MASTER_PORT=str(port),
    )
    yield
