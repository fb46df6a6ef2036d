"""The command that runs one trial again."""

import shlex

from torchplug.reporting.view import View


def reproduce_trial(view: View) -> str:
    """Return lines for a shell that train one variant on one seed again."""
    row = view.variants[0]
    seed = view.result.seeds[0]
    words = ["torchplug", "compare", str(view.result.directory)]
    words += ["--only", row.variant, "--seed", str(seed)]
    return shlex.join(words)
