"""Find a task by its name, and check a model against it."""

import copy
from typing import Any

import torch
from torch import nn

from torchplug.comparison.arms import input_channels, make_example
from torchplug.comparison.recipe import Recipe
from torchplug.comparison.tasks.base import Task
from torchplug.comparison.tasks.classification import Classification
from torchplug.comparison.tasks.detection import Detection
from torchplug.comparison.tasks.segmentation import Segmentation
from torchplug.errors import UsageError, explain, nearest

TASKS: dict[str, Task] = {
    task.name: task for task in (Classification(), Segmentation(), Detection())
}


def get_task(name: str) -> Task:
    """Return a task.

    >>> get_task("segmentation").metrics
    ('miou', 'dice')
    """
    if name not in TASKS:
        raise UsageError(explain("a comparison has a task", repr(name), nearest(name, TASKS)))
    return TASKS[name]


def check_model(task: Task, model: nn.Module, data: Any, recipe: Recipe) -> None:
    """Refuse a model or a recipe that does not fit the task and the data.

    Raises:
        UsageError: naming what does not fit.
    """
    if recipe.augment not in task.augments:
        fix = nearest(recipe.augment, task.augments)
        raise UsageError(explain(f"{task.name} has its augmentations", repr(recipe.augment), fix))
    task.make_meter(data.classes, torch.device("cpu"))  # what it needs may not be installed
    expected = input_channels(model)
    if expected not in {None, data.channels} and (expected, data.channels) != (3, 1):
        text = explain(
            f"the model must read the {data.channels} channels of {data.name}",
            f"a first convolution of {expected} channels",
            "use a model that takes in_channels=, or other data",
        )
        raise UsageError(text)
    shape = make_example(model, data)
    model = copy.deepcopy(model).eval()  # a look must not move the statistics of its norms
    try:
        with torch.no_grad():
            task.check_output(model, torch.zeros(shape), len(data.classes))
    except UsageError:
        raise
    except Exception as error:
        text = explain(
            f"the model must run on the images of {data.name}",
            f"{type(error).__name__}: {error} for an input of shape {shape}",
            "choose a model for such images, or set the image size",
        )
        raise UsageError(text) from error
