"""What an engine runs: jobs, and how a process makes what they need."""

import pickle
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from torchplug.comparison.spec import Variant
from torchplug.errors import UsageError, explain

Report = Callable[[int], None]
"""Told the number of each epoch that has ended."""


@dataclass(frozen=True)
class Job:
    """One trial, on its way to whoever runs it."""

    variant: Variant
    seed: int
    folder: str
    """Of the trial; a process that cannot see it works in a folder of its own."""

    @property
    def name(self) -> str:
        """Such as ``se, seed 3``."""
        return f"{self.variant.name}, seed {self.seed}"


@dataclass(frozen=True)
class Ended:
    """How a job ended: with what came out, or with the death of its process."""

    job: Job
    result: Any = None
    death: str = ""
    error: BaseException | None = None
    """What no other trial would fare better with, such as a full disk."""


@dataclass(frozen=True)
class Work:
    """What a process needs to run jobs; it is sent to each of them once."""

    start: Callable[..., Any]
    """Called once in each process with ``arguments``; returns what ``run`` gets first."""

    arguments: tuple[Any, ...]
    run: Callable[[Any, Job, Report], Any]
    """Runs one trial and returns what came out of it."""

    def check(self) -> None:
        """Refuse what cannot be sent to another process.

        Raises:
            UsageError: naming what cannot.
        """
        try:
            pickle.dumps(self)
        except (pickle.PicklingError, AttributeError, TypeError) as error:
            text = explain(
                "several processes need a model and data that each can make again",
                str(error),
                "pass names, or functions and classes at the top of a module; or workers=1",
            )
            raise UsageError(text) from error


class Engine(Protocol):
    """Runs jobs somewhere; the driver asks for one job at a time."""

    @property
    def slots(self) -> int:
        """How many jobs run at once."""

    def submit(self, job: Job) -> None:
        """Begin a job; at most ``slots`` are under way."""

    def wait(self, seconds: float) -> list[Ended]:
        """Return the jobs that ended, after at most about ``seconds``."""

    def stop(self) -> None:
        """End everything that is under way; it can be called twice."""


OnEpoch = Callable[[Job, int], None]


def clean_error(text: str, folder: str) -> str:
    """Return an error's text without what differs between machines: addresses and folders.

    >>> clean_error("no /data/x/a.pt in <Net at 0x7f12ab>", "/data/x")
    'no FOLDER/a.pt in <Net at 0x…>'
    """
    return re.sub(r"0x[0-9a-f]+", "0x…", text.replace(str(Path(folder)), "FOLDER"))


def check_options(options: Mapping[str, Any], engine: str) -> None:
    """Refuse options of an engine that has none.

    Raises:
        UsageError: naming them.
    """
    if options:
        text = explain(
            f"the {engine} engine has no options",
            ", ".join(options),
            "leave them out, or choose engine='ray' or engine='slurm'",
        )
        raise UsageError(text)
