"""Say in words what a comparison found, and what it could not find."""

import math
from dataclasses import dataclass
from typing import Literal

from torchplug.comparison.statistics import ALPHA, Difference

Label = Literal["better", "worse", "equivalent", "undecided"]

SEEDS_FOR_VERDICT = 10


def fewest_deciding(family: int) -> int:
    """Return the least number of seeds with which the exact sign-flip test can reach 5 %.

    >>> fewest_deciding(1), fewest_deciding(3)
    (6, 7)
    """
    return math.ceil(math.log2(2 * family / ALPHA))


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """One of four labels, and the sentence that goes with it."""

    label: Label
    sentence: str


def judge(difference: Difference, *, seeds: int, family: int, margin: float) -> Verdict:
    """Judge one variant.

    Better: the corrected t interval is above zero, the estimate reaches the margin, and the
    sign-flip test agrees. Worse: the mirror image. Equivalent: within the margin by two one-sided
    tests. Everything else is undecided, and says what would settle it.
    """
    label = _label(difference, margin)
    return Verdict(label=label, sentence=_say(label, difference, seeds, family, margin))


def _label(difference: Difference, margin: float) -> Label:
    is_significant = difference.p_corrected <= ALPHA
    if is_significant and difference.corrected_interval.low > 0 and difference.mean >= margin:
        return "better"
    if is_significant and difference.corrected_interval.high < 0 and difference.mean <= -margin:
        return "worse"
    return "equivalent" if difference.p_equivalent <= ALPHA else "undecided"


def _say(label: Label, d: Difference, seeds: int, family: int, margin: float) -> str:
    numbers = (
        f"{d.mean:+.2f} points [{d.interval.low:+.2f}, {d.interval.high:+.2f}], "
        f"corrected p = {d.p_corrected:.2g}"
    )
    if label in {"better", "worse"}:
        return f"{label}: {numbers}, on {seeds} paired seeds, for this data and this recipe"
    if label == "equivalent":
        return f"equivalent within {margin:.2f} points: {numbers}"
    if d.p <= ALPHA:
        return f"undecided: {numbers}; {_explain_tendency(d, seeds, family)}"
    detectable = f"these {seeds} seeds could have detected {d.detectable:.1f} points"
    if seeds < fewest_deciding(family):
        detectable += " by the t test alone"
    return f"no difference found: {numbers}; {detectable}{_advise(d, seeds, margin)}"


def _explain_tendency(d: Difference, seeds: int, family: int) -> str:
    side = "ahead" if d.mean > 0 else "behind"
    least = 2 / 2**seeds * family
    if least > ALPHA:
        return (
            f"it is {side} (t test alone: p = {d.p:.2g}), but with {seeds} seeds the exact test "
            f"cannot go below {least:.2g}; run {max(SEEDS_FOR_VERDICT, 2 * seeds)} fresh seeds"
        )
    return (
        f"it is {side} (t test alone: p = {d.p:.2g}), but not after correction or not by the "
        f"margin; run {2 * seeds} fresh seeds"
    )


def _advise(d: Difference, seeds: int, margin: float) -> str:
    needed = d.seeds_for_margin
    if needed is None or needed <= seeds:
        return ""
    return f"; about {needed} would find a difference of {margin:.2f}"


def explain_sample(seeds: int, tested: int, accuracy: float, family: int) -> str:
    """Say what the number of seeds and of test images can and cannot show."""
    share = min(max(accuracy / 100, 0.0), 1.0)
    image_error = 100 * (share * (1 - share) / tested) ** 0.5
    kind = (
        f"{seeds} seeds are a screen, not a conclusion: they find large differences only, and the "
        f"exact test cannot reach p = {ALPHA} with fewer than {fewest_deciding(family)}. "
        if seeds < SEEDS_FOR_VERDICT
        else f"{seeds} seeds, fixed before the start. "
    )
    return (
        f"{kind}{family} variant{'s' if family > 1 else ''} were compared with one baseline, and p "
        f"values are corrected for that (Holm). The test set has {tested} images: at "
        f"{accuracy:.1f} % its own standard error is {image_error:.2f} points, so a claim beyond "
        "these images needs the wider interval. Verdicts hold for this data and this recipe."
    )
