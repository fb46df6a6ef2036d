"""Semantic segmentation: cross entropy a pixel, mIoU and Dice."""

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

IGNORED = 255
"""The mask value of pixels where nothing is asked."""


class Segmentation(Task):
    """One class a pixel; pixels of value 255 count neither in the loss nor in a metric.

    ``miou`` is the intersection over union of each class, over the pixels of all images together,
    averaged over the classes that occur in masks or predictions, background included: the metric of
    PASCAL VOC. ``dice`` is 2 TP / (2 TP + FP + FN) likewise.
    """

    name: ClassVar[str] = "segmentation"
    metrics: ClassVar[tuple[str, ...]] = ("miou", "dice")
    augments: ClassVar[tuple[str, ...]] = (
        "none",
        "shift",
        "flip",
        "shift_flip",
        "scale",
        "scale_flip",
    )
    test_batch: ClassVar[int] = 64

    def collate(self, targets: Sequence[Any]) -> Tensor:
        """Return masks ``(N, H, W)``."""
        return torch.stack([torch.as_tensor(target) for target in targets])

    def compute_loss(
        self, model: nn.Module, images: Tensor, targets: Any, recipe: Recipe
    ) -> Tensor:
        """Return the mean over pixels, with 0.4 times that of each auxiliary head."""
        outputs = read_outputs(model(images))
        masks = targets.long()
        return add_auxiliary(
            [
                _compute_loss(scores, masks, recipe)
                for scores in (outputs.scores, *outputs.auxiliary)
            ]
        )

    def predict(self, model: nn.Module, images: Tensor, targets: Any) -> Tensor:
        """Return class numbers ``(N, H, W)`` of the size of the masks."""
        return _resize(read_outputs(model(images)).scores, targets.shape[-2:]).argmax(1)

    def make_meter(self, classes: Sequence[str], device: torch.device) -> Meter:
        """Return a meter of mIoU and Dice."""
        return _Overlap(classes, device)

    def check_output(self, model: nn.Module, images: Tensor, classes: int) -> None:
        """Refuse a model that does not return one map a class.

        Raises:
            UsageError: naming what it returned.
        """
        output = model(images)
        got = describe_shape(output)
        if not got.startswith(f"({len(images)}, {classes}, ") or got.count(",") != 3:
            text = explain(
                f"a segmentation model must return scores (N, {classes}, H, W)",
                f"{got} for {len(images)} image",
                "use a model that takes num_classes= or classes=, or wrap it: file.py:factory",
            )
            raise UsageError(text)


def _resize(scores: Tensor, size: Sequence[int]) -> Tensor:
    """Bring scores to the size of the masks: SegFormer returns a quarter of it."""
    if tuple(scores.shape[-2:]) == tuple(size):
        return scores
    return nn.functional.interpolate(scores, tuple(size), mode="bilinear", align_corners=False)


def _compute_cross_entropy(scores: Tensor, masks: Tensor, smoothing: float) -> Tensor:
    losses = nn.functional.cross_entropy(
        _resize(scores, masks.shape[-2:]),
        masks,
        ignore_index=IGNORED,
        label_smoothing=smoothing,
        reduction="sum",
    )
    # a batch without any asked pixel has the loss 0, not 0 / 0
    return losses / (masks != IGNORED).sum().clamp(min=1)


def _compute_loss(scores: Tensor, masks: Tensor, recipe: Recipe) -> Tensor:
    loss = _compute_cross_entropy(scores, masks, recipe.label_smoothing)
    return loss + recipe.dice * compute_dice_loss(scores, masks) if recipe.dice else loss


def compute_dice_loss(scores: Tensor, masks: Tensor) -> Tensor:
    """Return 1 minus the soft Dice of the classes that occur in the masks of a batch, averaged.

    Of a class it is ``2 Σ p t / (Σ p + Σ t)`` over the asked pixels of all images, p its
    probability and t 1 where it is (Milletari et al., arXiv 1606.04797, without their squares).

    Shape:
        ``(N, classes, h, w), (N, H, W) -> ()``.
    """
    resized = _resize(scores, masks.shape[-2:]).float()
    asked = (masks != IGNORED)[:, None]
    shares = resized.softmax(1) * asked
    classes = torch.arange(resized.shape[1], device=masks.device)[:, None, None]
    truth = (masks[:, None] == classes).float()
    hits, counts = (shares * truth).sum((0, 2, 3)), truth.sum((0, 2, 3))
    dice = 2 * hits / (shares.sum((0, 2, 3)) + counts).clamp(min=1e-6)
    occurs = (counts > 0).float()
    return ((1 - dice) * occurs).sum() / occurs.sum().clamp(min=1)


class _Overlap(Meter):
    def __init__(self, classes: Sequence[str], device: torch.device) -> None:
        library = import_extra("torchmetrics.classification", extra="compare", purpose="mIoU")
        self.classes = classes
        self.matrix = library.MulticlassConfusionMatrix(
            num_classes=len(classes), ignore_index=IGNORED, validate_args=False
        ).to(device)
        self.items: list[tuple[int, float]] = []

    def update(self, predictions: Any, targets: Any, indices: Sequence[int]) -> None:
        masks = targets.long()
        self.matrix.update(predictions, masks)
        counts = _count_images(predictions, masks, len(self.classes))
        for matrix, index in zip(counts, indices, strict=True):
            overlaps = _compute_overlaps(matrix)
            # an image without any asked pixel is neither good nor bad
            mean = sum(overlaps.values()) / len(overlaps) if overlaps else 1.0
            self.items.append((int(index), 100 * mean))

    def compute(self) -> Score:
        overlaps = _compute_overlaps(self.matrix.compute())
        # a union is TP + FP + FN, so Dice is a function of the overlap of the same class
        dice = [2 * overlap / (1 + overlap) for overlap in overlaps.values()]
        metrics = {
            "miou": 100 * sum(overlaps.values()) / len(overlaps),
            "dice": 100 * sum(dice) / len(dice),
        }
        classes = {self.classes[row]: 100 * overlap for row, overlap in overlaps.items()}
        items = tuple(score for _, score in sorted(gather(self.items)))
        return Score(metrics, classes, items=items)


def _count_images(predictions: Tensor, masks: Tensor, classes: int) -> Tensor:
    """Return the confusion matrix of each image, ``(N, classes, classes)``, in one count."""
    images = torch.arange(len(masks), device=masks.device)[:, None, None]
    cells = (images * classes + masks) * classes + predictions
    asked = cells[masks != IGNORED]
    counts = torch.bincount(asked, minlength=len(masks) * classes**2)
    return counts.reshape(-1, classes, classes).cpu()


def _compute_overlaps(matrix: Tensor) -> dict[int, float]:
    """Return the intersection over union of each class that occurs."""
    hits = matrix.diagonal().double()
    unions = matrix.sum(0) + matrix.sum(1) - hits
    return {
        row: hit / union
        for row, (hit, union) in enumerate(zip(hits.tolist(), unions.tolist(), strict=True))
        if union
    }
