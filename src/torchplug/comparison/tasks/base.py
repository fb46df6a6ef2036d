"""What every task has in common."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from torchplug.comparison.recipe import Recipe
from torchplug.errors import UsageError, explain

TEST_BATCH = 256
_OUTPUT_NAMES = ("out", "logits")
_AUXILIARY_WEIGHT = 0.4


@dataclass(frozen=True)
class Score:
    """What a model reached on one part of the data; metrics are percentages."""

    metrics: Mapping[str, float]
    """The primary one first."""

    classes: Mapping[str, float]
    """The primary metric of each class that occurs."""

    errors: tuple[int, ...] | None = None
    """Indices of the items that are wrong, where an item is right or wrong."""

    items: tuple[float, ...] | None = None
    """A score of each item, where it has one, for intervals over test images."""


class Meter(ABC):
    """Gathers predictions of one evaluation; with several processes, those of all."""

    @abstractmethod
    def update(self, predictions: Any, targets: Any, indices: Sequence[int]) -> None:
        """Take the predictions for one batch."""

    @abstractmethod
    def compute(self) -> Score:
        """Return the score of all batches."""


class Task(ABC):
    """One task: how its targets are put together, its loss, its predictions, its metrics."""

    name: ClassVar[str]
    metrics: ClassVar[tuple[str, ...]]
    """Names, the primary one first."""

    augments: ClassVar[tuple[str, ...]]
    """The augmentations that a recipe may name."""

    test_batch: ClassVar[int] = TEST_BATCH

    @property
    def recipe(self) -> Recipe:
        """The built-in recipe."""
        return Recipe.for_task(self.name)

    def count_outputs(self, classes: int) -> int:
        """Return the ``num_classes`` that a model for this task is made with."""
        return classes

    def normalize(self, images: Tensor, mean: Tensor, deviation: Tensor) -> Tensor:
        """Return images as floats; ``mean`` and ``deviation`` are on the scale of the images."""
        return (images.float() - mean) / deviation

    @abstractmethod
    def collate(self, targets: Sequence[Any]) -> Any:
        """Return the targets of single items as those of a batch."""

    @abstractmethod
    def compute_loss(
        self, model: nn.Module, images: Tensor, targets: Any, recipe: Recipe
    ) -> Tensor:
        """Return the loss of a model in training mode."""

    @abstractmethod
    def predict(self, model: nn.Module, images: Tensor, targets: Any) -> Any:
        """Return what a model in evaluation mode says; targets give a size at most."""

    @abstractmethod
    def make_meter(self, classes: Sequence[str], device: torch.device) -> Meter:
        """Return an empty meter."""

    @abstractmethod
    def check_output(self, model: nn.Module, images: Tensor, classes: int) -> None:
        """Raise if the model, in evaluation mode, does not return what the task needs."""


@dataclass(frozen=True)
class Outputs:
    """Scores of a model, and auxiliary scores that count in training only."""

    scores: Tensor
    auxiliary: tuple[Tensor, ...] = field(default=())


def read_outputs(output: Any) -> Outputs:
    """Return the scores in what a model returned.

    Understood are a tensor, a mapping with ``out`` or ``logits`` (torchvision's segmentation models
    add ``aux``), and an object with ``.logits`` (transformers; torchvision's GoogLeNet and
    Inception add auxiliary ones).

    Raises:
        UsageError: for anything else.
    """
    if isinstance(output, Tensor):
        return Outputs(output)
    if isinstance(output, Mapping):
        name = next((name for name in _OUTPUT_NAMES if name in output), None)
        if name is not None:
            auxiliary = (output["aux"],) if output.get("aux") is not None else ()
            return Outputs(output[name], auxiliary)
    logits = getattr(output, "logits", None)
    if isinstance(logits, Tensor):
        names = [name for name in dir(output) if name.startswith("aux_logits")]
        found = [getattr(output, name) for name in names]
        return Outputs(logits, tuple(value for value in found if isinstance(value, Tensor)))
    text = explain(
        "a model returns scores: a tensor, a mapping with 'out', or an object with .logits",
        _name_output(output),
        "wrap the model: file.py:factory",
    )
    raise UsageError(text)


def add_auxiliary(losses: Sequence[Tensor]) -> Tensor:
    """Return the first loss plus 0.4 times each other, as PSPNet (arXiv 1612.01105) does."""
    total = losses[0]
    for loss in losses[1:]:
        total = total + _AUXILIARY_WEIGHT * loss
    return total


def describe_shape(output: Any) -> str:
    """Return the shape of scores, or what was there in their place."""
    try:
        return str(tuple(read_outputs(output).scores.shape))
    except UsageError:
        return _name_output(output)


def _name_output(output: Any) -> str:
    if isinstance(output, Mapping):
        return f"a mapping with {', '.join(map(repr, output)) or 'nothing'}"
    return f"a {type(output).__name__}"


def gather(rows: list[Any]) -> list[Any]:
    """Return the rows of all processes of a trial: one after the other."""
    if not torch.distributed.is_available() or not torch.distributed.is_initialized():
        return rows
    parts: list[Any] = [None] * torch.distributed.get_world_size()
    torch.distributed.all_gather_object(parts, rows)
    return [row for part in parts for row in part]
