"""Bring plugs back that a conversion left behind as mere children."""

from dataclasses import dataclass

from torch import nn

from torchplug.errors import count
from torchplug.surgery.attach import reattach
from torchplug.surgery.checkup import Problem, find_losses, shorten, unwrap
from torchplug.surgery.manage import find_loose_norms, hold
from torchplug.surgery.memory import recall


@dataclass(frozen=True, kw_only=True)
class Repair:
    """What :func:`repair` did and what it could not; printing it tells the user."""

    repaired: tuple[str, ...]
    """Modules of the host that run their plugs again."""

    held: int
    """Batch norms of a frozen base that stay in evaluation mode again."""

    problems: tuple[Problem, ...]
    """What is still wrong."""

    @property
    def ok(self) -> bool:
        """Whether every plug is attached now."""
        return not self.problems

    def __str__(self) -> str:
        lines = [f"attached the plugs again at {count(len(self.repaired), 'place')}"]
        if self.repaired:
            lines[0] += f": {shorten(self.repaired)}"
        if self.held:
            lines.append(f"  {self.held} batch norms stay in evaluation mode again")
        lines += [f"  cannot repair  {problem}" for problem in self.problems]
        return "\n".join(lines)

    __repr__ = __str__  # what a cell of a notebook shows


def repair(model: nn.Module) -> Repair:
    """Attach plugs again that a conversion copied along without running them.

    ``nn.SyncBatchNorm.convert_sync_batchnorm`` makes a new module and hands it the children of the
    old one: the plug is there and asleep. A conversion that drops the children, as to a frozen
    batch norm, loses the plug and its weights; that is said and cannot be repaired.

    Args:
        model: a model that was plugged and then converted; it is changed in place.

    Returns:
        What was done, and what is still wrong. Run :func:`check` to see the plugs run.

    Raises:
        UsageError: if ``model`` is no module.

    >>> import torch, torchplug as tp
    >>> from torchplug.hosts import build_model
    >>> model = build_model("torchplug:resnet8")
    >>> _ = tp.plug(model, "se", example=(1, 3, 8, 8))
    >>> model = torch.nn.SyncBatchNorm.convert_sync_batchnorm(model)
    >>> print(tp.repair(model))
    attached the plugs again at 3 places: layer1.bn2, layer2.bn2, layer3.bn2
    """
    model = unwrap(model)
    repaired = tuple(path for path, module in list(model.named_modules()) if reattach(module))
    loose = find_loose_norms(model)
    for norm in loose:
        hold(norm)
    problems = tuple(find_losses(model, recall(model)))
    return Repair(repaired=repaired, held=len(loose), problems=problems)
