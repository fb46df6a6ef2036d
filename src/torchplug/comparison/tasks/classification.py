"""Classification: cross entropy and accuracy."""

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from torchplug.comparison.recipe import Recipe
from torchplug.comparison.tasks.base import (
    Meter,
    Score,
    Task,
    add_auxiliary,
    describe_shape,
    gather,
    read_outputs,
)
from torchplug.errors import UsageError, explain, import_extra


class Classification(Task):
    """One class an image.

    ``accuracy`` is the share of images whose highest score is that of their class; of a class, the
    share of its images.
    """

    name: ClassVar[str] = "classification"
    metrics: ClassVar[tuple[str, ...]] = ("accuracy",)
    augments: ClassVar[tuple[str, ...]] = (
        "none",
        "shift",
        "flip",
        "shift_flip",
        "scale",
        "scale_flip",
        "trivial",
    )

    def collate(self, targets: Sequence[Any]) -> Tensor:
        """Return class numbers ``(N,)``."""
        return torch.tensor([int(target) for target in targets])

    def compute_loss(
        self, model: nn.Module, images: Tensor, targets: Any, recipe: Recipe
    ) -> Tensor:
        """Return the cross entropy, with 0.4 times that of each auxiliary head."""
        outputs = read_outputs(model(images))
        return add_auxiliary(
            [
                nn.functional.cross_entropy(scores, targets, label_smoothing=recipe.label_smoothing)
                for scores in (outputs.scores, *outputs.auxiliary)
            ]
        )

    def predict(self, model: nn.Module, images: Tensor, targets: Any) -> Tensor:
        """Return class numbers ``(N,)``."""
        del targets
        return read_outputs(model(images)).scores.argmax(1)

    def make_meter(self, classes: Sequence[str], device: torch.device) -> Meter:
        """Return a meter of accuracy."""
        return _Accuracy(classes, device)

    def check_output(self, model: nn.Module, images: Tensor, classes: int) -> None:
        """Refuse a model that does not return one score a class.

        Raises:
            UsageError: naming what it returned.
        """
        got = describe_shape(model(images))
        if got != str((len(images), classes)):
            text = explain(
                f"a classifier must return scores (N, {classes})",
                f"{got} for {len(images)} image",
                "use a model that takes num_classes=, or wrap it: file.py:factory",
            )
            raise UsageError(text)


class _Accuracy(Meter):
    def __init__(self, classes: Sequence[str], device: torch.device) -> None:
        library = import_extra("torchmetrics.classification", extra="compare", purpose="accuracy")
        self.classes = classes
        self.counts = library.MulticlassStatScores(
            num_classes=len(classes), average=None, validate_args=False
        ).to(device)
        self.errors: list[int] = []

    def update(self, predictions: Any, targets: Any, indices: Sequence[int]) -> None:
        self.counts.update(predictions, targets)
        wrong = (predictions != targets).nonzero().flatten().tolist()
        self.errors += [int(indices[row]) for row in wrong]

    def compute(self) -> Score:
        counts = self.counts.compute().tolist()  # a class a row: tp, fp, tn, fn, support
        # whole numbers until here: float32 would round the share
        accuracy = 100 * sum(row[0] for row in counts) / sum(row[4] for row in counts)
        classes = {
            name: 100 * row[0] / row[4]
            for name, row in zip(self.classes, counts, strict=True)
            if row[4]
        }
        return Score({"accuracy": accuracy}, classes, errors=tuple(sorted(gather(self.errors))))
