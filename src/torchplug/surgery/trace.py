"""Run a model once and record what happened: every operation, and which module calls it was in.

The record is made under a ``TorchFunctionMode`` together with torch's global module hooks, so the
model gets no hook of its own and needs no graph capture. Function mode, not dispatch mode: it
sees ``F.interpolate`` or ``cat`` as the one operation that the author wrote.
"""

import contextlib
import dataclasses
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules import module as module_hooks
from torch.overrides import TorchFunctionMode

from torchplug.errors import TorchplugError, UsageError, explain

Arguments = tuple[tuple[Any, ...], dict[str, Any]]


@dataclass(frozen=True)
class Call:
    """One run of one module: its path and the how-manieth run it is, from 1."""

    path: str
    run: int


@dataclass(eq=False, slots=True)
class Value:
    """A tensor at one moment: an in-place operation makes a new value of the same tensor."""

    index: int
    op: str
    shape: tuple[int, ...]
    calls: tuple[Call, ...]
    """The module calls it was made in, outermost first."""

    inputs: tuple["Value", ...]
    from_example: bool
    """Whether it depends on the model's input; weights and constants do not."""

    layout: str | None = None
    """``"NCHW"`` or ``"NHWC"`` where an operation fixed it."""

    users: list["Value"] = field(default_factory=list)
    producers: list[Call] = field(default_factory=list)
    """Module calls whose whole output it is, innermost first."""

    dtype: torch.dtype | None = None
    device: torch.device | None = None
    alone: bool = True
    """Whether the operation returned this tensor and nothing else."""

    operands: tuple["Value | None", ...] = ()
    """The operation's own arguments in their order; ``None`` for what is no tensor."""

    @property
    def is_map(self) -> bool:
        """Whether it is a feature map: four dimensions, made from the input."""
        return self.from_example and len(self.shape) == 4

    @property
    def channels(self) -> int:
        """Width of the map."""
        return self.shape[3] if self.layout == "NHWC" else self.shape[1]

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of the map."""
        return self.shape[1:3] if self.layout == "NHWC" else self.shape[2:4]  # type: ignore[return-value]

    def is_inside(self, call: Call) -> bool:
        """Whether it was made during ``call``."""
        return call in self.calls


@dataclass(frozen=True)
class Group:
    """Maps that a module call returned together, or received together in one argument."""

    index: int
    """How many values there were when it was seen."""

    values: tuple[Value, ...]
    call: Call | None = None
    """The call that returned them; ``None`` if a call received them."""


@dataclass(frozen=True)
class Trace:
    """The record of one forward."""

    values: list[Value]
    runs: Counter[str]
    """How often each module ran."""

    entries: dict[Call, Value]
    """The first tensor that each call received."""

    groups: list[Group]
    output: Any
    returned: frozenset[Value]
    """The values in the model's output."""

    @property
    def maps(self) -> list[Value]:
        """All feature maps, in order of execution."""
        return [value for value in self.values if value.is_map]


def read_example(example: Any, model: nn.Module) -> Arguments:
    """Return the arguments of the forward that ``example`` stands for.

    A shape becomes a random tensor on the model's device and in its type (seeded, so the same
    each time); a tensor is the only argument; a tuple or list holds positional arguments; a dict
    holds keyword arguments; a pair of a tuple and a dict holds both.
    """
    if _is_pair(example):
        return tuple(example[0]), dict(example[1])
    if isinstance(example, Tensor):
        return (example,), {}
    if isinstance(example, Mapping):
        return (), dict(example)
    if isinstance(example, (tuple, list)) and example:
        if not all(isinstance(size, int) for size in example):
            return tuple(example), {}
        if min(example) >= 1:
            return (_random_input(tuple(example), model),), {}
    text = explain(
        "an example is a shape such as (1, 3, 224, 224), a tensor, or the arguments of forward",
        f"{type(example).__name__} {example!r}",
        "pass the shape of a small batch",
    )
    raise UsageError(text)


def _is_pair(example: Any) -> bool:
    """Whether it is ``(args, kwargs)``; a list of images and a dict are two arguments."""
    return (
        isinstance(example, tuple)
        and len(example) == 2
        and isinstance(example[0], tuple)
        and isinstance(example[1], Mapping)
    )


def _random_input(shape: tuple[int, ...], model: nn.Module) -> Tensor:
    weights = [p for p in model.parameters() if p.is_floating_point()]
    like = weights[0] if weights else torch.empty(0)
    values = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    return values.to(device=like.device, dtype=like.dtype)


