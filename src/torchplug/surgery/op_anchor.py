"""Attach a plug to an operation, where no module carries the place.

The text of such an anchor is ``path!op#k``: the result of the k-th call of ``op``, from 0, while
the module at ``path`` runs (``features!relu#0``; ``!relu#0`` in the model itself). With ``.i`` it
is the i-th operand of that call: ``layer1.0!add#0.1`` is the second summand. Calls count that
return a map (four axes), those of the children included, those of plugs not; ``+``, ``+=`` and
``add`` are all ``add``.

The module at ``path`` changes its class as :mod:`torchplug.surgery.attach` does, and runs its own
forward under a function mode that hands the result or the operand to the plug. Capture by
``torch.fx`` and strict export would drop the mode in silence: the forward refuses them.
"""

import re
from collections import Counter
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from torchplug.errors import PlugError, explain
from torchplug.nn import is_exporting
from torchplug.surgery.attach import (
    HOLDER,
    Holder,
    _Plugged,
    _plugged_class,
    _PluggedDict,
    _PluggedSequential,
    attach,
    detach,
    make_class,
    mixin_for,
)
from torchplug.surgery.plan import Plan

_TEXT = re.compile(r"(?P<path>[^!]*)!(?P<op>\w+)#(?P<call>\d+)(?:\.(?P<operand>\d+))?")
_FAMILIES = {"iadd": "add", "radd": "add", "imul": "mul", "rmul": "mul"} | {
    "concat": "cat",
    "concatenate": "cat",
}


def family(op: str) -> str:
    """Return the name under which an operation is counted.

    >>> family("__iadd__"), family("relu_"), family("concatenate")
    ('add', 'relu', 'cat')
    """
    name = op.strip("_")
    return _FAMILIES.get(name, name)


@dataclass(frozen=True)
class OpPoint:
    """The result or an operand of one call of an operation inside one module."""

    path: str
    op: str
    call: int
    operand: int | None = None

    def __str__(self) -> str:
        return self.path + self.suffix

    @property
    def suffix(self) -> str:
        """The text without the path."""
        return f"!{self.op}#{self.call}" + ("" if self.operand is None else f".{self.operand}")

    def key(self, name: str) -> str:
        """Name of the child that holds the plug ``name``: one module may have several points."""
        parts = [name, self.op, str(self.call)]
        return "_".join(parts if self.operand is None else [*parts, str(self.operand)])


def parse_anchor(anchor: str) -> OpPoint | None:
    """Return the operation that an anchor's text means; None for the path of a module.

    >>> str(parse_anchor("features!relu#0")), parse_anchor("layer1.0")
    ('features!relu#0', None)
    """
    match = _TEXT.fullmatch(anchor)
    if match is None:
        return None
    operand = match["operand"]
    return OpPoint(
        match["path"], match["op"], int(match["call"]), None if operand is None else int(operand)
    )


class OpHolder(Holder):
    """Owns the plugs of one module, of which some sit at operations inside its forward."""

    def __init__(self) -> None:
        super().__init__()
        self.points: dict[str, tuple[OpPoint, str]] = {}
        """Child → the operation it sits at, and the name that the user gave."""
        self.counts: dict[str, int] = {}
        """How often each operation ran in the first forward: places are counted by it."""

    def at_output(self) -> list[nn.Module]:
        """Return the plugs that run on the module's output."""
        elsewhere = {id(self._modules[key]) for key in self.points}
        return [plug for plug in super().at_output() if id(plug) not in elsewhere]

    def place_of(self, key: str) -> tuple[str, str]:
        """Return what follows the module's path in the anchor of a plug, and the plug's name."""
        if key not in self.points:
            return super().place_of(key)
        point, name = self.points[key]
        return point.suffix, name


