"""What a call of plug did."""

from dataclasses import dataclass

from torch import nn

from torchplug.nn import IdentityStart
from torchplug.surgery.plan import Plan


@dataclass(frozen=True, kw_only=True)
class PlugReport:
    """What :func:`torchplug.plug` did; printing it tells the user."""

    plan: Plan
    base_tensors: int
    """Parameters and buffers of the base; all kept, or the plug would have been rolled back."""

    base_parameters: int
    module_parameters: int
    """Parameters of the plugged modules, without the identity-start gates."""

    gate_parameters: int
    """One for each plug that needed a gate to start as the identity."""

    max_difference: float
    """Largest absolute difference of the output on the example, plugged against base."""

    @property
    def parameters(self) -> int:
        """Parameters of base, modules and gates together."""
        return self.base_parameters + self.module_parameters + self.gate_parameters

    @property
    def paths(self) -> tuple[str, ...]:
        """The plugged modules of the host."""
        return tuple(plug.path for plug in self.plan.plugs)

    def __str__(self) -> str:
        added = self.module_parameters / max(self.base_parameters, 1)
        names = sorted({plug.module for plug in self.plan.plugs})
        same = "identical to the base" if self.max_difference == 0 else "changed"
        lines = [
            f"plugged {', '.join(names)} into {self.plan.host} at {len(self.paths)} places",
            f"  base tensors kept  {self.base_tensors}/{self.base_tensors}",
            f"  parameters         {self.base_parameters:,} + {self.module_parameters:,} in modules"
            f" (+{added:.1%})"
            + (f" + {self.gate_parameters:,} in start gates" if self.gate_parameters else ""),
            f"  output at start    {same} (largest difference {self.max_difference:.3g})",
            f"  places             {_shorten(self.paths)}",
        ]
        return "\n".join(lines)


def _shorten(paths: tuple[str, ...], most: int = 6) -> str:
    if len(paths) <= most:
        return ", ".join(paths)
    return f"{', '.join(paths[: most - 1])}, … {paths[-1]}"


def count_gates(plugs: list[nn.Module]) -> int:
    """Count the parameters that the identity start added."""
    return sum(plug.gain.numel() for plug in plugs if isinstance(plug, IdentityStart))
