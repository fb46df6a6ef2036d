"""Object detection by models that follow torchvision's convention, and COCO's mAP."""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from torchplug.comparison.recipe import Recipe
from torchplug.comparison.tasks.base import Meter, Score, Task
from torchplug.errors import UsageError, explain, import_extra

_BYTE = 255.0
_ANSWER = ("boxes", "labels", "scores")


class Detection(Task):
    """Boxes with classes.

    A model is called as torchvision's are: in training with a list of images in [0, 1] and a list
    of targets, and returns its losses by name; in evaluation with images alone, and returns for
    each ``boxes``, ``labels`` and ``scores``. Label 0 is the background, so a model is made with
    one class more than the data has. It normalizes images itself.

    ``map`` is the average precision over overlaps from 0.5 to 0.95, averaged over the classes that
    occur; ``map50`` that at an overlap of 0.5.
    """

    name: ClassVar[str] = "detection"
    metrics: ClassVar[tuple[str, ...]] = ("map", "map50")
    augments: ClassVar[tuple[str, ...]] = (
        "none",
        "shift",
        "flip",
        "shift_flip",
        "scale",
        "scale_flip",
    )
    test_batch: ClassVar[int] = 32

    def count_outputs(self, classes: int) -> int:
        """Return the number of classes and one for the background."""
        return classes + 1

    def normalize(self, images: Tensor, mean: Tensor, deviation: Tensor) -> Tensor:
        """Return images in [0, 1]."""
        del mean, deviation
        return images.float() / _BYTE

    def collate(self, targets: Sequence[Any]) -> list[dict[str, Tensor]]:
        """Return the targets as a list."""
        return list(targets)

    def compute_loss(
        self, model: nn.Module, images: Tensor, targets: Any, recipe: Recipe
    ) -> Tensor:
        """Return the sum of the model's own losses."""
        del recipe
        wanted = [{"boxes": each["boxes"], "labels": each["labels"] + 1} for each in targets]
        losses = model(list(images), wanted)
        if not isinstance(losses, Mapping) or not losses:
            text = explain(
                "a detector in training returns its losses by name",
                f"a {type(losses).__name__}",
                "follow torchvision's detection models, or wrap the model: file.py:factory",
            )
            raise UsageError(text)
        return torch.stack([loss.reshape(()) for loss in losses.values()]).sum()

    def predict(self, model: nn.Module, images: Tensor, targets: Any) -> list[dict[str, Tensor]]:
        """Return boxes, labels from 0, and scores."""
        del targets
        return [
            {
                "boxes": each["boxes"].float(),
                "labels": each["labels"] - 1,
                "scores": each["scores"].float(),
            }
            for each in model(list(images))
        ]

    def make_meter(self, classes: Sequence[str], device: torch.device) -> Meter:
        """Return a meter of mAP."""
        del device  # boxes are few, and COCO's code runs on the processor
        return _Precision(classes)

    def check_output(self, model: nn.Module, images: Tensor, classes: int) -> None:
        """Refuse a model that is no detector of these classes.

        Raises:
            UsageError: naming what it returned.
        """
        output = model(list(images))
        if not _is_answer(output, len(images)):
            text = explain(
                "a detector must return boxes, labels and scores for each image",
                f"a {type(output).__name__}",
                "use a detection model of torchvision, or wrap one: file.py:factory",
            )
            raise UsageError(text)
        corner = min(images.shape[-2:]) / 2
        target = {
            "boxes": torch.tensor([[0.0, 0.0, corner, corner]]),
            "labels": torch.tensor([classes - 1]),
        }
        model.train()
        try:
            self.compute_loss(model, torch.cat([images] * 2), [target] * 2, self.recipe)
        except (RuntimeError, IndexError, AssertionError) as error:
            text = explain(
                f"a detector must learn {classes} classes, with label 0 for the background",
                f"{type(error).__name__}: {error}",
                f"make it with num_classes={classes + 1}",
            )
            raise UsageError(text) from error
        finally:
            model.eval()


def _is_answer(output: Any, count: int) -> bool:
    return (
        isinstance(output, list)
        and len(output) == count
        and all(isinstance(each, Mapping) and set(_ANSWER) <= set(each) for each in output)
    )


class _Precision(Meter):
    def __init__(self, classes: Sequence[str]) -> None:
        import_extra("pycocotools", extra="detection", purpose="mAP")
        library = import_extra("torchmetrics.detection", extra="compare", purpose="mAP")
        self.classes = classes
        self.metric = library.MeanAveragePrecision(class_metrics=True)
        self.metric.warn_on_many_detections = False

    def update(self, predictions: Any, targets: Any, indices: Sequence[int]) -> None:
        del indices
        self.metric.update(_to_cpu(predictions), _to_cpu(targets))

    def compute(self) -> Score:
        found = self.metric.compute()
        metrics = {"map": _to_percent(found["map"]), "map50": _to_percent(found["map_50"])}
        rows = zip(
            found["classes"].reshape(-1).tolist(),
            found["map_per_class"].reshape(-1).tolist(),
            strict=True,
        )
        # -1 is a class without any box, which was only predicted
        classes = {self.classes[int(row)]: 100 * value for row, value in rows if value >= 0}
        return Score(metrics, classes)


def _to_cpu(rows: Sequence[Mapping[str, Tensor]]) -> list[dict[str, Tensor]]:
    return [{key: value.cpu() for key, value in row.items()} for row in rows]


def _to_percent(value: Tensor) -> float:
    return 100 * max(float(value), 0.0)
