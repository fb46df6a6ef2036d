"""The numbered parts of a report, in the order in which they are read."""

from torchplug.reporting.blocks import Section
from torchplug.reporting.sections.account import tell_limits, tell_setup, tell_trials
from torchplug.reporting.sections.checks import tell_classes, tell_controls, tell_power
from torchplug.reporting.sections.evidence import tell_evidence
from torchplug.reporting.sections.pictures import tell_figures
from torchplug.reporting.sections.results import tell_results, tell_verdicts
from torchplug.reporting.view import View


def build_sections(view: View) -> list[Section]:
    """Return all parts; each has something to say, if only that there is nothing."""
    return [
        tell_verdicts(view),
        tell_results(view),
        tell_figures(view),
        tell_controls(view),
        tell_power(view),
        tell_classes(view),
        tell_trials(view),
        tell_setup(view),
        tell_evidence(view),
        tell_limits(view),
    ]
