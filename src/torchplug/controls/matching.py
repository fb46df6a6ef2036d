"""Find the widths with which a network has as many parameters as its plugged copy."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from torchplug.analysis import count_parameters
from torchplug.controls.widening.groups import Group
from torchplug.controls.widening.widen import Fit, Sizes, Widths, list_growing
from torchplug.errors import UsageError, explain
from torchplug.surgery import PlugReport, find_plugs, find_sites
from torchplug.surgery.sites import Sites
from torchplug.surgery.trace import read_example

CLOSE = 0.01
"""How near a control comes to the parameters of its variant, if one channel is not more."""


@dataclass(frozen=True)
class Match:
    """Widths with which a base has about as many parameters as a plugged one."""

    widths: Widths
    parameters: int
    """Of the widened base."""

    target: int
    """Of the plugged one, without those that it puts to rest."""

    @property
    def told(self) -> str:
        """The match in words.

        >>> print(Match({"conv": 17}, 1005, 1000).told)
        1,005 parameters, +0.50% of the variant's 1,000
        """
        off = self.parameters / self.target - 1
        told = f"{self.parameters:,} parameters, {off:+.2%} of the variant's {self.target:,}"
        if abs(off) > CLOSE:
            told += "; one channel more or less is further away"
        return told


def match_parameters(
    base: nn.Module, plugged: nn.Module, reports: Sequence[PlugReport], example: Any
) -> Match:
    """Return the widths with which ``base`` has as many parameters as ``plugged``.

    The stages grow in which the plugs add parameters, each by what they add there; where none of
    them can, the last one that can does. Parameters that the plugs put to rest do not count.
    Neither model changes.

    Args:
        base: the network without plugs.
        plugged: a copy of it, with them.
        reports: what :func:`torchplug.plug` returned for the copy.
        example: what :func:`torchplug.plug` takes.

    Raises:
        UsageError: if the plugs add none, or nothing can grow.

    >>> import copy, torchplug as tp
    >>> from torchplug.hosts import build_model
    >>> base, example = build_model("torchplug:resnet8"), (1, 3, 8, 8)
    >>> plugged = copy.deepcopy(base)
    >>> report = tp.plug(plugged, "se", example=example)
    >>> match = match_parameters(base, plugged, [report], example)
    >>> abs(match.parameters / match.target - 1) < 0.01
    True
    """
    target = count_parameters(plugged) - sum(report.idle_parameters for report in reports)
    if target <= count_parameters(base):
        text = explain(
            "a control widens the base to the variant's parameters",
            f"a variant of {target:,} parameters that learn and a base of "
            f"{count_parameters(base):,}",
            "ask for another control",
        )
        raise UsageError(text)
    sizes = Sizes(base, read_example(example, base))
    growing = require_growing(sizes, base)
    stages = _group_by_stage(growing, find_sites(base, example))
    fit = _fit_stages(sizes, stages, _find_shares(plugged, reports), target)
    return Match(fit.widths, fit.parameters, target)


def require_growing(sizes: Sizes, base: nn.Module) -> list[Group]:
    """Return the groups that a control widens.

    Raises:
        UsageError: if there are none, with what stands in the way.
    """
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


def _find_shares(plugged: nn.Module, reports: Sequence[PlugReport]) -> dict[int | None, int]:
    """Return how many parameters the plugs add in each stage; ``None`` is outside of stages."""
    modules = {(path, name): module for path, name, module in find_plugs(plugged)}
    shares: dict[int | None, int] = {}
    for planned in (plug for report in reports for plug in report.plan.plugs):
        added = count_parameters(modules[planned.path, planned.name])
        shares[planned.stage] = shares.get(planned.stage, 0) + added
    return shares


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
