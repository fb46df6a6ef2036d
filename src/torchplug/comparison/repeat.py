"""Run one trial of a finished run again, and say whether its record is the same."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torchplug.comparison.base import TRAINED
from torchplug.comparison.engines.work import Job
from torchplug.comparison.readback import read_comparison
from torchplug.comparison.session import Inputs
from torchplug.comparison.spec import BASELINE, Comparison, Variant
from torchplug.comparison.store import Store, seal
from torchplug.comparison.trial import BASE_WEIGHTS
from torchplug.comparison.trial_job import run_job
from torchplug.errors import UsageError, explain, nearest


@dataclass(frozen=True)
class Repetition:
    """A trial that was run a second time."""

    record: dict[str, Any]
    folder: Path
    """Holds the new record and the logs."""

    differs: tuple[str, ...]
    """Names of what is not as in the first record; empty if both are equal."""


def repeat_trial(directory: str | Path, variant: str, seed: int, out: str | Path) -> Repetition:
    """Train one arm on one seed again, beside the run and from its specification alone.

    The run is not touched. Model and data are read by the names that the run has for them.

    Args:
        directory: of the run.
        variant: name of the arm.
        seed: one of the run's.
        out: a folder of its own for the repetition.

    Raises:
        UsageError: if the run has no such trial, or ``out`` is not empty.
    """
    store = Store(Path(directory))
    comparison = read_comparison(store)
    arm = _find_arm(store, comparison, variant)
    first = store.read_record(comparison, arm, seed)
    if first is None:
        fix = f"choose from {', '.join(map(str, comparison.seeds[:20]))}"
        raise UsageError(explain("only a trial of the run can be repeated", f"seed {seed}", fix))
    folder = Path(out)
    if folder.exists() and any(folder.iterdir()):
        fix = "name a new folder"
        raise UsageError(explain("a repetition needs a folder of its own", str(folder), fix))
    start = _read_trained(store, comparison)
    study = Inputs(comparison.model, comparison, start=start).make_study(check=True)
    folder.mkdir(parents=True, exist_ok=True)
    outcome = run_job(study, Job(arm, seed, str(folder)), _say_nothing)
    store.write_outcome(folder, outcome.record, outcome.timing)
    again = seal(outcome.record)
    differs = tuple(key for key in sorted({*first, *again}) if first.get(key) != again.get(key))
    return Repetition(again, folder, differs)


def _say_nothing(epoch: int) -> None:
    del epoch


def _find_arm(store: Store, comparison: Comparison, name: str) -> Variant:
    arms = {arm.name: arm for arm in store.read_arms() or comparison.arms}
    if name not in arms:
        text = explain("a run has the arms that it lists", repr(name), nearest(name, arms))
        raise UsageError(text)
    return arms[name]


def _read_trained(store: Store, comparison: Comparison) -> bytes | None:
    """Return the weights that the run trained for all arms to start from, as they are stored."""
    if comparison.base != TRAINED:
        return None
    digest = comparison.digest(Variant(name=BASELINE), comparison.seeds[0])
    return (store.root / "base" / digest[:12] / BASE_WEIGHTS).read_bytes()
