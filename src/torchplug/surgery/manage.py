"""Live with a plugged model: switch plugs off, freeze the base, list what trains."""

import contextlib
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from torchplug.errors import PlugError, UsageError, explain
from torchplug.surgery.attach import Holder
from torchplug.surgery.parts import Parts

_FROZEN = "_torchplug_frozen"
_MODE = "train"
_SWITCH = threading.Lock()


@contextlib.contextmanager
def disabled(model: nn.Module) -> Iterator[None]:
    """Switch every plug of ``model`` off: inside, it computes what the base computes.

    Contexts may be nested, and an exception leaves the plugs on. The switch belongs to the model:
    another thread that runs the same model sees the base too. A compiled model is compiled once
    more for the base. A copy that is made inside has its plugs on.

    Args:
        model: a plugged model, also compiled or wrapped for distributed training.

    >>> import torch, torchplug as tp
    >>> from torchplug.hosts import build_model
    >>> model, x = build_model("torchplug:resnet8").eval(), torch.randn(1, 3, 8, 8)
    >>> base = model(x)
    >>> _ = tp.plug(model, "se", example=(1, 3, 8, 8), start="paper")
    >>> with tp.disabled(model):
    ...     same = model(x)
    >>> torch.equal(same, base), torch.equal(model(x), base)
    (True, False)
    """
    holders = [module for module in model.modules() if isinstance(module, Holder)]
    with _SWITCH:
        for holder in holders:
            holder.disabled += 1
    try:
        yield
    finally:
        with _SWITCH:
            for holder in holders:
                holder.disabled -= 1
                if not holder.disabled:
                    del holder.disabled  # back to the class's own value: as if never touched


def named_plug_parameters(model: nn.Module) -> list[tuple[str, nn.Parameter]]:
    """Return the parameters of the plugs, and of nothing else, with their names in ``model``.

    Each parameter comes once, under its first name. One that the base uses too belongs to the
    base and is left out.

    >>> import torchplug as tp
    >>> from torchplug.hosts import build_model
    >>> model = build_model("torchplug:resnet8")
    >>> _ = tp.plug(model, "se", "layer1", example=(1, 3, 8, 8))
    >>> [name for name, _ in tp.named_plug_parameters(model)][0]
    'layer1.torchplug.se.gain'
    """
    base = {id(parameter) for _, parameter in _base_parameters(model)}
    return [
        (name, parameter)
        for name, parameter in model.named_parameters()
        if id(parameter) not in base
    ]


def plug_parameters(model: nn.Module) -> list[nn.Parameter]:
    """Return the parameters of the plugs, and of nothing else, each once: for an optimizer.

    One that the base uses too belongs to the base and is left out.

    >>> import torch, torchplug as tp
    >>> from torchplug.hosts import build_model
    >>> model = build_model("torchplug:resnet8")
    >>> report = tp.plug(model, "se", example=(1, 3, 8, 8))
    >>> optimizer = torch.optim.SGD(tp.plug_parameters(model), lr=0.1)
    >>> added = report.module_parameters + report.gate_parameters
    >>> sum(p.numel() for p in tp.plug_parameters(model)) == added
    True
    """
    return [parameter for _, parameter in named_plug_parameters(model)]


def _base_parameters(model: nn.Module) -> list[tuple[str, nn.Parameter]]:
    """Every parameter that is reached without going through a holder, under its first name."""
    parts = Parts(model)
    first: dict[int, tuple[str, nn.Parameter]] = {}
    for name, value in model.named_parameters(remove_duplicate=False):
        if not parts.is_plug(name):
            first.setdefault(id(value), (name, value))
    return list(first.values())


@dataclass(frozen=True, kw_only=True)
class Freeze:
    """What :func:`freeze_base` or :func:`unfreeze_base` did; prints as one sentence."""

    tensors: int
    """Parameter tensors of the base whose ``requires_grad`` changed."""

    parameters: int
    """Elements of these tensors."""

    batch_norms: int
    """Batch norms of the base that stay in evaluation mode, or follow the model's mode again."""

    frozen: bool

    def __str__(self) -> str:
        verb, mode = ("froze", "stay in evaluation mode") if self.frozen else ("freed", "are free")
        return (
            f"{verb} {self.parameters:,} parameters in {self.tensors} tensors of the base; "
            f"{self.batch_norms} batch norms {mode}"
        )


