"""Attach modules to a host's module without renaming anything: behind it, in its place, before it.

The host's module changes its class to a subclass made for it, and gets one child, the holder,
which owns the plugs. Its own parameters keep their names, ``isinstance`` still holds, and the plug
survives deepcopy, pickle, ``torch.compile`` and export. A forward hook or a wrapper does not:
hooks vanish silently when a host rebuilds its layers, wrappers rename every weight.
"""

import types
from collections import OrderedDict
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import handle_torch_function

from torchplug.errors import PlugError, explain
from torchplug.surgery.intake import Intake
from torchplug.surgery.plan import Plan
from torchplug.surgery.replace import HOLDER as HOLDER
from torchplug.surgery.replace import Replacement

_OWN_FORWARD = "_torchplug_forward"


class Holder(nn.Module):
    """Owns the plugs of one module, in the order in which they run.

    Its own forward is the identity, because some hosts call every child of a module in turn.
    """

    disabled: int = 0
    """How many open ``tp.disabled`` contexts switch the plugs off."""

    def __init__(self) -> None:
        super().__init__()
        # plain data, not state: no key of a checkpoint changes, and copies and pickles carry it
        self.plans: dict[str, Plan] = {}
        """What each plug was made from, as a plan of one plug, so that a file can repeat it."""

    def forward(self, x: Tensor) -> Tensor:
        """Return ``x``: the plugs run in :meth:`apply_plugs` only."""
        return x

    def take_in(self, args: Any, kwargs: Any) -> tuple[Any, Any]:
        """Pass the arguments of the host's module through the plugs before it."""
        for plug in self._modules.values():
            if isinstance(plug, Intake):
                args, kwargs = plug(args, kwargs)
        return args, kwargs

    def find_replacement(self) -> Replacement | None:
        """Return the plug in the place of the host's module, if there is one."""
        for plug in self._modules.values():
            if isinstance(plug, Replacement):
                return plug
        return None

    def at_output(self) -> list[nn.Module]:
        """Return the plugs that run on the module's output."""
        return [plug for plug in self.children() if not isinstance(plug, (Replacement, Intake))]

    def place_of(self, key: str) -> tuple[str, str]:
        """Return what follows the module's path in the anchor of a plug, and the plug's name."""
        return "", key

    def apply_plugs(self, x: Tensor) -> Tensor:
        """Pass ``x`` through the plugs behind the host's module."""
        for plug in self.at_output():
            x = self.apply_one(plug, x)
        return x

    @staticmethod
    def apply_one(plug: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
        """Run one plug; a function mode sees it as one operation, not as the host's own."""
        if torch._C._len_torch_function_stack() > 0:
            return handle_torch_function(Holder.apply_one, (x,), plug, x)
        return plug(x)

    @staticmethod
    def stand_in(replacement: Replacement, old: Tensor | None, x: Tensor) -> Tensor:
        """Run a replacement; a function mode sees one operation that mixes, as a convolution."""
        if torch._C._len_torch_function_stack() > 0:
            given = (x,) if old is None else (x, old)
            return handle_torch_function(Holder.stand_in, given, replacement, old, x)
        return replacement(old, x)

    def __getstate__(self) -> dict[str, Any]:
        # a copy made inside ``tp.disabled`` would never be switched on again
        return {key: value for key, value in self.__dict__.items() if key != "disabled"}


class _Plugged:
    """What the class of a plugged module adds to the host's own class.

    Each method answers something that a host or a tool was seen to do.
    """

    _torchplug_class: type[nn.Module]
    torchplug: Holder
    _modules: dict[str, nn.Module | None]

    def __new__(cls, *args: Any, **kwargs: Any) -> Any:
        # `type(module)(...)` in a host or a library means its own class; replication and copy
        # protocols call `__new__` alone and mean a plugged one.
        original = cls._torchplug_class
        if args or kwargs:
            return original(*args, **kwargs)
        return object.__new__(cls)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        own = getattr(super(), self.__dict__.get(_OWN_FORWARD, "forward"))
        holder: Any = self._modules.get(HOLDER)
        if holder is None or holder.disabled:
            return own(*args, **kwargs)
        args, kwargs = holder.take_in(args, kwargs)
        replacement = holder.find_replacement()
        if replacement is None:
            return holder.apply_plugs(own(*args, **kwargs))
        old = own(*args, **kwargs) if replacement.runs_host else None
        x = args[0] if args else next(iter(kwargs.values()))
        return holder.apply_plugs(holder.stand_in(replacement, old, x))

    def __setattr__(self, name: str, value: Any) -> None:
        # A host that fuses its layers assigns another of its methods as forward: run that one,
        # and the plugs after it. A foreign callable is stored; it decides by itself.
        is_own_method = isinstance(value, types.MethodType) and value.__self__ is self
        if name == "forward" and is_own_method:
            is_defined = getattr(type(self), value.__name__, None) == value.__func__
            if value.__name__ != "forward" and is_defined:
                self.__dict__[_OWN_FORWARD] = value.__name__
                return
            if is_defined:
                self.__dict__.pop(_OWN_FORWARD, None)
                return
        if name in ("weight", "bias") and isinstance(self, nn.Conv2d):
            holder: Any = self._modules.get(HOLDER)
            replacement = holder.find_replacement() if holder is not None else None
            if replacement is not None:
                replacement.follow(self, name, value)
        super().__setattr__(name, value)

    def __prepare_scriptable__(self) -> Any:
        """Refuse ``torch.jit.script``, which asks here and then reads the host's own source."""
        text = explain(
            "torch.jit.script compiles the source of a class, which has no plugs",
            f"a plugged {self._torchplug_class.__name__}",
            "use torch.export or torch.compile, or torch.jit.trace for an old runtime",
        )
        raise PlugError(text)

    def __reduce_ex__(self, protocol: Any) -> Any:
        # the subclass is made at run time: another process makes it again from the host's class
        return _rebuild, (self._torchplug_class,), self.__getstate__()


class _PluggedSequential(_Plugged):
    """A container that counts, iterates and slices as before: the holder is not one of its own."""

    def _own_children(self) -> "OrderedDict[str, nn.Module | None]":
        return OrderedDict((k, child) for k, child in self._modules.items() if k != HOLDER)

    def __iter__(self) -> Iterator[nn.Module | None]:
        return iter(self._own_children().values())

    def __len__(self) -> int:
        return len(self._own_children())

    def __getitem__(self, index: Any) -> Any:
        children = self._own_children()
        if isinstance(index, slice):
            return self._torchplug_class(OrderedDict(list(children.items())[index]))
        return list(children.values())[index]


class _PluggedDict(_Plugged):
    """A mapping of modules without the holder: dense blocks call every entry in turn."""

    def _own_children(self) -> "dict[str, nn.Module | None]":
        return {k: child for k, child in self._modules.items() if k != HOLDER}

    def __iter__(self) -> Iterator[str]:
        return iter(self._own_children())

    def __len__(self) -> int:
        return len(self._own_children())

    def __contains__(self, key: str) -> bool:
        return key in self._own_children()

    def keys(self) -> Any:
        """Return the names of the host's own entries."""
        return self._own_children().keys()

    def items(self) -> Any:
        """Return the host's own entries."""
        return self._own_children().items()

    def values(self) -> Any:
        """Return the modules of the host's own entries."""
        return self._own_children().values()


def mixin_for(original: type[nn.Module], plain: type, sequential: type, mapping: type) -> type:
    """Choose what a plugged class adds: containers must not count the holder."""
    if issubclass(original, nn.Sequential):
        return sequential
    return mapping if issubclass(original, nn.ModuleDict) else plain


_CLASSES: dict[type[nn.Module], Any] = {}


def _plugged_class(original: type[nn.Module]) -> Any:
    """The subclass of a host's class that runs plugs, made once; it bears the host's name."""
    if original not in _CLASSES:
        mixin = mixin_for(original, _Plugged, _PluggedSequential, _PluggedDict)
        _CLASSES[original] = make_class(original, mixin)
    return _CLASSES[original]


def make_class(original: type[nn.Module], mixin: type) -> Any:
    """Return a subclass of a host's class with what ``mixin`` adds, under the host's name."""
    members = {
        "_torchplug_class": original,
        "__module__": original.__module__,
        "__qualname__": original.__qualname__,
        "__doc__": original.__doc__,
    }
    return type(original.__name__, (mixin, original), members)


def _rebuild(original: type[nn.Module]) -> Any:
    return object.__new__(_plugged_class(original))


def is_plugged(module: nn.Module) -> bool:
    """Whether plugs are attached to this module itself."""
    return isinstance(module, _Plugged)


def attach(module: nn.Module, name: str, plug: nn.Module, planned: Plan | None = None) -> None:
    """Run ``plug`` with ``module`` from now on, after the plugs it already has.

    A :class:`Replacement` stands in the module's place, an :class:`Intake` changes what the module
    receives, any other plug changes what it returns. ``planned`` is the plan of this one plug;
    without it the model cannot be saved as plugs.
    """
    if not is_plugged(module):
        module.add_module(HOLDER, Holder())
        module.__class__ = _plugged_class(type(module))
    holder: Any = module._modules[HOLDER]
    if isinstance(plug, Replacement):
        other = holder.find_replacement()
        if other is not None:
            text = explain(
                "one plug stands in the place of a module",
                f"a second one, {name!r}",
                "take the first one out with unplug",
            )
            raise PlugError(text)
        plug.take_over(module)
    holder.add_module(name, plug)
    if planned is not None:
        holder.plans[name] = planned
    holder.train(module.training)


def reattach(module: nn.Module) -> bool:
    """Run the plugs again that a conversion copied along as a mere child; say if there were any."""
    holder = module._modules.get(HOLDER)
    if is_plugged(module) or not isinstance(holder, Holder) or not holder._modules:
        return False
    module.__class__ = _plugged_class(type(module))
    return True


def detach(module: nn.Module, name: str) -> None:
    """Remove one plug; with the last one the module gets its own class back."""
    holder: Any = module._modules[HOLDER]
    plug = holder._modules.pop(name)
    holder.plans.pop(name, None)
    if isinstance(plug, Replacement):
        plug.release(module)
    if not holder._modules:
        del module._modules[HOLDER]
        own = module.__dict__.pop(_OWN_FORWARD, None)
        module.__class__ = type(module)._torchplug_class  # type: ignore[attr-defined]
        if own is not None:  # what the host had asked for while it was plugged
            module.forward = getattr(module, own)


def find_plugs(model: nn.Module) -> list[tuple[str, str, nn.Module]]:
    """Return every plug as (anchor, name, module), in the order of the model.

    The anchor is the path of the plugged module, or for a plug at an operation the path and the
    operation: ``features!relu#0``.
    """
    return [
        (path + suffix, name, plug)
        for path, module in model.named_modules()
        if is_plugged(module)
        for suffix, name, plug in _places_in(module._modules[HOLDER])
    ]


def _places_in(holder: Any) -> list[tuple[str, str, nn.Module]]:
    return [(*holder.place_of(key), plug) for key, plug in holder.named_children()]
