"""Stand in the place of a host's module, and follow what tools do to it.

A replacement is a plug that receives what its host's module receives. The host's module keeps its
class, its parameters and their names, so base checkpoints load as before; what differs is whether
it still runs:

- :class:`Beside`: it runs, and the plug adds to what it returns. ACNet's row and column stand
  beside the host's kernel, which stays the square one and learns on.
- :class:`Blend`: both run; ``old + gain * (new - old)`` with a learned ``gain = 0`` starts as the
  host, exactly, at the price of both computations.
- :class:`Instead`: the host's module rests. Its weights are kept and frozen (a distributed trainer
  refuses weights that learn and are not used) and thaw when the plug is taken out.
"""

from typing import Any

import torch
from torch import Tensor, nn

from torchplug.errors import PlugError, explain

HOLDER = "torchplug"
"""Name of the child that owns the plugs: weights are called ``<path>.torchplug.<plug>.…``."""


class Replacement(nn.Module):
    """A plug in the place of its host's module: a base for the three ways.

    Args:
        module: what stands there.
    """

    runs_host = True
    """Whether the host's module still runs: if not, the first argument of forward is ``None``."""

    scale: Tensor | None
    shift: Tensor | None

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module
        # a norm that a tool has folded into the host's convolution; see `follow`
        self.register_buffer("scale", None)
        self.register_buffer("shift", None)
        self.frozen: tuple[str, ...] = ()
        self._ratio: Tensor | None = None

    def take_over(self, host: nn.Module) -> None:
        """Freeze the weights of a host's module that will not run."""
        if not self.runs_host:
            resting = find_resting(host)
            self.frozen = tuple(name for name, weight in resting.items() if weight.requires_grad)
            for name in self.frozen:
                resting[name].requires_grad_(False)

    def release(self, host: nn.Module) -> None:
        """Thaw what :meth:`take_over` froze."""
        resting = find_resting(host)
        for name in self.frozen:
            if name in resting:  # a host's fuse may have removed it
                resting[name].requires_grad_(True)
        self.frozen = ()

    @property
    def can_merge(self) -> bool:
        """Whether one plain module computes the same in evaluation mode."""
        return not self.runs_host and hasattr(self.module, "merge") and self.scale is None

    def merge(self, host: nn.Module) -> nn.Module:  # noqa: ARG002 - one signature
        """Return the plain module of a replacement that has one: see :attr:`can_merge`."""
        return self.module.merge()  # type: ignore[operator]

    def follow(self, host: nn.Module, name: str, value: Any) -> None:
        """Note that a tool is about to give the host's convolution a new weight or bias.

        Hosts fold the norm behind a convolution into it (``fuse``) and drop the norm. Then what
        stands in the convolution's place must be scaled and shifted in the same way. The scale is
        how the weight changed, one number for each output, and the shift how the bias did.
        """
        if name == "weight":
            self._ratio = _find_ratio(host._parameters.get("weight"), value)
        elif name == "bias" and self._ratio is not None:
            before = host._parameters.get("bias")
            shift = torch.zeros_like(self._ratio) if value is None else value.detach()
            shift = shift.to(self._ratio)
            if before is not None:
                shift = shift - self._ratio * before.detach().to(self._ratio)
            self._fold(self._ratio, shift)
            self._ratio = None

    def _fold(self, scale: Tensor, shift: Tensor) -> None:
        if bool((scale == 1).all()) and not bool(shift.any()):
            return  # the same weights were assigned again
        scale, shift = scale.view(-1, 1, 1), shift.view(-1, 1, 1)
        if self.scale is not None and self.shift is not None:
            shift = shift + scale * self.shift
            scale = scale * self.scale
        self.scale, self.shift = scale, shift

    def folded(self, y: Tensor) -> Tensor:
        """Return ``y`` scaled and shifted like the host's convolution since the plug came."""
        if self.scale is None or self.shift is None:
            return y
        return y * self.scale.to(y.dtype) + self.shift.to(y.dtype)


class Instead(Replacement):
    """``y = module(x)``; the host's module rests, frozen."""

    runs_host = False

    def forward(self, old: Tensor | None, x: Tensor) -> Tensor:  # noqa: ARG002 - one signature
        """Return what the module makes of ``x``."""
        return self.folded(self.module(x))


class Blend(Replacement):
    """``y = old + gain * (module(x) - old)`` with a learned ``gain`` of one element, 0 at first.

    In the first step of training the host's module and the gain learn, the module from the second.
    """

    def __init__(self, module: nn.Module) -> None:
        super().__init__(module)
        self.gain = nn.Parameter(torch.zeros(1))

    def forward(self, old: Tensor, x: Tensor) -> Tensor:
        """Return ``old`` moved towards what the module makes of ``x``."""
        new = self.folded(self.module(x)).to(old.dtype)
        return old + self.gain.to(old.dtype) * (new - old)


class Beside(Replacement):
    """``y = old + module(x)``, for a module that starts at zero."""

    def forward(self, old: Tensor, x: Tensor) -> Tensor:
        """Return the sum; the host's own part carries any shift."""
        more = self.module(x)
        if self.scale is not None:
            more = more * self.scale.to(more.dtype)
        return old + more.to(old.dtype)

    @property
    def can_merge(self) -> bool:
        """Whether the module has a form of one convolution together with the host's."""
        return hasattr(self.module, "merge")

    def merge(self, host: nn.Module) -> nn.Module:
        """Return one convolution that computes the same in evaluation mode."""
        return self.module.merge(host, self.scale)  # type: ignore[operator]


def find_resting(host: nn.Module) -> dict[str, nn.Parameter]:
    """Return the parameters of a host's module itself, without those of plugs on it."""
    own = host.named_parameters()
    return {name: weight for name, weight in own if not name.startswith(f"{HOLDER}.")}


def _find_ratio(old: Any, new: Any) -> Tensor | None:
    """What each output of a kernel was multiplied by; None if it changed in another way.

    Raises:
        PlugError: if an output's kernel is all zeros, which hides its factor.
    """
    known = {Tensor, nn.Parameter}  # a sharded tensor is for others to look into
    if type(old) not in known or type(new) not in known or old.shape != new.shape or old.is_meta:
        return None
    exact = torch.promote_types(old.dtype, torch.float32)
    before = old.detach().flatten(1).to(exact)
    after = new.detach().flatten(1).to(before)
    if torch.equal(before, after):
        return torch.ones_like(before[:, 0])
    power = before.square().sum(1)
    ratio = (before * after).sum(1) / power.where(power > 0, 1)
    error = (after - ratio[:, None] * before).norm()
    if not error <= 8 * torch.finfo(new.dtype).eps * after.norm():
        return None
    if not bool((power > 0).all()):
        text = explain(
            "a norm can be folded into a replaced convolution only if each of its kernels shows "
            "the scale",
            "a kernel of zeros",
            "call unplug or merge_plugs before the host's fuse",
        )
        raise PlugError(text)
    return ratio
