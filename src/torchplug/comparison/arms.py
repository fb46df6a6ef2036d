"""Build the model of one arm: the base with its initial weights, and what is plugged into it."""

import dataclasses
import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from torchplug.comparison.data import TaskData
from torchplug.comparison.seeds import derive_seed, deterministic, make_generator
from torchplug.comparison.spec import Comparison, Variant
from torchplug.comparison.weights import load_base
from torchplug.controls.placebo.cut import cut_plugs
from torchplug.controls.widening.widen import widen
from torchplug.hosts import find_source, load_maker, locate_source
from torchplug.surgery import PlugReport, plug
from torchplug.surgery.request import Request

MakeModel = Callable[[], nn.Module]


@dataclass(frozen=True)
class Study:
    """What the trials of one comparison share: specification, data, and the maker of the base."""

    comparison: Comparison
    data: TaskData
    make_model: MakeModel
    start: Mapping[str, Tensor] | None = None
    """Weights that every base starts from: of a checkpoint, or of a baseline trained once."""

    @property
    def is_pretrained(self) -> bool:
        """Whether bases start from weights that were trained."""
        return self.start is not None or self.comparison.base != "scratch"


@dataclass(frozen=True)
class Arm:
    """The model of one trial before its training."""

    model: nn.Module
    reports: tuple[PlugReport, ...]
    base_weights: str
    """Hash of the base's initial weights, before it was widened or plugged: equal for all arms of
    one seed but the A/A control."""


def prepare_model(study: Study, variant: Variant, seed: int) -> Arm:
    """Return the model of a trial: built, started from its base, widened or plugged.

    A control that matches parameters or latency is the base with the widths that its details name;
    a placebo has its variant's plugs, whose information path is cut.

    Raises:
        PlugError: if the variant cannot be plugged, or has no honest placebo.
    """
    stream = variant.stream(seed)
    model = build_base(study, stream)
    weights = hash_weights(model)
    widths = variant.details.get("widths")
    if widths:
        widen(
            model,
            widths,
            example=make_example(model, study.data),
            generator=make_generator("modules", stream),
            silent=study.is_pretrained,
        )
    reports = plug_variant(model, variant, study, stream)
    if variant.control == "placebo":
        cut_plugs(model)
    return Arm(model, reports, weights)


def build_base(study: Study, seed: int) -> nn.Module:
    """Return the base with the initial weights of ``seed``: the same for every variant."""
    with deterministic("base", seed):
        model = study.make_model()
    if study.start is not None:
        load_base(model, study.start)
    return model


def plug_variant(
    model: nn.Module, variant: Variant, study: Study, seed: int
) -> tuple[PlugReport, ...]:
    """Plug a variant into a base, with module weights from a stream of their own."""
    return tuple(
        plug(
            model,
            find_module(request),
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


def find_module(request: Request) -> Any:
    """Return what a request plugs: a key of the catalogue, or the user's own class.

    Raises:
        UsageError: if the class cannot be loaded.
    """
    return load_maker(request.module) if request.is_own else request.module


def module_digests(variant: Variant, *, is_imported: bool = True) -> dict[str, str]:
    """Return the hash of the source file of each module of the user's own that a variant plugs.

    Args:
        variant: names them.
        is_imported: load them as well; what a program plugs, only the program imports.

    Raises:
        UsageError: if one cannot be found or loaded.
    """
    digests = {}
    for name in sorted({request.module for request in variant.plugs if request.is_own}):
        if is_imported:
            load_maker(name)
        file = find_source(name) if is_imported else locate_source(name)
        digests[name] = hashlib.sha256(file.read_bytes()).hexdigest() if file else ""
    return digests


def pin_modules(comparison: Comparison) -> Comparison:
    """Let the source of the user's own modules decide the trials that plug them.

    A variant that plugs some gets their digests in its details, and with them other trials when a
    file changes; those of other variants stay.
    """
    variants = []
    for variant in comparison.variants:
        found = module_digests(variant, is_imported=not comparison.command)
        details = {**variant.details, "sources": found} if found else variant.details
        variants.append(dataclasses.replace(variant, details=details))
    return dataclasses.replace(comparison, variants=tuple(variants))


def input_channels(model: nn.Module) -> int | None:
    """Return the channels that the first convolution reads."""
    convolutions = (module for module in model.modules() if isinstance(module, nn.Conv2d))
    return next((module.in_channels for module in convolutions), None)


def make_example(model: nn.Module, data: TaskData) -> tuple[int, ...]:
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
