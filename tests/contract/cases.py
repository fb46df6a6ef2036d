"""What every contract test runs over: each card, each of its samples, each golden."""

import importlib
from fractions import Fraction
from pathlib import Path
from types import ModuleType

import torch
from torch import Tensor, nn

from torchplug.card import Card, Sample
from torchplug.catalog import cards

ROOT = Path(__file__).parents[2]
CARDS = [card for card in cards().values() if card.factory.__module__.startswith("torchplug.")]
SAMPLES = [(card, sample) for card in CARDS for sample in card.samples]


def sample_id(value: object) -> str | None:
    """Name a parametrized case in the test report."""
    if isinstance(value, Card):
        return value.key
    if isinstance(value, Sample):
        options = ",".join(f"{name}={option}" for name, option in value.options.items())
        return f"{'x'.join(map(str, value.args))}({options})"
    return None


def oracle(card: Card) -> ModuleType:
    """The oracle file of a card; a missing one fails with the path to create."""
    name = card.factory.__module__.rpartition(".")[2]
    path = Path("tests") / "oracles" / f"{name}.py"
    if not (ROOT / path).exists():
        raise FileNotFoundError(
            f"{card.key} has no oracle: create {path} with GOLDENS and reference"
        )
    return importlib.import_module(f"tests.oracles.{name}")


def build(
    card: Card, sample: Sample, *, seed: int = 0, dtype: torch.dtype = torch.float64
) -> nn.Module:
    """Construct a sample in evaluation mode with random weights and statistics.

    Zero-initialized ends would hide whole branches, so every parameter and buffer is drawn anew.
    """
    module = card.factory(*sample.args, **sample.options, dtype=dtype)
    randomize(module, seed)
    return module.eval()


def randomize(module: nn.Module, seed: int) -> None:
    """Give every parameter and running statistic a value that no special case hides."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, tensor in [*module.named_parameters(), *module.named_buffers()]:
            if not tensor.is_floating_point():
                continue
            values = torch.rand(tensor.shape, generator=generator, dtype=torch.float64)
            if name.endswith("running_var"):
                values = values + 0.5
            elif tensor.ndim > 1:
                values = (values - 0.5) * (6 / max(tensor[0].numel(), 1) ** 0.5)
            else:
                values = values - 0.3
            tensor.copy_(values)


def input_shapes(
    sample: Sample, *, batch: int | None = None, size: tuple[int, int] | None = None
) -> list[tuple[int, ...]]:
    """The shapes of a sample's inputs; with another ``size`` of the first, the rest keep pace."""
    _, _, *own = sample.shape
    ratios = [Fraction(wanted, first) for wanted, first in zip(size or own, own, strict=True)]
    shapes = []
    for images, channels, *sides in (sample.shape, *sample.other_shapes):
        scaled = [max(int(side * ratio), 1) for side, ratio in zip(sides, ratios, strict=True)]
        shapes.append((batch or images, channels, *scaled))
    return shapes


def draw_inputs(
    sample: Sample,
    *,
    dtype: torch.dtype = torch.float64,
    seed: int = 1,
    batch: int | None = None,
    size: tuple[int, int] | None = None,
) -> tuple[Tensor, ...]:
    """Random inputs of the sample's shapes; modules that merge maps take more than one."""
    generator = torch.Generator().manual_seed(seed)
    shapes = input_shapes(sample, batch=batch, size=size)
    return tuple(
        torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype) for shape in shapes
    )


def relative_error(got: Tensor, expected: Tensor) -> float:
    """Largest difference over the largest expected magnitude."""
    got, expected = got.detach(), expected.detach()
    return float((got - expected).abs().max() / expected.abs().max())
