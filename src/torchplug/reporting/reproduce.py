"""The command that runs one trial again."""

import shlex

from torchplug.reporting.view import View


def reproduce_trial(view: View) -> str:
    """Return the command that trains one variant on one seed again, and compares the records."""
    rows = [row for row in view.variants if row.mean is not None] or [view.baseline]
    seed = view.result.seeds[0]
    words = ["torchplug", "repeat", str(view.result.directory), rows[0].variant, str(seed)]
    return shlex.join(words)
