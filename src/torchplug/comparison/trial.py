"""One trial: one variant, one seed, trained and tested; its record is equal in every repetition."""

import hashlib
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from torchplug.comparison.data import ImageData
from torchplug.comparison.recipe import Augment, Recipe
from torchplug.comparison.seeds import derive_seed, deterministic, make_generator
from torchplug.comparison.spec import Comparison, Variant
from torchplug.comparison.split import Split
from torchplug.errors import UsageError, explain
from torchplug.surgery import PlugReport, plug

MakeModel = Callable[[], nn.Module]
_TEST_BATCH = 256


@dataclass(frozen=True)
class Study:
    """What the trials of one comparison share: specification, data, and the maker of the base."""

    comparison: Comparison
    data: ImageData
    make_model: MakeModel


def build_base(study: Study, seed: int) -> nn.Module:
    """Return the base with the initial weights of ``seed``: the same for every variant."""
    with deterministic("base", seed):
        return study.make_model()


def plug_variant(model: nn.Module, variant: Variant, study: Study, seed: int) -> PlugReport | None:
    """Plug a variant into a base, with module weights from a stream of their own."""
    if variant.module is None:
        return None
    return plug(
        model,
        variant.module,
        variant.at,
        example=_example(model, study.data),
        seed=derive_seed("modules", seed),
        **variant.options,
    )


def input_channels(model: nn.Module) -> int | None:
    """Return the channels that the first convolution reads."""
    convolutions = (module for module in model.modules() if isinstance(module, nn.Conv2d))
    return next((module.in_channels for module in convolutions), None)


def _example(model: nn.Module, data: ImageData) -> tuple[int, ...]:
    return (1, input_channels(model) or data.channels, *data.shape[2:])


def run_trial(
    study: Study, variant: Variant, seed: int, on_epoch: Callable[[int], None] | None = None
) -> dict[str, Any]:
    """Train and test one variant with one seed and return its record.

    The record is a function of its arguments: no clock, no name of the machine. ``status`` is
    ``finished``, or ``diverged`` when the loss is no longer a number.
    """
    comparison = study.comparison
    model = build_base(study, seed)
    base_weights = hash_weights(model)
    report = plug_variant(model, variant, study, seed)
    with deterministic("training", seed):
        training = _Training(study, model.to(comparison.device), seed)
        curve = training.run(on_epoch)
        finished = len(curve) == comparison.recipe.epochs
        wrong = training.find_errors(study.data.test) if finished else None
    tested = len(study.data.test)
    return {
        "format": 1,
        "specification": comparison.digest(variant, seed),
        "variant": variant.name,
        "seed": seed,
        "status": "finished" if finished else "diverged",
        "accuracy": None if wrong is None else 100 * (tested - len(wrong)) / tested,
        "errors": wrong,
        "tested": tested,
        "curve": curve,
        "base_weights": base_weights,
        "data": study.data.digest,
        "parameters": {
            "base": report.base_parameters if report else _count(model),
            "modules": report.module_parameters if report else 0,
            "gates": report.gate_parameters if report else 0,
        },
    }


