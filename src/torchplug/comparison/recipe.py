"""How every trial of a comparison is trained: the same for baseline and variants."""

import dataclasses
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from torch import nn

from torchplug.comparison.typed import read_toml
from torchplug.errors import UsageError, explain, nearest

Optimizer = Literal["sgd", "adamw"]
Schedule = Literal["onecycle", "cosine", "poly", "constant"]
Augment = Literal["none", "shift", "flip", "shift_flip", "scale", "scale_flip", "trivial"]
Precision = Literal["32", "bf16"]
_CHOICES = {
    "optimizer": Optimizer,
    "schedule": Schedule,
    "augment": Augment,
    "precision": Precision,
}
_WHOLE = {"epochs": 1, "batch_size": 1, "workers": 0}
_NUMBERS = (
    "learning_rate",
    "momentum",
    "weight_decay",
    "warmup_epochs",
    "label_smoothing",
    "dice",
    "ema",
    "gradient_clip",
)
_POLY_POWER = 0.9


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """Optimizer, schedule, augmentation and what else decides a training.

    The defaults bring a small residual network above 97 % on held-out digits; :meth:`for_task`
    has a start for each task. The learning rate is the peak of the schedule; the last epoch
    counts, never the best one.

    >>> Recipe(epochs=5).epochs
    5
    """

    epochs: int = 20
    batch_size: int = 32
    """Of one optimizer step, whatever the number of devices; a last, smaller batch is left out."""

    optimizer: Optimizer = "sgd"
    """``sgd`` has Nesterov momentum."""

    learning_rate: float = 0.1
    momentum: float = 0.9
    weight_decay: float = 5e-4
    schedule: Schedule = "onecycle"
    """``onecycle`` as Smith and Topin (arXiv 1708.07120); ``poly`` with power 0.9 as DeepLab."""

    warmup_epochs: float = 0.0
    """Epochs of linear warm-up from 0; ``onecycle`` has its own."""

    label_smoothing: float = 0.0
    """Of classification and segmentation (Szegedy et al., arXiv 1512.00567)."""

    dice: float = 0.0
    """Weight of the soft Dice loss beside the cross entropy of segmentation, as nnU-Net (Isensee et
    al., arXiv 1809.10486) adds it: small classes then count as much as the background."""

    augment: Augment = "shift"
    """``shift`` moves images by up to an eighth of their size, ``flip`` mirrors half of them,
    ``scale`` cuts out and enlarges half to all of the image, ``trivial`` is TrivialAugment (Müller
    and Hutter, arXiv 2103.10158; classification) with mirroring."""

    precision: Precision = "32"
    """``bf16`` is automatic mixed precision with bfloat16; the weights stay float32."""

    ema: float = 0.0
    """Decay of an exponential moving average of weights and buffers, which is then what is
    validated and tested; 0 is none. It warms up as ``(1 + step) / (10 + step)``."""

    gradient_clip: float = 0.0
    """Largest norm of all gradients together; 0 is none."""

    workers: int = 0
    """Processes that read and augment images; 0 reads in the trial's own process."""

    def __post_init__(self) -> None:
        for name, kind in _CHOICES.items():
            value = getattr(self, name)
            if value not in get_args(kind):
                words = ", ".join(map(repr, get_args(kind)))
                raise UsageError(explain(f"{name} is one of {words}", repr(value), "choose one"))
        for name, least in _WHOLE.items():
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or value < least:
                rule = f"{name} is a whole number from {least}"
                raise UsageError(explain(rule, repr(value), "raise it"))
        _check_ranges(self)

    @classmethod
    def for_task(cls, task: str, **changes: Any) -> "Recipe":
        """Return the built-in recipe of a task, with some settings changed.

        ==================  ===================================================================
        ``classification``  SGD with Nesterov momentum and one cycle, images shifted
        ``segmentation``    AdamW and one cycle, images shifted, gradients clipped, cross entropy
                            and Dice
        ``detection``       AdamW and ``cosine`` with warm-up, images shifted, gradients clipped
        ==================  ===================================================================

        They suit small networks from scratch on small images; mirror and scale your own photos
        (``augment="scale_flip"``), but never digits.

        >>> Recipe.for_task("segmentation", epochs=3).schedule
        'onecycle'
        """
        if task not in _STARTS:
            text = explain("a recipe is for a task", repr(task), nearest(task, _STARTS))
            raise UsageError(text)
        return cls.from_dict({**_STARTS[task], **changes})

    @classmethod
    def from_dict(cls, content: Mapping[str, Any], *, task: str = "classification") -> "Recipe":
        """Return the recipe with these settings; the others are those of the task."""
        known = [field.name for field in dataclasses.fields(cls)]
        for name in content:
            if name not in known:
                text = explain(
                    "a recipe has only its own settings", repr(name), nearest(name, known)
                )
                raise UsageError(text)
        return cls(**{**_STARTS[task], **content})

    @classmethod
    def load(cls, path: str | Path, *, task: str = "classification") -> "Recipe":
        """Read a recipe from a TOML file; what it does not name is as the task has it.

        Raises:
            UsageError: if the file cannot be read, or has an unknown or impossible setting.
        """
        return cls.from_dict(read_toml(path, "epochs = 20"), task=task)

    def make_optimizer(self, parameters: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
        """Return the optimizer over the parameters that are trained."""
        trained = [parameter for parameter in parameters if parameter.requires_grad]
        if self.optimizer == "adamw":
            return torch.optim.AdamW(trained, lr=self.learning_rate, weight_decay=self.weight_decay)
        return torch.optim.SGD(
            trained,
            lr=self.learning_rate,
            momentum=self.momentum,
            weight_decay=self.weight_decay,
            nesterov=self.momentum > 0,
        )

    def make_schedule(
        self, optimizer: torch.optim.Optimizer, steps: int
    ) -> torch.optim.lr_scheduler.LRScheduler:
        """Return the learning-rate schedule over ``steps`` optimizer steps."""
        if self.schedule == "onecycle":
            return torch.optim.lr_scheduler.OneCycleLR(
                optimizer, max_lr=self.learning_rate, total_steps=max(steps, 2)
            )
        warmup = round(self.warmup_epochs * steps / self.epochs)
        shape = _SHAPES[self.schedule]

        def scale(step: int) -> float:
            if step < warmup:
                return (step + 1) / (warmup + 1)
            return shape(min((step - warmup) / max(steps - warmup, 1), 1.0))

        return torch.optim.lr_scheduler.LambdaLR(optimizer, scale)


_SHAPES: dict[str, Callable[[float], float]] = {
    "cosine": lambda done: 0.5 * (1 + math.cos(math.pi * done)),
    "poly": lambda done: (1 - done) ** _POLY_POWER,
    "constant": lambda _: 1.0,
}

_STARTS: dict[str, dict[str, Any]] = {
    "classification": {},
    "segmentation": {
        "epochs": 20,
        "batch_size": 8,
        "optimizer": "adamw",
        "learning_rate": 2e-2,
        "weight_decay": 1e-2,
        "dice": 1.0,
        "gradient_clip": 1.0,
    },
    "detection": {
        "epochs": 20,
        "batch_size": 16,
        "optimizer": "adamw",
        "learning_rate": 4e-3,
        "weight_decay": 1e-2,
        "schedule": "cosine",
        "warmup_epochs": 1.0,
        "gradient_clip": 1.0,
    },
}


def _check_ranges(recipe: Recipe) -> None:
    for name in _NUMBERS:
        value = getattr(recipe, name)
        if (
            isinstance(value, bool)
            or not isinstance(value, int | float)
            or not math.isfinite(value)
        ):
            raise UsageError(
                explain(f"{name} is a number", repr(value), "write a number, such as 0.1")
            )
    ranges = {
        "learning_rate": ("above 0", recipe.learning_rate > 0),
        "momentum": ("from 0 to below 1", 0 <= recipe.momentum < 1),
        "weight_decay": ("0 or above", recipe.weight_decay >= 0),
        "warmup_epochs": ("from 0 to the epochs", 0 <= recipe.warmup_epochs <= recipe.epochs),
        "label_smoothing": ("from 0 to below 1", 0 <= recipe.label_smoothing < 1),
        "dice": ("0 or above", recipe.dice >= 0),
        "ema": ("from 0 to below 1", 0 <= recipe.ema < 1),
        "gradient_clip": ("0 or above", recipe.gradient_clip >= 0),
    }
    for name, (rule, holds) in ranges.items():
        if not holds:
            got = repr(getattr(recipe, name))
            raise UsageError(explain(f"{name} is {rule}", got, "choose a value in this range"))