def freeze_base(model: nn.Module, bn: Literal["eval", "train"] = "eval") -> Freeze:
    """Let only the plugs train: no parameter of the base keeps its gradient.

    The head of the base is base too: free a new one with ``model.fc.requires_grad_(True)``.
    The freeze is kept by deepcopy and pickle, and ends with :func:`unfreeze_base`.

    Args:
        model: a plugged model.
        bn: ``"eval"`` keeps the base's batch norms in evaluation mode, whatever ``model.train()``
            says: their statistics stay. ``"train"`` lets them follow the model's mode, which
            moves their statistics. Batch norms inside plugs always follow.

    Returns:
        How much was frozen.

    Raises:
        PlugError: if the model has no plugs: nothing would be left to train.
        UsageError: if ``bn`` is neither word.

    >>> import torchplug as tp
    >>> from torchplug.hosts import build_model
    >>> model = build_model("torchplug:resnet8")
    >>> _ = tp.plug(model, "se", example=(1, 3, 8, 8))
    >>> print(tp.freeze_base(model))
    froze 78,042 parameters in 29 tensors of the base; 9 batch norms stay in evaluation mode
    >>> model.train().bn1.training
    False
    """
    if bn not in {"eval", "train"}:
        text = explain("bn is one of two words", repr(bn), "choose 'eval' or 'train'")
        raise UsageError(text)
    if not any(isinstance(module, Holder) for module in model.modules()):
        text = explain(
            "freezing the base leaves the plugs to train",
            "a model without plugs",
            "plug first, or use model.requires_grad_(False)",
        )
        raise PlugError(text)
    chosen = [(name, value) for name, value in _base_parameters(model) if value.requires_grad]
    for _, value in chosen:
        value.requires_grad_(False)
    names = [*model.__dict__.get(_FROZEN, {"names": []})["names"], *(name for name, _ in chosen)]
    model.__dict__[_FROZEN] = {"names": names, "bn": bn}
    norms = _base_norms(model)
    for norm in norms:
        (hold if bn == "eval" else _release)(norm)
    held = len(norms) if bn == "eval" else 0
    size = sum(value.numel() for _, value in chosen)
    return Freeze(tensors=len(chosen), parameters=size, batch_norms=held, frozen=True)


def unfreeze_base(model: nn.Module) -> Freeze:
    """Undo :func:`freeze_base`: what it froze trains again, and batch norms follow the model.

    Parameters that did not train before the freeze still do not.

    Args:
        model: the model that was frozen, or a wrapper around it.

    Returns:
        How much was freed.

    Raises:
        UsageError: if neither the model nor a part of it was frozen by :func:`freeze_base`.

    >>> import torchplug as tp
    >>> from torchplug.hosts import build_model
    >>> model = build_model("torchplug:resnet8")
    >>> _ = tp.plug(model, "se", example=(1, 3, 8, 8))
    >>> _ = tp.freeze_base(model)
    >>> tp.unfreeze_base(model).tensors
    29
    """
    roots = [module for module in model.modules() if _FROZEN in module.__dict__]
    if not roots:
        text = explain(
            "only a frozen base can be freed",
            f"{type(model).__name__}, which freeze_base was not called on",
            "pass the model that was frozen",
        )
        raise UsageError(text)
    freed: list[Any] = []
    norms = 0
    for root in roots:
        parameters = dict(root.named_parameters(remove_duplicate=False))
        names = root.__dict__.pop(_FROZEN)["names"]
        freed += [parameters[name].requires_grad_(True) for name in names if name in parameters]
        for norm in _base_norms(root):
            if _release(norm):
                norm.training = root.training
                norms += 1
    size = sum(value.numel() for value in freed)
    return Freeze(tensors=len(freed), parameters=size, batch_norms=norms, frozen=False)


def _base_norms(model: nn.Module) -> list[nn.Module]:
    parts = Parts(model)
    norms = {
        id(module): module
        for path, module in model.named_modules(remove_duplicate=False)
        if isinstance(module, _BatchNorm) and not parts.is_plug(path)
    }
    return list(norms.values())


def find_loose_norms(model: nn.Module) -> list[nn.Module]:
    """Return the batch norms that a frozen base should hold in evaluation mode, and does not.

    A conversion makes new ones, which follow the model's mode.
    """
    roots = [m for m in model.modules() if m.__dict__.get(_FROZEN, {}).get("bn") == "eval"]
    return [norm for root in roots for norm in _base_norms(root) if not _is_held(norm)]


class _StayInEvaluation:
    """Stands in for ``train`` of one batch norm.

    An attribute of the instance, not a class or a hook: it goes along with deepcopy and pickle,
    leaves ``type(norm)`` alone, and compiled graphs only read ``norm.training``.
    """

    def __init__(self, module: nn.Module) -> None:
        self.module = module

    def __call__(self, mode: bool = True) -> nn.Module:
        """Stay in evaluation mode; the plugs on this norm follow ``mode``."""
        self.module.training = False
        for child in self.module.children():
            child.train(mode)
        return self.module


def _is_held(norm: nn.Module) -> bool:
    return isinstance(norm.__dict__.get(_MODE), _StayInEvaluation)


def hold(norm: nn.Module) -> None:
    """Keep a batch norm in evaluation mode from now on."""
    if not _is_held(norm):
        norm.__dict__[_MODE] = _StayInEvaluation(norm)
    norm.training = False


def _release(norm: nn.Module) -> bool:
    """Let a batch norm follow its model again; say whether it was held."""
    if not _is_held(norm):
        return False
    del norm.__dict__[_MODE]
    return True
