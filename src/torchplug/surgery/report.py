"""What a call of plug did."""

from dataclasses import dataclass

from torch import nn

from torchplug.errors import count
from torchplug.nn import IdentityStart
from torchplug.surgery.intake import Intake
from torchplug.surgery.plan import Plan
from torchplug.surgery.replace import Blend


@dataclass(frozen=True, kw_only=True)
class Count:
    """What is plugged where, and how many parameters there are."""

    plan: Plan
    base_parameters: int
    module_parameters: int
    """Parameters of the plugged modules, without the identity-start gates."""

    gate_parameters: int
    """One for each plug that needed a gate to start as the identity."""

    @property
    def parameters(self) -> int:
        """Parameters of base, modules and gates together."""
        return self.base_parameters + self.module_parameters + self.gate_parameters

    @property
    def paths(self) -> tuple[str, ...]:
        """The plugged modules of the host."""
        return tuple(plug.path for plug in self.plan.plugs)


@dataclass(frozen=True, kw_only=True)
class PlugReport(Count):
    """What :func:`torchplug.plug` did; printing it tells the user."""

    base_tensors: int
    """Parameters and buffers of the base; all kept, or the plug would have been rolled back."""

    max_difference: float
    """Largest absolute difference of the output on the example, plugged against base."""

    max_relative_difference: float = 0.0
    """The same over the largest absolute value of the base's output."""

    flops: tuple[int, int] = (0, 0)
    """Floating-point operations of one forward on the example, before and after."""

    idle_parameters: int = 0
    """Base parameters that are kept and do not run: those of replaced modules."""

    skipped: tuple[tuple[str, str], ...] = ()
    """Places of the module's own paper that it does not fit, each with the reason."""

    notes: tuple[str, ...] = ()
    """What is worth knowing and no fault, such as a host that starts at zero before the plugs."""

    def __str__(self) -> str:
        names = sorted({plug.module for plug in self.plan.plugs}) or ["nothing"]
        lines = [
            f"plugged {', '.join(names)} into {self.plan.host} at "
            f"{count(len(self.paths), 'place')}",
            f"  base tensors kept  {self.base_tensors}/{self.base_tensors}",
            f"  parameters         {self._describe_parameters()}",
            f"  FLOPs on example   {self._describe_flops()}",
            f"  output at start    {self._describe_change()}",
            f"  places             {_shorten(self.paths)}",
        ]
        if self.skipped:
            paths = tuple(path for path, _ in self.skipped)
            lines.append(f"  skipped            {len(paths)}: {_shorten(paths)}")
            reasons = dict.fromkeys(reason for _, reason in self.skipped)
            lines += [f"    because          {reason}" for reason in reasons]
        lines += [f"  note               {note}" for note in self.notes]
        return "\n".join(lines)

    __repr__ = __str__  # what a cell of a notebook shows

    def _describe_parameters(self) -> str:
        added = self.module_parameters / max(self.base_parameters, 1)
        text = f"{self.base_parameters:,} + {self.module_parameters:,} in modules (+{added:.1%})"
        if self.gate_parameters:
            text += f" + {self.gate_parameters:,} in start gates"
        if self.idle_parameters:
            text += f"; {self.idle_parameters:,} of the base kept at rest"
        return text

    def _describe_flops(self) -> str:
        before, after = self.flops
        change = f" ({after / before - 1:+.1%})" if before else ""
        return f"{before:,} before, {after:,} after{change}"

    def _describe_change(self) -> str:
        same = "identical to the base" if self.max_difference == 0 else "changed"
        text = f"largest difference {self.max_difference:.3g}"
        if self.max_difference:
            text += f", {self.max_relative_difference:.1%} of the largest value"
        return f"{same} ({text})"


def _shorten(paths: tuple[str, ...], most: int = 6) -> str:
    if len(paths) <= most:
        return ", ".join(paths)
    return f"{', '.join(paths[: most - 1])}, … {paths[-1]}"


def count_parameters(plugs: list[nn.Module]) -> tuple[int, int]:
    """Return the parameters of the modules, and those that the identity start added."""
    gains = [plug.gain for plug in plugs if isinstance(plug, (IdentityStart, Blend, Intake))]
    gates = sum(gain.numel() for gain in gains if gain is not None)
    return sum(p.numel() for plug in plugs for p in plug.parameters()) - gates, gates