class _OpMode(TorchFunctionMode):
    """Hands results and operands of the counted calls to the plugs while one forward runs."""

    def __init__(self, holder: OpHolder) -> None:
        super().__init__()
        self.holder = holder
        self.wanted: dict[tuple[str, int, int | None], list[str]] = {}
        for key, (point, _) in holder.points.items():  # several plugs at one point run in order
            self.wanted.setdefault((point.op, point.call, point.operand), []).append(key)
        self.names = {point.op for point, _ in holder.points.values()}
        self.calls: Counter[str] = Counter()
        self.done: list[str] = []
        self.with_grad = torch.is_grad_enabled()

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        op = family(getattr(func, "__name__", ""))
        if op not in self.names:
            return func(*args, **kwargs)
        call = self.calls[op]
        if _has_map((*args, *kwargs.values())):
            args, kwargs = self._plug_operands(op, call, args, kwargs)
        result = func(*args, **kwargs)
        if not _is_map(result):
            return result
        self.calls[op] += 1
        return self._run((op, call, None), result)

    def _plug_operands(
        self, op: str, call: int, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        values = [*args, *kwargs.values()]
        for operand, value in enumerate(values):
            values[operand] = self._run((op, call, operand), value)
        return tuple(values[: len(args)]), dict(zip(kwargs, values[len(args) :], strict=True))

    def _run(self, place: tuple[str, int, int | None], x: Any) -> Any:
        for key in self.wanted.get(place, ()):
            if torch.is_grad_enabled() != self.with_grad:
                text = explain(
                    "a plug at an operation must not lie in a part that the host checkpoints",
                    f"{self.holder.points[key][0].suffix} in such a part",
                    "turn the host's checkpointing off, or plug a module",
                )
                raise PlugError(text)
            self.done.append(key)
            plug: Any = self.holder._modules[key]
            x = self.holder.apply_one(plug, x)
        return x


def _is_map(value: Any) -> bool:
    return isinstance(value, Tensor) and value.dim() == 4


def _has_map(values: tuple[Any, ...]) -> bool:
    return any(_is_map(value) for value in values)


class _OpPlugged(_Plugged):
    """What the class of a module with plugs at operations adds to the host's own class."""

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        holder = self._modules.get(HOLDER)
        if not isinstance(holder, OpHolder) or not holder.points or holder.disabled:
            return super().forward(*args, **kwargs)
        _refuse_capture(holder, args, kwargs)
        mode = _OpMode(holder)
        with mode:
            output = super().forward(*args, **kwargs)
        if len(mode.done) != len(holder.points):
            _complain(mode)
        for op in mode.names:
            if holder.counts.setdefault(op, mode.calls[op]) != mode.calls[op]:
                _complain_of_count(mode, op, is_training=self.training)  # type: ignore[attr-defined]
        return output

    def __reduce_ex__(self, protocol: Any) -> Any:
        return _rebuild, (self._torchplug_class,), self.__getstate__()


class _OpPluggedSequential(_OpPlugged, _PluggedSequential):
    """A container with plugs at operations."""


class _OpPluggedDict(_OpPlugged, _PluggedDict):
    """A mapping of modules with plugs at operations."""


def _refuse_capture(holder: OpHolder, args: Any, kwargs: Any) -> None:
    """Raise where the capture would go past the function mode and lose the plugs."""
    strict = is_exporting() and torch.compiler.is_dynamo_compiling()
    # torch.fx calls the traced module itself with one proxy for all of ``*args``
    symbolic = isinstance(args, torch.fx.Proxy) or any(
        isinstance(value, torch.fx.Proxy) for value in (*args, *kwargs.values())
    )
    if strict or symbolic:
        how = "torch.export with strict=True" if strict else "torch.fx"
        places = ", ".join(point.suffix for point, _ in holder.points.values())
        text = explain(
            "plugs at operations are lost in this kind of capture",
            f"{how} and plugs at {places}",
            "export with strict=False (the default), or plug modules only",
        )
        raise PlugError(text)


def _complain(mode: _OpMode) -> None:
    missed = [p.suffix for key, (p, _) in mode.holder.points.items() if key not in mode.done]
    text = explain(
        "each plug at an operation must run once in a forward",
        f"none of the calls {', '.join(missed)}" if missed else f"{len(mode.done)} runs",
        "the host took another way than for the example; plug a module instead",
    )
    raise PlugError(text)


def _complain_of_count(mode: _OpMode, op: str, *, is_training: bool) -> None:
    """Another number of calls may have moved the plug to another map in silence."""
    places = [p.suffix for p, _ in mode.holder.points.values() if p.op == op]
    when = "in training" if is_training else "in evaluation"
    text = explain(
        "a plug at an operation is found by counting, so each forward must call it equally often",
        f"{mode.calls[op]} calls of {op} {when}, {mode.holder.counts[op]} at first, and a plug at "
        f"{', '.join(places)}",
        "plug a module instead, or switch off what the host does in one mode only",
    )
    raise PlugError(text)


_CLASSES: dict[type[nn.Module], Any] = {}


def _op_class(original: type[nn.Module]) -> Any:
    """The subclass of a host's class that runs plugs at operations; it bears the host's name."""
    if original not in _CLASSES:
        mixin = mixin_for(original, _OpPlugged, _OpPluggedSequential, _OpPluggedDict)
        _CLASSES[original] = make_class(original, mixin)
    return _CLASSES[original]


def _rebuild(original: type[nn.Module]) -> Any:
    return object.__new__(_op_class(original))


def attach_at(
    model: nn.Module, anchor: str, name: str, plug: nn.Module, planned: Plan | None = None
) -> None:
    """Run ``plug`` at an anchor from now on: with a module, or at an operation inside one."""
    point = parse_anchor(anchor)
    if point is None:
        attach(model.get_submodule(anchor), name, plug, planned)
        return
    module = model.get_submodule(point.path)
    original = getattr(type(module), "_torchplug_class", type(module))
    holder: Any = module._modules.get(HOLDER)
    if not isinstance(holder, OpHolder):
        before = holder
        holder = OpHolder()
        if before is not None:
            holder._modules.update(before._modules)
            holder.plans.update(before.plans)
        module.add_module(HOLDER, holder)
    module.__class__ = _op_class(original)
    key = point.key(name)
    holder.points[key] = (point, name)
    holder.add_module(key, plug)
    if planned is not None:
        holder.plans[key] = planned
    holder.train(module.training)


def detach_at(model: nn.Module, anchor: str, name: str) -> None:
    """Remove one plug; with the last one the module gets its own class back."""
    point = parse_anchor(anchor)
    if point is None:
        detach(model.get_submodule(anchor), name)
        return
    module = model.get_submodule(point.path)
    holder: Any = module._modules[HOLDER]
    key = point.key(name)
    del holder.points[key]
    detach(module, key)
    if not holder.points and HOLDER in module._modules:  # plugs on the output are left
        plain = Holder()
        plain._modules.update(holder._modules)
        plain.plans.update(holder.plans)
        module.add_module(HOLDER, plain.train(holder.training))
        module.__class__ = _plugged_class(type(module)._torchplug_class)  # type: ignore[attr-defined]


def find_carrier(model: nn.Module, anchor: str) -> nn.Module:
    """Return the module that carries an anchor: itself, or the one that executes the operation."""
    point = parse_anchor(anchor)
    return model.get_submodule(anchor if point is None else point.path)


def weight_prefix(anchor: str, name: str) -> str:
    """Return the path of a plug in the plugged model.

    >>> weight_prefix("layer1", "se"), weight_prefix("!relu#0", "se")
    ('layer1.torchplug.se', 'torchplug.se_relu_0')
    """
    point = parse_anchor(anchor)
    path = anchor if point is None else point.path
    key = name if point is None else point.key(name)
    return ".".join(part for part in (path, HOLDER, key) if part)
