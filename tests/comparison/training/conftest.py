"""Tiny studies on the embedded data."""

import dataclasses
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn

from torchplug.comparison.arms import Study
from torchplug.comparison.data import MemoryItems, load_data
from torchplug.comparison.recipe import Recipe
from torchplug.comparison.spec import Comparison, Variant
from torchplug.comparison.tasks.choose import get_task
from torchplug.comparison.trial import run_trial
from torchplug.hosts import build_model

HOSTS = {"classification": "resnet8", "segmentation": "unet8", "detection": "fcos8"}


def cut(part: Any, count: int) -> MemoryItems:
    return MemoryItems(part.images[:count], part.targets[:count])


def make_data(task: str = "classification", train: int = 96, rest: int = 32) -> Any:
    data = load_data("digits", task=task)
    return dataclasses.replace(
        data,
        train=cut(data.train, train),
        validation=cut(data.validation, rest),
        test=cut(data.test, rest),
    )


def make_dropping() -> nn.Module:
    """A model whose training draws random numbers at every step."""
    model = build_model("torchplug:resnet8", num_classes=10, in_channels=1)
    model.avgpool = nn.Sequential(model.avgpool, nn.Dropout(0.5))
    return model


def make_study(
    task: str = "classification",
    make_model: Callable[[], nn.Module] | None = None,
    data: Any = None,
    comparison: dict[str, Any] | None = None,
    **recipe: Any,
) -> Study:
    data = make_data(task) if data is None else data
    settings = Recipe.for_task(task, **{"epochs": 2, **recipe})
    name = f"torchplug:{HOSTS[task]}"
    outputs = get_task(task).count_outputs(len(data.classes))

    def make() -> nn.Module:
        return build_model(name, num_classes=outputs, in_channels=data.channels)

    content = {
        "model": name,
        "data": "digits",
        "variants": (Variant.parse("se"),),
        "seeds": (0, 1),
        "task": task,
        "recipe": settings,
        **(comparison or {}),
    }
    return Study(Comparison(**content), data, make_model or make)


def read_state(folder: Path) -> Any:
    """All that a checkpoint keeps but clocks: weights, optimizers, schedules, averages."""
    content = torch.load(folder / "checkpoint.ckpt", weights_only=True)
    for name in list(content["callbacks"]):
        for clock in ("seconds", "resumed"):
            content["callbacks"][name].pop(clock, None)
    names = ("state_dict", "optimizer_states", "lr_schedulers", "callbacks")
    return freeze({name: content[name] for name in names})


def freeze(value: Any) -> Any:
    """Make nested content comparable by ==, tensors by their bits."""
    if isinstance(value, torch.Tensor):
        return str(value.dtype), value.flatten().tolist()
    if isinstance(value, dict):
        return {key: freeze(each) for key, each in value.items()}
    return [freeze(each) for each in value] if isinstance(value, list | tuple) else value


def run_and_die(study: Study, folder: str, epoch: int) -> None:
    """Run a trial in this process and kill it, as a power cut would, after some epochs."""

    def on_epoch(done: int) -> None:
        if done == epoch:
            os.kill(os.getpid(), signal.SIGKILL)

    run_trial(study, study.comparison.arms[0], 0, Path(folder), on_epoch)