@contextlib.contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Put every module into evaluation mode, and each back into its own mode afterwards.

    The global random state is restored too, for hosts that draw even then.
    """
    modes = [(module, module.training) for module in model.modules()]
    with torch.random.fork_rng():
        try:
            model.eval()
            yield
        finally:
            for module, training in modes:
                module.training = training


def record(model: nn.Module, arguments: Arguments) -> Trace:
    """Run ``model`` once in evaluation mode without gradients and record every operation."""
    recorder = _Recorder(model, arguments)
    with evaluating(model), torch.no_grad(), recorder.hooked(), recorder:
        output = model(*arguments[0], **arguments[1])
    _settle_layouts(recorder.values)
    return Trace(
        recorder.values,
        recorder.runs,
        recorder.entries,
        recorder.groups,
        output,
        recorder.known(output),
    )


def record_host(model: nn.Module, arguments: Arguments) -> Trace:
    """Record a run of a model of the user's on the user's example.

    Raises:
        UsageError: if the model itself fails on it, or a call of it runs another object.
    """
    try:
        trace = record(model, arguments)
    except TorchplugError:
        raise
    except Exception as error:
        shapes = ", ".join(str(tuple(tensor.shape)) for tensor in tensors_in(arguments)[:4])
        text = explain(
            "the model must run on the example",
            f"{type(error).__name__}: {error}, from {type(model).__name__} itself on {shapes}",
            "pass the shape of a small batch, or the arguments, that model(…) accepts",
        )
        raise UsageError(text) from error
    if not trace.runs[""]:
        inner = [f"model.{name}" for name, part in model.named_children() if [*part.parameters()]]
        text = explain(
            "a call of a host must run the module itself",
            f"{type(model).__name__}, a front that runs its network in its own way",
            f"pass the network inside{f', such as {inner[0]}' if inner else ''}",
        )
        raise UsageError(text)
    return trace


class _Recorder(TorchFunctionMode):
    """Builds the list of values while a model runs."""

    def __init__(self, model: nn.Module, arguments: Arguments) -> None:
        super().__init__()
        self.paths: dict[int, str] = {}
        for path, module in model.named_modules(remove_duplicate=False):
            self.paths.setdefault(id(module), path)
        self.values: list[Value] = []
        self.runs: Counter[str] = Counter()
        self.entries: dict[Call, Value] = {}
        self.groups: list[Group] = []
        self._stack: list[Call] = []
        self._current: dict[int, Value] = {}
        self._alive: list[Tensor] = []  # a freed tensor's id would be reused
        for tensor in tensors_in(arguments):
            self._add("input", tensor, (), from_example=True)

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        name = getattr(func, "__name__", str(func))
        if name in {"__get__", "__set__"}:  # reading an attribute such as .shape
            return func(*args, **kwargs)
        inputs = tuple(self._value(tensor) for tensor in tensors_in((args, kwargs)))
        own = (*args, *kwargs.values())
        operands = tuple(self._value(x) if isinstance(x, Tensor) else None for x in own)
        result = func(*args, **kwargs)
        made = tensors_in(result)
        for tensor in made:
            value = self._add(
                name, tensor, inputs, from_example=any(v.from_example for v in inputs)
            )
            value.layout = _find_layout(value, args)
            value.alone, value.operands = result is made[0], operands
        return result

    def _value(self, tensor: Tensor) -> Value:
        known = self._current.get(id(tensor))
        return known or self._add("constant", tensor, (), from_example=False)

    def _add(
        self, op: str, tensor: Tensor, inputs: tuple[Value, ...], *, from_example: bool
    ) -> Value:
        value = Value(
            index=len(self.values),
            op=op,
            shape=tuple(tensor.shape),
            calls=tuple(self._stack),
            inputs=inputs,
            from_example=from_example,
            dtype=tensor.dtype,
            device=tensor.device,
        )
        self.values.append(value)
        self._current[id(tensor)] = value
        self._alive.append(tensor)
        for parent in inputs:
            parent.users.append(value)
        return value

    def known(self, tree: Any) -> frozenset[Value]:
        """Return the values of the tensors in ``tree`` that were recorded."""
        found = (self._current.get(id(tensor)) for tensor in tensors_in(tree))
        return frozenset(value for value in found if value is not None)

    @contextlib.contextmanager
    def hooked(self) -> Iterator[None]:
        """Follow the calls of the model's modules by torch's global hooks."""
        before = module_hooks.register_module_forward_pre_hook(self._enter)
        after = module_hooks.register_module_forward_hook(self._leave)
        try:
            yield
        finally:
            before.remove()
            after.remove()

    def _enter(self, module: nn.Module, args: tuple[Any, ...]) -> None:
        path = self.paths.get(id(module))
        if path is None:
            return
        self.runs[path] += 1
        call = Call(path, self.runs[path])
        received = tensors_in(args)
        if received:
            self.entries[call] = self._value(received[0])
        for argument in args:
            self._note_group(argument)
        self._stack.append(call)

    def _leave(self, module: nn.Module, args: Any, output: Any) -> None:  # noqa: ARG002
        if id(module) not in self.paths:
            return
        call = self._stack.pop()
        if isinstance(output, Tensor):
            self._value(output).producers.append(call)
        else:
            self._note_group(output, call)

    def _note_group(self, tree: Any, call: Call | None = None) -> None:
        """Remember the maps of a list, a mapping or a dataclass; of arguments if several."""
        if isinstance(tree, Tensor):
            return
        maps = tuple(
            self._current[id(tensor)]
            for tensor in tensors_in(tree)
            if id(tensor) in self._current and self._current[id(tensor)].is_map
        )
        if len(maps) > 1 or (maps and call is not None):
            self.groups.append(Group(len(self.values), maps, call))


def tensors_in(tree: Any) -> list[Tensor]:
    """Return the tensors in nested tuples, lists, mappings and dataclasses, in order."""
    if isinstance(tree, Tensor):
        return [tree]
    if isinstance(tree, Mapping):  # the outputs of transformers are mappings too
        tree = list(tree.values())
    elif dataclasses.is_dataclass(tree) and not isinstance(tree, (type, nn.Module)):
        tree = [getattr(tree, part.name) for part in dataclasses.fields(tree)]
    if isinstance(tree, (tuple, list)):
        return [tensor for branch in tree for tensor in tensors_in(branch)]
    return []


_NCHW_OPS = {"conv2d", "conv_transpose2d", "batch_norm", "interpolate", "adaptive_avg_pool2d"}
_PERMUTATIONS = {(0, 2, 3, 1): "NHWC", (0, 3, 1, 2): "NCHW"}


def _find_layout(value: Value, args: tuple[Any, ...]) -> str | None:
    """Say where a map's channels are, from the operation or from its inputs."""
    if not value.is_map:
        return None
    if value.op in _NCHW_OPS:
        return "NCHW"
    if value.op == "permute":
        dims = args[1] if isinstance(args[1], (tuple, list)) else args[1:]
        return _PERMUTATIONS.get(tuple(dims))
    if value.op == "linear" or (value.op == "layer_norm" and _is_over_last_axis(args)):
        return "NHWC"
    if value.op in {"view", "reshape"} and any(_lays_out(source, value) for source in value.inputs):
        return "NHWC"
    return _inherit(value)