def _count(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


def hash_weights(model: nn.Module) -> str:
    """Return a hash of all parameters and buffers, by name."""
    hashed = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        values = tensor.detach().cpu().contiguous()
        hashed.update(f"{name} {tuple(values.shape)} {values.dtype}".encode())
        hashed.update(values.reshape(-1).view(torch.uint8).numpy().tobytes())
    return hashed.hexdigest()


class _Training:
    """The training of one model: plain, short, and the same for all variants."""

    def __init__(self, study: Study, model: nn.Module, seed: int) -> None:
        self.recipe: Recipe = study.comparison.recipe
        self.data, self.model, self.seed = study.data, model, seed
        self.device = study.comparison.device
        self.channels = input_channels(model)
        self.mean, self.deviation = study.data.statistics()
        self.size = min(self.recipe.batch_size, len(study.data.train))
        # the last, smaller batch is left out: a batch of one has no statistics
        self.starts = range(0, len(study.data.train) - self.size + 1, self.size)
        self.optimizer = self.recipe.make_optimizer(model.parameters())
        steps = self.recipe.epochs * len(self.starts)
        self.schedule = self.recipe.make_schedule(self.optimizer, steps)
        self.loss = nn.CrossEntropyLoss(label_smoothing=self.recipe.label_smoothing)

    def run(self, on_epoch: Callable[[int], None] | None) -> list[dict[str, float]]:
        """Train all epochs and return the learning curve; it ends early if training diverges."""
        curve = []
        for epoch in range(1, self.recipe.epochs + 1):
            loss = self._train_epoch(epoch)
            if not math.isfinite(loss):
                break
            validation = self.data.validation
            right = len(validation) - len(self.find_errors(validation))
            accuracy = 100 * right / len(validation)
            curve.append({"epoch": epoch, "loss": loss, "validation_accuracy": accuracy})
            if on_epoch is not None:
                on_epoch(epoch)
        return curve

    def _train_epoch(self, epoch: int) -> float:
        train = self.data.train
        order = torch.randperm(len(train), generator=make_generator("order", self.seed, epoch))
        shifts = make_generator("augment", self.seed, epoch)
        self.model.train()
        total = 0.0
        for start in self.starts:
            chosen = order[start : start + self.size]
            images = augment(self._prepare(train.images[chosen]), self.recipe.augment, shifts)
            loss = self.loss(
                self.model(images.to(self.device)), train.labels[chosen].to(self.device)
            )
            total += float(loss.detach())
            if not math.isfinite(total):
                return math.nan
            self.optimizer.zero_grad()
            loss.backward()
            self.optimizer.step()
            self.schedule.step()
        return total / len(self.starts)

    def find_errors(self, split: Split) -> list[int]:
        """Return the indices of the images that the model gets wrong."""
        self.model.eval()
        wrong: list[int] = []
        with torch.no_grad():
            for start in range(0, len(split), _TEST_BATCH):
                rows = slice(start, start + _TEST_BATCH)
                scores = self.model(self._prepare(split.images[rows]).to(self.device)).cpu()
                missed = scores.argmax(1) != split.labels[rows]
                wrong += [start + int(i) for i in missed.nonzero().flatten()]
        return wrong

    def _prepare(self, images: Tensor) -> Tensor:
        images = (images.float() - self.mean) / self.deviation
        if self.channels == 3 and images.shape[1] == 1:
            images = images.expand(-1, 3, -1, -1)
        return images


def augment(images: Tensor, kind: Augment, generator: torch.Generator) -> Tensor:
    """Shift each image by up to an eighth of its size, filled with the mean, and mirror half.

    The draws depend on the generator and the batch size only, so every variant sees the same.
    """
    if kind == "none":
        return images
    count, channels, height, width = images.shape
    reach = max(height, width) // 8
    moves = torch.randint(0, 2 * reach + 1, (2, count), generator=generator)
    mirrored = torch.rand(count, generator=generator) < 0.5
    padded = nn.functional.pad(images, (reach, reach, reach, reach))
    rows = moves[0][:, None] + torch.arange(height)
    columns = moves[1][:, None] + torch.arange(width)
    if kind == "shift_flip":
        columns = torch.where(mirrored[:, None], columns.flip(1), columns)
    sample = torch.arange(count)[:, None, None, None]
    channel = torch.arange(channels)[:, None, None]
    return padded[sample, channel, rows[:, None, :, None], columns[:, None, None, :]]


def check_model(study: Study, model: nn.Module) -> None:
    """Refuse a model that does not classify this data.

    Raises:
        UsageError: naming what it returned.
    """
    data = study.data
    expected = input_channels(model)
    if expected not in {None, data.channels} and (expected, data.channels) != (3, 1):
        text = explain(
            f"the model must read the {data.channels} channels of {data.name}",
            f"a first convolution of {expected} channels",
            "use a model that takes in_channels=, or other data",
        )
        raise UsageError(text)
    shape, count = _example(model, data), len(data.classes)
    model.eval()
    try:
        with torch.no_grad():
            output = model(torch.zeros(shape))
    except Exception as error:
        text = explain(
            f"the model must run on the images of {data.name}",
            f"{type(error).__name__}: {error} for an input of shape {shape}",
            "choose a model for such images, or set the image size",
        )
        raise UsageError(text) from error
    got = tuple(output.shape) if isinstance(output, Tensor) else type(output).__name__
    if got != (1, count):
        text = explain(
            f"compare trains classifiers: the model must return scores (N, {count})",
            f"{got}",
            "use a model that takes num_classes=, or wrap it: file.py:factory",
        )
        raise UsageError(text)
