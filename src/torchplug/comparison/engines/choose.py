"""Choose an engine by name."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

from torchplug.comparison.engines.inline import InlineEngine
from torchplug.comparison.engines.pool import PoolEngine
from torchplug.comparison.engines.ray_tasks import RayEngine
from torchplug.comparison.engines.slurm import SlurmEngine
from torchplug.comparison.engines.work import Engine, OnEpoch, Work
from torchplug.errors import UsageError, explain, nearest, require_extra

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
    def is_inline(self) -> bool:
        """Whether the trials run in this process."""
        return self.name == "inline"

    @property
    def is_here(self) -> bool:
        """Whether the trials run on this machine."""
        return self.name in {"inline", "pool"}

    def make_engine(
        self,
        work: Work,
        on_epoch: OnEpoch,
        *,
        root: Path,
        owner: str,
        device: str = "cpu",
        devices: int = 1,
    ) -> Engine:
        """Return the engine, with nothing under way.

        Args:
            work: what its processes need; for ``inline``, this one.
            on_epoch: told of epochs by the engines that hear of them.
            root: of the run.
            owner: of the leases, by which a node knows the run's folder.
            device: of the trials.
            devices: of one trial.
        """
        if self.name == "inline":
            return InlineEngine(work, on_epoch)
        if self.name == "pool":
            workers = self.workers or 1
            return PoolEngine(work, on_epoch, workers=workers, device=device, devices=devices)
        shared: Any = {
            "address": self.address,
            "workers": self.workers,
            "options": self.options,
            "gpus": devices if device.startswith("cuda") else 0,
            "owner": owner,
        }
        if self.name == "ray":
            return RayEngine(work, **shared)
        return SlurmEngine(work, folder=root / "slurm", **shared)


def _check_installed(name: str) -> None:
    package = {"ray": "ray", "slurm": "submitit"}[name]
    require_extra([package], extra=name, purpose=f"the {name} engine")
