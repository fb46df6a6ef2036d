"""Widen the base to what a variant has: as many parameters, or as much time."""

from collections.abc import Mapping, Sequence

import torch
from torch import nn

from torchplug.analysis import measure_latency
from torchplug.comparison.arms import Study, build_base, make_example, prepare_model
from torchplug.comparison.seeds import make_generator
from torchplug.comparison.spec import Variant
from torchplug.controls.matching import Match, match_parameters, require_growing
from torchplug.controls.widening.groups import Group
from torchplug.controls.widening.widen import Sizes, Widths, widen
from torchplug.errors import UsageError, explain
from torchplug.surgery.trace import read_example

SLOWER = 1.03
"""The ratio of latencies from which a variant counts as slower than the baseline."""

_STEPS, _SWEEPS = 8, 3
_WIDEST = 8.0
_SMALL_BATCH = 32 * 32 * 32  # positions of all images of a batch that is timed


def match_size(study: Study, variant: Variant) -> Match:
    """Return the widths with which the base has as many parameters as the variant.

    Raises:
        UsageError: if the variant adds none, or nothing can grow.
    """
    seed = study.comparison.seeds[0]
    arm, base = prepare_model(study, variant, seed), build_base(study, seed)
    return match_parameters(base, arm.model, arm.reports, make_example(base, study.data))


def match_latency(study: Study, variant: Variant) -> tuple[Widths, float, float]:
    """Return the widths with which the base takes as long as the variant, by measurement.

    All groups that can grow do so by the same factor. Time does not rise evenly with width, so
    factors are tried, in turn with the base and the variant, and the nearest is taken.

    Returns:
        The widths, their ratio to the base's latency, and the variant's.

    Raises:
        UsageError: if the variant is not slower than the base, or nothing can grow.
    """
    seed, device = study.comparison.seeds[0], study.comparison.device
    base = build_base(study, seed).to(device)
    model = prepare_model(study, variant, seed).model.to(device)
    sizes = Sizes(base, read_example(make_example(base, study.data), base))
    growing = require_growing(sizes, base)
    shape = choose_batch(make_example(base, study.data))
    known = {"base": base, "variant": model}
    wanted = measure_latency(known, shape)["variant"].ratio
    if wanted < SLOWER:
        text = explain(
            f"a latency-matched control needs a variant that is at least {SLOWER} times as slow",
            f"{variant.name}, {wanted:.2f} times as slow as the baseline on this machine",
            "ask for another control",
        )
        raise UsageError(text)
    return _sweep(study, known, growing, shape, _bracket(study, base, growing, wanted, shape))


def _sweep(
    study: Study,
    known: Mapping[str, nn.Module],
    growing: Sequence[Group],
    shape: tuple[int, ...],
    top: float,
) -> tuple[Widths, float, float]:
    """Measure widths up to a factor, and further if the widest is still too fast."""
    for _ in range(_SWEEPS):
        tried = _widen_by([1 + (top - 1) * (i + 1) / _STEPS for i in range(_STEPS)], growing)
        models = {str(i): _widened(study, widths) for i, widths in enumerate(tried)}
        found = measure_latency({**known, **models}, shape)
        wanted = found["variant"].ratio
        best = min(models, key=lambda name: abs(found[name].ratio - wanted))
        chosen = tried[int(best)], found[best].ratio, wanted
        if int(best) < len(tried) - 1 or found[best].ratio * SLOWER >= wanted:
            break
        top *= 1.5
    return chosen


def choose_batch(example: tuple[int, ...]) -> tuple[int, ...]:
    """Return the shape of a batch that is large enough to time: up to 32 small images."""
    images = max(1, min(32, _SMALL_BATCH // (example[-1] * example[-2])))
    return (images, *example[1:])


def _bracket(
    study: Study, base: nn.Module, growing: Sequence[Group], wanted: float, shape: tuple[int, ...]
) -> float:
    """Return a factor of all widths that is slower than wanted."""
    factor = 1.25
    while factor < _WIDEST:
        wide = _widened(study, _widen_by([factor], growing)[0])
        if measure_latency({"base": base, "wide": wide}, shape, repeats=5)["wide"].ratio > wanted:
            break
        factor *= 1.5
    return factor


def _widen_by(factors: Sequence[float], growing: Sequence[Group]) -> list[Widths]:
    """Return the widths for each factor, without those that are the same."""
    found = []
    for factor in factors:
        more = {g: round(g.width * (factor - 1) / g.step) * g.step for g in growing}
        widths = {group.name: group.width + gain for group, gain in more.items() if gain}
        if widths and widths not in found:
            found.append(widths)
    return found


@torch.no_grad()
def _widened(study: Study, widths: Widths) -> nn.Module:
    model = build_base(study, study.comparison.seeds[0])
    generator = make_generator("modules", study.comparison.seeds[0])
    example = make_example(model, study.data)
    widen(model, widths, example=example, generator=generator, silent=study.is_pretrained)
    return model.to(study.comparison.device)
