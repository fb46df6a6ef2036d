"""The weights that all arms start from: those of a file, or of a baseline that is trained once."""

import io
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from torch import Tensor

from torchplug.comparison.arms import Study
from torchplug.comparison.engines import Engine, Job
from torchplug.comparison.engines.work import Report
from torchplug.comparison.lease import Leases
from torchplug.comparison.spec import BASELINE, Variant
from torchplug.comparison.store import CHECKPOINT, PROGRESS, Store, explain_full, is_disk_full
from torchplug.comparison.trial import BASE_WEIGHTS, train_base
from torchplug.comparison.weights import read_weights
from torchplug.errors import UsageError, explain

SCRATCH, TRAINED = "scratch", "trained"
_TRIES = 3
_LOOK_SECONDS = 0.5


def read_start(base: str) -> dict[str, Tensor] | None:
    """Return the weights of a base that is a file; ``None`` for the other two.

    Raises:
        UsageError: if the file cannot be read.
    """
    return None if base in {SCRATCH, TRAINED} else read_weights(base)


def pack(weights: Mapping[str, Tensor] | None) -> bytes | None:
    """Return weights as bytes, for other processes."""
    if weights is None:
        return None
    file = io.BytesIO()
    torch.save(dict(weights), file)
    return file.getvalue()


def unpack(content: bytes | None) -> dict[str, Tensor] | None:
    """Return what :func:`pack` packed."""
    if content is None:
        return None
    return dict(torch.load(io.BytesIO(content), map_location="cpu", weights_only=True))


def run_base_job(study: Study, job: Job, report: Report) -> None:
    """Train the base in the job's folder; this runs wherever the engine runs it."""
    train_base(study, Path(job.folder), report)


def train_once(
    study: Study, store: Store, leases: Leases, make_engine: Callable[[], Engine]
) -> dict[str, Tensor]:
    """Return the weights of the trained base; of several drivers one trains it.

    Raises:
        UsageError: if its training diverges, or kills its process every time.
    """
    digest = study.comparison.digest(Variant(name=BASELINE), study.comparison.seeds[0])
    folder = store.root / "base" / digest[:12]
    while not (folder / BASE_WEIGHTS).exists():
        if not leases.take(folder):
            time.sleep(_LOOK_SECONDS)
            continue
        engine = make_engine()
        try:
            if not (folder / BASE_WEIGHTS).exists():
                _train(engine, Job(Variant(name="base"), 0, str(folder)))
        finally:
            engine.stop()
            leases.give_back(folder)
    for name in (CHECKPOINT, PROGRESS):
        (folder / name).unlink(missing_ok=True)
    return read_weights(folder / BASE_WEIGHTS)


def _train(engine: Engine, job: Job) -> None:
    for _ in range(_TRIES):
        engine.submit(job)
        ended = None
        while ended is None:
            ended = next(iter(engine.wait(_LOOK_SECONDS)), None)
        if ended.error is not None:
            if is_disk_full(ended.error):
                raise explain_full(job.folder, ended.error) from ended.error
            raise ended.error
        if not ended.death:
            return
    text = explain(
        "the base of a comparison must be trained before it is compared",
        f"a process that died {_TRIES} times while it trained it",
        "look at its memory, or pass the path of a checkpoint as base",
    )
    raise UsageError(text)
