"""Find the controls of variants, or the reason why there is none."""

import dataclasses
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import get_args

from torchplug.analysis import count_parameters
from torchplug.comparison.arms import Study, prepare_model
from torchplug.comparison.command import NO_LATENCY
from torchplug.comparison.controls.matching import match_latency, match_size
from torchplug.comparison.spec import Control, Variant
from torchplug.controls.placebo.cut import cut_plugs
from torchplug.errors import PlugError, UsageError, explain
from torchplug.programs import ProgramControl
from torchplug.surgery import find_plugs


@dataclass(frozen=True)
class Candidate:
    """A control that was asked for: the arm, or the reason why there is none."""

    kind: Control
    of: str
    """The variant that it belongs to."""

    arm: Variant | None
    reason: str = ""


def resolve_controls(
    study: Study, variants: Iterable[Variant], kinds: Sequence[Control]
) -> tuple[Variant, ...]:
    """Return the controls of these kinds for these variants, those that exist.

    The same study gives the same arms, but for the measured one: keep ``latency`` once found.

    Args:
        study: whose base is widened and plugged; nothing is trained.
        variants: to control for.
        kinds: ``"parameters"``, ``"latency"`` or ``"placebo"``; ``"again"`` is left out, the
            baseline again is one of the comparison's own arms.
    """
    found = find_controls(study, variants, kinds)
    return tuple(candidate.arm for candidate in found if candidate.arm is not None)


def find_controls(
    study: Study, variants: Iterable[Variant], kinds: Sequence[Control]
) -> tuple[Candidate, ...]:
    """Return every control that was asked for, or the reason why it does not exist."""
    asked = [kind for kind in dict.fromkeys(kinds) if kind != "again"]
    return tuple(_find(study, variant, kind) for variant in variants for kind in asked)


def _find(study: Study, variant: Variant, kind: Control) -> Candidate:
    if study.comparison.command:
        return _leave_to_program(variant, kind)
    try:
        arm = _WAYS[kind](study, variant)
    except (PlugError, UsageError) as error:
        return Candidate(kind, variant.name, None, str(error))
    return Candidate(kind, variant.name, arm)


def _leave_to_program(variant: Variant, kind: Control) -> Candidate:
    """Return a control that a program makes of its own model, as its plan says."""
    if kind not in get_args(ProgramControl):
        return Candidate(kind, variant.name, None, NO_LATENCY)
    arm = Variant(
        name=name_control(kind, variant.name),
        plugs=variant.plugs,
        control=kind,
        of=variant.name,
        details=variant.details,
    )
    return Candidate(kind, variant.name, arm)


def name_control(kind: Control, of: str) -> str:
    """Return the name of the arm.

    >>> name_control("parameters", "se")
    'parameters control of se'
    """
    return f"{kind} control of {of}"


def _match_parameters(study: Study, variant: Variant) -> Variant:
    match = match_size(study, variant)
    details = {**dataclasses.asdict(match), "told": match.told}
    return _make_arm("parameters", variant, details)


def _match_latency(study: Study, variant: Variant) -> Variant:
    widths, ratio, wanted = match_latency(study, variant)
    told = f"{ratio:.2f} times the baseline's latency, the variant {wanted:.2f} times"
    return _make_arm("latency", variant, {"widths": widths, "told": told})


def _make_arm(kind: Control, variant: Variant, details: dict[str, object]) -> Variant:
    return Variant(
        name=name_control(kind, variant.name), control=kind, of=variant.name, details=details
    )


def _cut_information(study: Study, variant: Variant) -> Variant:
    arm = prepare_model(study, variant, study.comparison.seeds[0])
    before = count_parameters(arm.model)
    if not find_plugs(arm.model):
        fix = "ask for another control"
        raise UsageError(explain("a placebo needs a plug", variant.name, fix))
    told = cut_plugs(arm.model)
    if count_parameters(arm.model) != before:
        raise UsageError(explain("a placebo keeps the parameters", variant.name, "report this"))
    lines = "; ".join(f"{name}: {what}" for name, what in told.items())
    return Variant(
        name=name_control("placebo", variant.name),
        plugs=variant.plugs,
        control="placebo",
        of=variant.name,
        details={**variant.details, "told": lines},
    )


_WAYS: dict[Control, Callable[[Study, Variant], Variant]] = {
    "parameters": _match_parameters,
    "latency": _match_latency,
    "placebo": _cut_information,
}
