"""Build the model of one arm: the base with its initial weights, and what is plugged into it."""

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from torchplug.comparison.data import ImageData
from torchplug.comparison.seeds import derive_seed, deterministic
from torchplug.comparison.spec import Comparison, Variant
from torchplug.surgery import PlugReport, plug

MakeModel = Callable[[], nn.Module]


@dataclass(frozen=True)
class Study:
    """What the trials of one comparison share: specification, data, and the maker of the base."""

    comparison: Comparison
    data: ImageData
    make_model: MakeModel
    start: Mapping[str, Tensor] | None = None
    """Weights that every base starts from: of a checkpoint, or of a baseline trained once."""


@dataclass(frozen=True)
class Arm:
    """The model of one trial before its training."""

    model: nn.Module
    reports: tuple[PlugReport, ...]
    base_weights: str
    """Hash of the base's initial weights: equal for all arms of one seed, but for the A/A control
    and for what widens the base."""


def prepare_model(study: Study, variant: Variant, seed: int) -> Arm:
    """Return the model of a trial: built, started from its base, plugged."""
    model = build_base(study, variant.stream(seed))
    weights = hash_weights(model)
    return Arm(model, plug_variant(model, variant, study, variant.stream(seed)), weights)


def build_base(study: Study, seed: int) -> nn.Module:
    """Return the base with the initial weights of ``seed``: the same for every variant."""
    with deterministic("base", seed):
        model = study.make_model()
    if study.start is not None:
        model.load_state_dict(study.start)
    return model


def plug_variant(
    model: nn.Module, variant: Variant, study: Study, seed: int
) -> tuple[PlugReport, ...]:
    """Plug a variant into a base, with module weights from a stream of their own."""
    return tuple(
        plug(
            model,
            request.module,
            request.at,
            example=make_example(model, study.data),
            start=request.start,
            stages=request.stages,
            every=request.every,
            seed=derive_seed("modules", seed),
            **request.options,
        )
        for request in variant.plugs
    )


def input_channels(model: nn.Module) -> int | None:
    """Return the channels that the first convolution reads."""
    convolutions = (module for module in model.modules() if isinstance(module, nn.Conv2d))
    return next((module.in_channels for module in convolutions), None)


def make_example(model: nn.Module, data: ImageData) -> tuple[int, ...]:
    """Return the shape of a batch of one, as the model reads it."""
    return (1, input_channels(model) or data.channels, *data.shape[2:])


def describe_parameters(arm: Arm) -> dict[str, Any]:
    """Return the parameters of an arm: of the base, of the modules, of the start gates."""
    added = [(report.module_parameters, report.gate_parameters) for report in arm.reports]
    modules, gates = (sum(column) for column in zip(*added, strict=True)) if added else (0, 0)
    total = sum(p.numel() for p in arm.model.parameters())
    return {"base": total - modules - gates, "modules": modules, "gates": gates}


def hash_weights(model: nn.Module) -> str:
    """Return a hash of all parameters and buffers, by name."""
    hashed = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        values = tensor.detach().cpu().contiguous()
        hashed.update(f"{name} {tuple(values.shape)} {values.dtype}".encode())
        hashed.update(values.reshape(-1).view(torch.uint8).numpy().tobytes())
    return hashed.hexdigest()