def _lays_out(rows: Value, value: Value) -> bool:
    """Whether ``(N, H * W, C)`` became ``(N, H, W, C)``."""
    batch, height, width, channels = value.shape
    return rows.shape == (batch, height * width, channels)


def _is_over_last_axis(args: tuple[Any, ...]) -> bool:
    return len(args) > 1 and isinstance(args[1], (tuple, list)) and len(args[1]) == 1


def _inherit(value: Value) -> str | None:
    if value.op == "permute":  # unlike its input
        return None
    return next((v.layout for v in value.inputs if v.is_map and v.layout), None)


def _settle_layouts(values: list[Value]) -> None:
    """Give a map whose origin says nothing, such as a ``view``, the layout that its users need."""
    for value in reversed(values):
        if value.is_map and value.layout is None:
            told = (_needed_by(user, value) for user in value.users)
            value.layout = next((layout for layout in told if layout), None)
    for value in values:
        if value.is_map and value.layout is None:
            value.layout = _inherit(value)


def _needed_by(user: Value, value: Value) -> str | None:
    if user.op == "permute":
        return {"NCHW": "NHWC", "NHWC": "NCHW"}.get(user.layout or "")
    is_fixed = user.op in _NCHW_OPS or user.op in {"linear", "layer_norm"}
    return user.layout if is_fixed or user.shape == value.shape else None
