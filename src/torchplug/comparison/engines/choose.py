"""Choose an engine by name."""

import importlib.util
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

from torchplug.comparison.engines.inline import InlineEngine
from torchplug.comparison.engines.pool import PoolEngine
from torchplug.comparison.engines.work import Engine, OnEpoch, Work
from torchplug.errors import UsageError, explain, import_extra, nearest

EngineName = Literal["auto", "inline", "pool", "ray", "slurm"]
ENGINES: tuple[EngineName, ...] = get_args(EngineName)


@dataclass(frozen=True, kw_only=True)
class Place:
    """Where the trials of a comparison run; the records are the same anywhere."""

    engine: EngineName = "auto"
    """``auto`` is ``ray`` if there is an address, ``pool`` for several workers, else ``inline``."""

    workers: int | None = None
    """Trials at once; ``None`` is one, or as many as a cluster has room for."""

    address: str | None = None
    """Of a Ray cluster, such as ``auto`` or ``ray://host:10001``; for Slurm, ``local`` runs its
    jobs on this machine."""

    options: Mapping[str, Any] = field(default_factory=dict)
    """Of one trial, for Ray ``num_cpus``, ``num_gpus`` (0.5 shares a GPU), ``resources``; for Slurm
    what submitit takes, such as ``slurm_partition`` and ``timeout_min``."""

    device: str = "cpu"
    devices: int = 1

    def __post_init__(self) -> None:
        if self.engine not in ENGINES:
            text = explain(
                "an engine runs the trials", repr(self.engine), nearest(self.engine, ENGINES)
            )
            raise UsageError(text)
        if self.workers is not None and self.workers < 1:
            got, fix = f"{self.workers}", "pass workers=1"
            raise UsageError(explain("a comparison runs in at least one process", got, fix))
        if self.address and self.name not in {"ray", "slurm"}:
            fix = "leave it out, or choose engine='ray'"
            raise UsageError(explain(f"the {self.name} engine has no address", self.address, fix))
        if self.options and self.is_here:
            got, fix = ", ".join(self.options), "leave them out, or choose engine='ray' or 'slurm'"
            raise UsageError(explain(f"the {self.name} engine has no options", got, fix))
        if not self.is_here:
            _check_installed(self.name)

    @property
    def name(self) -> EngineName:
        """The engine that is meant."""
        if self.engine != "auto":
            return self.engine
        if self.address:
            return "ray"
        return "pool" if (self.workers or 1) > 1 else "inline"

    @property
    def is_here(self) -> bool:
        """Whether the trials run on this machine."""
        return self.name in {"inline", "pool"}

    def make_engine(self, make_work: Callable[[], Work], here: Work, on_epoch: OnEpoch) -> Engine:
        """Return the engine; ``here`` is the work of this process."""
        if self.name == "inline":
            return InlineEngine(here, on_epoch)
        if self.name == "pool":
            return PoolEngine(
                make_work(),
                on_epoch,
                workers=self.workers or 1,
                device=self.device,
                devices=self.devices,
            )
        raise UsageError("not yet")


def _check_installed(name: str) -> None:
    package = {"ray": "ray", "slurm": "submitit"}[name]
    if importlib.util.find_spec(package) is None:
        import_extra(package, extra=name, purpose=f"the {name} engine")
