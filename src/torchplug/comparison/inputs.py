"""Bring what the caller passed into what trials need: a maker of models, data, a base."""

import contextlib
import functools
import hashlib
import importlib
import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from torchplug.comparison.arms import MakeModel, Study, build_base, hash_weights
from torchplug.comparison.data import TaskData, load_data, wrap_datasets
from torchplug.comparison.spec import Comparison
from torchplug.comparison.tasks.choose import get_task
from torchplug.errors import UsageError, explain, nearest
from torchplug.hosts import build_model

Model = str | Callable[[], nn.Module]


def name_model(model: Any) -> str:
    """Return the name of a model or of the function that makes it.

    Raises:
        UsageError: for a model instead of its maker.
    """
    if isinstance(model, str):
        return model
    if isinstance(model, nn.Module) or not callable(model):
        text = explain(
            "a comparison makes a new model for each trial",
            f"one {type(model).__name__}",
            "pass a name, or a function without arguments that makes it",
        )
        raise UsageError(text)
    named = model.func if isinstance(model, functools.partial) else model
    return f"{named.__module__}:{getattr(named, '__qualname__', type(named).__qualname__)}"


def hash_model(model: Model, study: Study) -> str:
    """Hash what makes the base: source where there is one, kinds of layers, first weights."""
    base = build_base(study, study.comparison.seeds[0])
    hashed = hashlib.sha256(hash_weights(base).encode())
    for path, module in base.named_modules():
        hashed.update(f"{path} {type(module).__module__}.{type(module).__qualname__}\n".encode())
    if isinstance(model, str):
        file = Path(model.rpartition(":")[0])
        hashed.update(file.read_bytes() if file.suffix == ".py" else b"")
    else:
        with contextlib.suppress(OSError, TypeError):  # a prompt or a partial has no source
            hashed.update(inspect.getsource(model).encode())
    return hashed.hexdigest()


def check_device(device: str) -> None:
    """Refuse a device that is not there.

    Raises:
        UsageError: with what torch says.
    """
    try:
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        fix = "pass device='cpu'"
        raise UsageError(explain("device must be there", f"{device!r} ({error})", fix)) from error


def make_maker(model: Model, comparison: Comparison, data: Any) -> MakeModel:
    """Return a function without arguments that makes the base."""
    if not isinstance(model, str):
        return model
    name = model

    def make() -> nn.Module:
        return build_model(
            name,
            num_classes=get_task(comparison.task).count_outputs(len(data.classes)),
            in_channels=data.channels,
            options=comparison.model_options,
        )

    return make


@dataclass(frozen=True)
class NoData:
    """In the place of data where a program of the user's own is the trial."""

    name: str = "command"
    digest: str = ""
    classes: tuple[str, ...] = ()


def read_data(data: Any, comparison: Comparison, *, check: bool = True) -> Any:
    """Return the data of a comparison.

    Args:
        data: what the caller passed, if it is no name.
        comparison: with the name of the data.
        check: look for broken files too, which workers leave out.

    Raises:
        UsageError: if nothing is there under the name, or the data are of another task.
    """
    if comparison.command:
        return NoData()
    if data is None or isinstance(data, str):
        return load_data(
            comparison.data,
            task=comparison.task,
            image_size=comparison.image_size,
            options=comparison.data_options,
            check=check,
        )
    if isinstance(data, tuple) and len(data) in {2, 3}:
        return _wrap_parts(data, comparison)
    _check_options(comparison.data_options, (), f"a {type(data).__name__} in memory")
    if isinstance(data, TaskData):
        if data.task != comparison.task:
            fix = f"pass task={data.task!r}"
            raise UsageError(explain(f"{data.name} is for {data.task}", comparison.task, fix))
        return data
    if hasattr(data, "train_dataloader"):
        own = importlib.import_module("torchplug.comparison.training.own")  # Lightning is slow
        return own.wrap_datamodule(data, comparison.task)
    text = explain(
        "data is a name, a TaskData, a LightningDataModule, or datasets (train, test)",
        f"a {type(data).__name__}",
        "name a folder, or pass a tuple of two datasets",
    )
    raise UsageError(text)


def _wrap_parts(parts: tuple[Any, ...], comparison: Comparison) -> TaskData:
    """Return the datasets ``(train, test)`` or ``(train, validation, test)`` as data."""
    options = comparison.data_options
    _check_options(options, ("classes",), "a tuple of datasets")
    classes = options.get("classes") or getattr(parts[0], "classes", None)
    if classes is None:
        text = explain(
            "datasets come with the names of their classes",
            f"a {type(parts[0]).__name__} without classes",
            "pass data_options={'classes': ['cat', 'dog']}, or how many there are",
        )
        raise UsageError(text)
    return wrap_datasets(
        parts[0],
        parts[-1],
        parts[1] if len(parts) > 2 else None,
        classes=classes,
        task=comparison.task,
        name=comparison.data,
        image_size=comparison.image_size,
    )


def _check_options(options: Mapping[str, Any], known: Sequence[str], what: str) -> None:
    """Refuse options of data that their kind does not have."""
    for key in options:
        if key not in known:
            rule = f"{what} has no options" + (f" but {', '.join(known)}" if known else "")
            fix = nearest(key, known) if known else "leave data_options out"
            raise UsageError(explain(rule, repr(key), fix))


def name_data(data: Any) -> str:
    """Return what the specification calls the data."""
    if isinstance(data, str):
        return data
    first = data[0] if isinstance(data, tuple) and data else data
    return str(getattr(first, "name", type(first).__qualname__))
