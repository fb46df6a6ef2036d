"""Widen the base to what a variant has: as many parameters, or as much time."""

from collections.abc import Mapping, Sequence

import torch
from torch import nn

from torchplug.analysis import count_parameters, measure_latency
from torchplug.comparison.arms import Arm, Study, build_base, make_example, prepare_model
from torchplug.comparison.seeds import make_generator
from torchplug.comparison.spec import Variant
from torchplug.comparison.widening.groups import Group
from torchplug.comparison.widening.widen import Fit, Sizes, Widths, list_growing, widen
from torchplug.errors import UsageError, explain
from torchplug.surgery import find_plugs, find_sites
from torchplug.surgery.sites import Sites
from torchplug.surgery.trace import read_example

CLOSE = 0.01
"""How near a control comes to the parameters of its variant, if one channel is not more."""

SLOWER = 1.03
"""The ratio of latencies from which a variant counts as slower than the baseline."""

_STEPS, _SWEEPS = 8, 3
_WIDEST = 8.0
_SMALL_BATCH = 32 * 32 * 32  # positions of all images of a batch that is timed


def match_parameters(study: Study, variant: Variant) -> Fit:
    """Return the widths with which the base has as many parameters as the variant.

    The stages grow in which the variant adds parameters, each by what it adds there; where none
    of them can, the last one that can does. Parameters that the variant puts to rest do not count.

    Raises:
        UsageError: if the variant adds none, or nothing can grow.
    """
    seed = study.comparison.seeds[0]
    arm, base = prepare_model(study, variant, seed), build_base(study, seed)
    target = count_target(arm)
    if target <= count_parameters(base):
        text = explain(
            "a control widens the base to the variant's parameters",
            f"a variant of {target:,} parameters that learn and a base of "
            f"{count_parameters(base):,}",
            "ask for the placebo or the latency-matched control",
        )
        raise UsageError(text)
    example = make_example(base, study.data)
    sizes = Sizes(base, read_example(example, base))
    growing = _require_growing(sizes, base)
    stages = _group_by_stage(growing, find_sites(base, example))
    return _fit_stages(sizes, stages, find_shares(arm), target)


def count_target(arm: Arm) -> int:
    """Return the parameters of an arm, without those of the base that it puts to rest."""
    return count_parameters(arm.model) - sum(report.idle_parameters for report in arm.reports)


def find_shares(arm: Arm) -> dict[int | None, int]:
    """Return how many parameters the plugs add in each stage; ``None`` is outside of stages."""
    modules = {(path, name): module for path, name, module in find_plugs(arm.model)}
    shares: dict[int | None, int] = {}
    for planned in (plug for report in arm.reports for plug in report.plan.plugs):
        added = count_parameters(modules[planned.path, planned.name])
        shares[planned.stage] = shares.get(planned.stage, 0) + added
    return shares


def _require_growing(sizes: Sizes, base: nn.Module) -> list[Group]:
    growing = list_growing(sizes.groups)
    if not growing:
        reasons = dict.fromkeys(group.obstacle for group in sizes.groups if group.obstacle)
        text = explain(
            "a control widens channels that a layer makes and only layers read",
            f"{type(base).__name__}, which has none: {'; '.join([*reasons][:3]) or 'no layers'}",
            "ask for the placebo, or compare with a larger model as a variant of your own",
        )
        raise UsageError(text)
    return growing


def _group_by_stage(groups: Sequence[Group], sites: Sites) -> dict[int | None, list[Group]]:
    stages: dict[int | None, list[Group]] = {}
    for group in groups:
        stages.setdefault(_find_stage(group.name, sites), []).append(group)
    return stages


def _find_stage(path: str, sites: Sites) -> int | None:
    """Return the stage of a module, or of the nearest module around it that has one."""
    while path:
        site = sites.outputs.get(path)
        if site is not None and site.stage is not None:
            return site.stage
        path = path.rpartition(".")[0]
    return None


def _fit_stages(
    sizes: Sizes,
    stages: Mapping[int | None, Sequence[Group]],
    shares: Mapping[int | None, int],
    target: int,
) -> Fit:
    last = max((stage for stage in stages if stage is not None), default=None)
    wanted: dict[int | None, int] = {}
    for stage, share in shares.items():
        place = stage if stage in stages and stage is not None else last
        wanted[place] = wanted.get(place, 0) + share
    gains: dict[Group, int] = {}
    order = sorted(wanted, key=lambda stage: (wanted[stage], stage or 0))
    reached = sizes.count({})
    for stage in order:  # the one that grows most comes last and makes up for the others
        reached = target if stage == order[-1] else reached + wanted[stage]
        gains = sizes.fit(stages[stage], reached, gains)
    return sizes.finish(gains, [group for stage in wanted for group in stages[stage]], target)


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
    growing = _require_growing(sizes, base)
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
