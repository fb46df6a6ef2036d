"""Say in words what a comparison found, and what it could not find."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from torchplug.comparison.planning import ALPHA
from torchplug.comparison.spec import FEWEST_SEEDS
from torchplug.comparison.statistics import Difference

Label = Literal["better", "worse", "equivalent", "undecided", "failed"]
Again = Literal["fair", "open", "biased"]

SEEDS_FOR_VERDICT = 10


def fewest_deciding(family: int) -> int:
    """Return the least number of seeds with which the exact sign-flip test can reach 5 %.

    >>> fewest_deciding(1), fewest_deciding(3)
    (6, 7)
    """
    return math.ceil(math.log2(2 * family / ALPHA))


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """One of five labels, and the sentence that goes with it."""

    label: Label
    sentence: str
    wins: bool = False
    """Whether it is better than the baseline, whatever its controls say."""

    unbeaten: tuple[str, ...] = ()
    """Controls that do about as well, which is why a winner is undecided."""


def judge(
    difference: Difference,
    *,
    seeds: int,
    family: int,
    margin: float,
    unit: str = "points",
    controls: Mapping[str, Difference] | None = None,
) -> Verdict:
    """Judge one variant.

    Better: the corrected t interval is above zero, the estimate reaches the margin, the sign-flip
    test agrees, and the variant is ahead of each of its controls. Worse: the mirror image.
    Equivalent: within the margin by two one-sided tests. Everything else is undecided, and says
    what would settle it.

    Args:
        difference: to the baseline.
        seeds: paired seeds.
        family: variants compared with one baseline.
        margin: the smallest difference worth having.
        unit: ``points``, or nothing.
        controls: for each control that was run, how far the variant is ahead of it.
    """
    label = _label(difference, margin)
    wins = label == "better"
    unbeaten = {
        name: lead
        for name, lead in (controls or {}).items()
        if wins and not (lead.p <= ALPHA and lead.interval.low > 0)
    }
    words = _Words(difference, seeds, family, margin, unit)
    if unbeaten:
        sentence = words.say_matched(unbeaten)
        return Verdict(
            label="undecided", sentence=sentence, wins=True, unbeaten=tuple(sorted(unbeaten))
        )
    return Verdict(label=label, sentence=words.say(label), wins=wins)


def judge_again(difference: Difference) -> Again:
    """Judge the baseline against itself by what the table shows of it: its interval and its p.

    Fair: the interval holds zero. Biased: it does not, and the exact test agrees. Open: the exact
    test does not, which it never can with few seeds.
    """
    if difference.p_corrected <= ALPHA:
        return "biased"
    return "open" if difference.p <= ALPHA else "fair"


def say_failed(reason: str) -> Verdict:
    """Return the verdict of a variant that has no numbers."""
    return Verdict(label="failed", sentence=f"failed: {reason}")


def show(value: float, unit: str, *, sign: bool = False) -> str:
    """Return a number as it is printed: two decimals for points, four digits for other units.

    >>> show(0.5, "points", sign=True), show(0.012345, "")
    ('+0.50', '0.01235')
    """
    return f"{value:{'+' if sign else ''}{'.2f' if unit else '.4g'}}"


def _label(difference: Difference, margin: float) -> Label:
    is_significant = difference.p_corrected <= ALPHA
    if is_significant and difference.corrected_interval.low > 0 and difference.mean >= margin:
        return "better"
    if is_significant and difference.corrected_interval.high < 0 and difference.mean <= -margin:
        return "worse"
    return "equivalent" if difference.p_equivalent <= ALPHA else "undecided"


@dataclass(frozen=True)
class _Words:
    d: Difference
    seeds: int
    family: int
    margin: float
    unit: str

    def say(self, label: Label) -> str:
        numbers = self._numbers(self.d) + f", corrected p = {self.d.p_corrected:.2g}"
        if label in {"better", "worse"}:
            return f"{label}: {numbers}, on {self.seeds} paired seeds, for this data and recipe"
        if label == "equivalent":
            return f"equivalent within {self._amount(self.margin)}: {numbers}"
        if self.d.p <= ALPHA:
            return f"undecided: {numbers}; {self._explain_tendency()}"
        detectable = (
            f"these {self.seeds} seeds could have detected {self._amount(self.d.detectable)}"
        )
        if self.seeds < fewest_deciding(self.family):
            detectable += " by the t test alone"
        return f"no difference found: {numbers}; {detectable}{self._advise()}"

    def say_matched(self, unbeaten: Mapping[str, Difference]) -> str:
        leads = ", ".join(
            f"it leads the {name} by {self._numbers(lead)}" for name, lead in unbeaten.items()
        )
        return (
            f"undecided: {self._numbers(self.d)} over the baseline, corrected p = "
            f"{self.d.p_corrected:.2g}, but a control may do as well: {leads}; more seeds would "
            "tell size or luck from the module itself"
        )

    def _numbers(self, d: Difference) -> str:
        low, high = (show(x, self.unit, sign=True) for x in (d.interval.low, d.interval.high))
        unit = f" {self.unit}" if self.unit else ""
        return f"{show(d.mean, self.unit, sign=True)}{unit} [{low}, {high}]"

    def _amount(self, value: float) -> str:
        return f"{show(value, self.unit)} {self.unit}".strip()

    def _explain_tendency(self) -> str:
        side = "ahead" if self.d.mean > 0 else "behind"
        least = 2 / 2**self.seeds * self.family
        if least > ALPHA:
            return (
                f"it is {side} (t test alone: p = {self.d.p:.2g}), but with {self.seeds} seeds the "
                f"exact test cannot go below {least:.2g}; run "
                f"{max(SEEDS_FOR_VERDICT, 2 * self.seeds)} fresh seeds"
            )
        return (
            f"it is {side} (t test alone: p = {self.d.p:.2g}), but not after correction or not by "
            f"the margin; run {2 * self.seeds} fresh seeds"
        )

    def _advise(self) -> str:
        needed = self.d.seeds_for_margin
        if needed is None or needed <= self.seeds:
            return ""
        return f"; about {needed} would find a difference of {show(self.margin, self.unit)}"


def explain_sample(seeds: int, tested: int, accuracy: float | None, family: int) -> str:
    """Say what the number of seeds and of test images can and cannot show.

    Args:
        seeds: that count.
        tested: images of the test set, 0 if not known.
        accuracy: of the baseline in percent, where an image is right or wrong.
        family: variants compared.
    """
    kind = (
        f"{seeds} seeds are a screen, not a conclusion: they find large differences only, and the "
        f"exact test cannot reach p = {ALPHA} with fewer than {fewest_deciding(family)}. "
        if seeds < SEEDS_FOR_VERDICT
        else f"{seeds} seeds, fixed before the start. "
    )
    compared = (
        f"{family} variant{'s were' if family > 1 else ' was'} compared with one baseline, and p "
        "values are corrected for that (Holm). "
    )
    wide = (
        f"The interval of {seeds} seeds reaches 12.7 standard errors to each side, often beyond "
        "what the metric can be: they say hardly anything. "
        if seeds == FEWEST_SEEDS
        else ""
    )
    images = _explain_images(tested, accuracy)
    return f"{kind}{wide}{compared}{images}Verdicts hold for this data and this recipe."


def _explain_images(tested: int, accuracy: float | None) -> str:
    if not tested:
        return ""
    if accuracy is None:
        return f"The test set has {tested} images. "
    share = min(max(accuracy / 100, 0.0), 1.0)
    image_error = 100 * (share * (1 - share) / tested) ** 0.5
    return (
        f"The test set has {tested} images: at {accuracy:.1f} % its own standard error is "
        f"{image_error:.2f} points, so a claim beyond these images needs the wider interval. "
    )
