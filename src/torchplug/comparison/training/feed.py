"""What a training reads: loaders for its three parts."""

from dataclasses import dataclass
from typing import Any

import torch
from lightning.pytorch import LightningModule
from torch import nn
from torch.utils.data import DataLoader, RandomSampler

from torchplug.comparison.arms import Study
from torchplug.comparison.tasks.choose import get_task
from torchplug.comparison.training.loaders import (
    Batches,
    BatchReader,
    InOrder,
    Shuffled,
    make_loader,
    make_preparation,
)
from torchplug.comparison.training.own import ModuleData
from torchplug.errors import UsageError, explain


@dataclass(frozen=True)
class Feed:
    """The loaders of one trial."""

    train: Any
    validation: Any
    test: Any
    steps: int
    """Optimizer steps of one epoch."""

    tested: int
    """Test items of all processes together."""

    generators: tuple[torch.Generator, ...] = ()
    """What the worker processes of a user's loaders are seeded from."""

    def set_epoch(self, epoch: int) -> None:
        """Let worker processes begin with the right epoch: Lightning tells it too late for them."""
        for loader in _list_loaders(self.train):
            if isinstance(loader.sampler, Shuffled):
                loader.sampler.set_epoch(epoch)


def feed_task(study: Study, model: nn.Module, stream: int, rank: int, world: int) -> Feed:
    """Return the loaders of a data set of ours."""
    data, recipe = study.data, study.comparison.recipe
    task = get_task(study.comparison.task)
    preparation = make_preparation(task, recipe, data, model)
    own = isinstance(model, LightningModule)

    def read(part: Any) -> BatchReader:
        return BatchReader(part, preparation, stream, indices=not own)

    def look(part: Any) -> DataLoader[Any]:
        order = InOrder(len(part), task.test_batch, rank=rank, world=world)
        return make_loader(read(part), order, workers=recipe.workers)

    order = Batches(len(data.train), recipe.batch_size, stream, rank=rank, world=world)
    return Feed(
        train=make_loader(read(data.train), order, workers=recipe.workers),
        validation=look(data.validation),
        test=look(data.test),
        steps=len(order),
        tested=len(data.test),
    )


def feed_module(data: ModuleData, stream: int, rank: int, world: int) -> Feed:
    """Return the loaders of a user's LightningDataModule.

    A train loader that shuffles gets a sampler whose order depends on (stream, epoch) only, and its
    worker processes are seeded from them: else a resumed trial would see another order.
    """
    module = data.module
    loaders = [
        _repeat(loader, stream, rank, world) for loader in _list_loaders(module.train_dataloader())
    ]
    train = loaders[0] if len(loaders) == 1 else loaders
    validation, test = module.val_dataloader(), module.test_dataloader()
    return Feed(
        train=train,
        validation=validation,
        test=test,
        steps=max(len(loader) for loader in loaders),
        tested=sum(len(loader.dataset) for loader in _list_loaders(test)),
        generators=tuple(loader.generator for loader in loaders),
    )


def _list_loaders(loaders: Any) -> list[Any]:
    return list(loaders) if isinstance(loaders, list | tuple) else [loaders]


def _repeat(loader: Any, stream: int, rank: int, world: int) -> DataLoader[Any]:
    """Return a loader as the given one, whose random numbers are the trial's."""
    if not isinstance(loader, DataLoader):
        text = explain(
            "a LightningDataModule gives a DataLoader, or a list of them",
            f"a {type(loader).__name__}",
            "return torch.utils.data.DataLoader(…) from train_dataloader()",
        )
        raise UsageError(text)
    sampler: Any = loader.sampler
    if isinstance(sampler, RandomSampler) or world > 1:
        sampler = Shuffled(len(loader.dataset), stream, rank=rank, world=world)  # type: ignore[arg-type]
    options: dict[str, Any] = {
        "num_workers": loader.num_workers,
        "collate_fn": loader.collate_fn,
        "pin_memory": loader.pin_memory,
        "timeout": loader.timeout,
        "worker_init_fn": loader.worker_init_fn,
        "multiprocessing_context": loader.multiprocessing_context,
        "generator": torch.Generator(),
    }
    if loader.num_workers:
        options["prefetch_factor"] = loader.prefetch_factor
    if loader.batch_size is None or type(loader.batch_sampler).__name__ != "BatchSampler":
        batching: dict[str, Any] = (
            {"batch_sampler": loader.batch_sampler}
            if loader.batch_size is None and loader.batch_sampler is not None
            else {"batch_size": loader.batch_size, "sampler": sampler}
        )
    else:
        batching = {
            "batch_size": loader.batch_size,
            "sampler": sampler,
            "drop_last": loader.drop_last,
        }
    return DataLoader(loader.dataset, **batching, **options)
