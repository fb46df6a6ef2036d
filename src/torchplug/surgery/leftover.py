"""Notice norms of the host that still run behind modules which bring their own.

A paper that replaces a convolution "with its norm" has none behind it. The convolution alone is
replaced here, so that a plug never takes out what it was not pointed at: the host's norm stays
until the user puts it to rest.
"""

from collections.abc import Sequence

from torch import nn

from torchplug.modules import AsymmetricConv, SelectiveKernel, SplitAttention
from torchplug.surgery.replace import Instead
from torchplug.surgery.rest import Step
from torchplug.surgery.trace import Trace

_BRINGS_NORM = (AsymmetricConv, SelectiveKernel, SplitAttention)
_NORMS = {"batch_norm", "group_norm", "instance_norm", "layer_norm"}


def describe_leftovers(trace: Trace, steps: Sequence[Step]) -> tuple[str, ...]:
    """Return a note for modules with a norm of their own before one of the host.

    Args:
        trace: of the host before plugging.
        steps: what was plugged.
    """
    places = [step.planned.path for step in steps if _has_own_norm(step)]
    norms = _find_norms_behind(trace) if places else {}
    behind = [norms[path] for path in places if path in norms]
    if not behind:
        return ()
    text = f"{len(behind)} of {len(steps)} modules bring a norm of their own, and the host's still"
    text += f" runs behind them, such as {behind[0]}: to rest it, plug(model, nn.Identity,"
    return (f"{text} {behind[0]!r}, mode='replace', start='paper', example=…)",)


def _find_norms_behind(trace: Trace) -> dict[str, str]:
    """The module of the norm that reads what a module returns, by the path of that module."""
    return {
        call.path: user.calls[-1].path
        for value in trace.maps
        for user in value.users
        if user.op in _NORMS and user.calls
        for call in value.producers
    }


def _has_own_norm(step: Step) -> bool:
    if step.planned.start != "paper" or not isinstance(step.module, Instead):
        return False
    module: nn.Module = step.module.module
    inside = (type(part).__name__ for part in module.modules())
    return isinstance(module, _BRINGS_NORM) and any("Norm" in name for name in inside)
