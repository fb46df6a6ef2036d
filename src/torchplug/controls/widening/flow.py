"""Follow channels through one recorded run: which dimensions of which weights belong together.

Every operation of the run is seen once. A convolution or linear layer reads one group of channels
and makes another; norms and depthwise convolutions keep a group; activations, pools and the like
pass it on; a sum or a product of two maps joins their groups. Whatever is not known to leave
channels apart (a concatenation, a reshape, a layer norm, the model's output) stops them, with the
reason. So nothing is assumed about names, classes or libraries.
"""

import contextlib
import copy
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.overrides import TorchFunctionMode

from torchplug.controls.widening.groups import Group, Role, Slot, join
from torchplug.surgery.trace import Arguments, tensors_in

_PASSING = {
    *("relu", "relu_", "relu6", "leaky_relu", "leaky_relu_", "elu", "selu", "celu", "gelu", "silu"),
    *("mish", "hardswish", "hardtanh", "hardsigmoid", "sigmoid", "sigmoid_", "tanh", "softplus"),
    *("hardtanh_", "clamp", "clamp_", "dropout", "dropout1d", "dropout2d", "dropout3d"),
    *("alpha_dropout", "feature_alpha_dropout", "max_pool2d", "avg_pool2d", "adaptive_avg_pool2d"),
    *("adaptive_max_pool2d", "interpolate", "contiguous", "clone", "to", "float", "half", "type"),
    *("detach", "square", "abs", "exp", "type_as", "lp_pool2d", "max_pool2d_with_indices"),
}
_MEETING = {"add", "add_", "sub", "sub_", "mul", "mul_", "div", "div_", "maximum", "minimum"}
_MEETING |= {"__add__", "__iadd__", "__radd__", "__mul__", "__imul__", "__rmul__", "__truediv__"}
_SUMS = {"add", "add_", "sub", "sub_", "__add__", "__iadd__", "__radd__"}
_POOLS = {"mean", "sum", "amax", "amin"}
_GLOBAL = {*_POOLS, "adaptive_avg_pool2d", "adaptive_max_pool2d"}


@dataclass(frozen=True)
class _Channels:
    """Where a tensor has its channels, and which."""

    group: Group
    axis: int


def find_groups(model: nn.Module, arguments: Arguments) -> list[Group]:
    """Return the groups of channels of a model, in order of execution.

    Args:
        model: a copy of it runs once in evaluation mode and, where it can, once in training mode,
            which may take another way: an auxiliary classifier reads maps in training only.
        arguments: of its forward.
    """
    copied = copy.deepcopy(model)
    flow = _Flow(copied)
    with torch.random.fork_rng(), torch.no_grad(), flow:
        output = copied.eval()(*arguments[0], **arguments[1])
        flow.stop(tensors_in(output), "the model returns them")
        with contextlib.suppress(Exception):  # a detector trains with targets only
            output = copied.train()(*_double(arguments[0]), **_double(arguments[1]))
            flow.stop(tensors_in(output), "the model returns them")
    groups = {id(group.root): group.root for group in flow.groups}
    return sorted(groups.values(), key=lambda group: group.order)


def _double(tree: Any) -> Any:
    """Make batches of two, which batch norm needs after a global pool."""
    if isinstance(tree, Tensor):
        return torch.cat([tree, tree]) if tree.ndim else tree
    if isinstance(tree, dict):
        return {name: _double(branch) for name, branch in tree.items()}
    return type(tree)(map(_double, tree)) if isinstance(tree, (tuple, list)) else tree


class _Flow(TorchFunctionMode):
    """Sees every operation of a run and keeps the channels of every tensor."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.owners: dict[int, list[tuple[nn.Module, str, str]]] = {}
        for path, module in model.named_modules():
            tensors = [*module._parameters.items(), *module._buffers.items()]
            for name, tensor in tensors:
                if tensor is not None:
                    self.owners.setdefault(id(tensor), []).append((module, path, name))
        self.groups: list[Group] = []
        self._known: dict[int, _Channels] = {}
        self._weights: dict[tuple[int, int], Group] = {}  # by tensor and dimension
        self._pooled: set[int] = set()
        self._alive: list[Any] = []  # a freed tensor's id would be reused

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        name = getattr(func, "__name__", str(func))
        result = func(*args, **kwargs)
        made = tensors_in(result)
        if name == "__setitem__":
            self.stop(tensors_in(args), "part of a map is overwritten")
        elif name not in {"__get__", "__set__"} and made:
            self._alive += made
            follow = _RULES.get(name, _stop)
            call = _Call(self, name, args, kwargs, result)
            follow(call)
            self._note_maps(name, tensors_in((args, kwargs)), made)
        return result

    def _note_maps(self, name: str, given: Sequence[Tensor], made: Sequence[Tensor]) -> None:
        """Tell vectors that a global pool made, and what comes of them, from maps.

        By where they come from: late maps of small images may have one position too.
        """
        inputs = [tensor for tensor in given if id(tensor) not in self.owners]
        were_pooled = bool(inputs) and all(id(tensor) in self._pooled for tensor in inputs)
        for tensor in made:
            is_small = tensor.ndim <= 2 or tensor[0, 0].numel() == 1
            if tensor.ndim <= 2 or were_pooled or (name in _GLOBAL and is_small):
                self._pooled.add(id(tensor))
                continue
            self._pooled.discard(id(tensor))
            channels = self._known.get(id(tensor))
            if channels is not None:
                channels.group.root.has_maps = True

    def channels_of(self, tensor: Any) -> _Channels | None:
        """Return where a tensor has its channels, if it is followed."""
        return self._known.get(id(tensor)) if isinstance(tensor, Tensor) else None

    def follow(self, tensor: Tensor, group: Group, axis: int) -> None:
        """Note where a tensor has the channels of a group."""
        self._known[id(tensor)] = _Channels(group, axis % tensor.ndim)

    def forget(self, tensor: Tensor) -> None:
        """Note that nothing is known of a tensor any more."""
        self._known.pop(id(tensor), None)

    def stop(self, tensors: Iterable[Tensor], reason: str) -> None:
        """Keep the channels of these tensors, and what their weights hold, as wide as they are."""
        for tensor in tensors:
            channels = self._known.get(id(tensor))
            if channels is not None:
                channels.group.root.stop(reason)
            for dim in range(tensor.ndim) if id(tensor) in self.owners else ():
                self.group_of(tensor, dim).stop(reason)

    def group_of(self, weight: Tensor, dim: int) -> Group:
        """Return the group that a dimension of a weight belongs to, a new one at the first call."""
        key = (id(weight), dim)
        if key not in self._weights:
            group = Group(weight.shape[dim], len(self.groups))
            self.groups.append(group)
            self._weights[key] = group
        return self._weights[key].root

    def hold(self, tensor: Any, dim: int, role: Role) -> Group | None:
        """Return the group of a weight's dimension with its slot, or ``None`` if it has none."""
        owners = self.owners.get(id(tensor), [])
        if len(owners) != 1:
            return None
        module, path, name = owners[0]
        group = self.group_of(tensor, dim)
        group.add(Slot(module, path, name, dim, role))
        return group


@dataclass(frozen=True)
class _Call:
    """One operation: the rules below read it."""

    flow: _Flow
    name: str
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    result: Any

    def get(self, position: int, name: str, default: Any = None) -> Any:
        """Return an argument, by position or by name."""
        if len(self.args) > position:
            return self.args[position]
        return self.kwargs.get(name, default)

    def module_of(self, weight: Any) -> nn.Module | None:
        """Return the one module that owns a weight."""
        owners = self.flow.owners.get(id(weight), [])
        return owners[0][0] if len(owners) == 1 else None


def _stop(call: _Call) -> None:
    """What is not known to keep channels apart ends them."""
    call.flow.stop(tensors_in((call.args, call.kwargs)), f"{call.name} takes them together")
    for tensor in tensors_in(call.result):
        call.flow.forget(tensor)


def _pass(call: _Call) -> None:
    """Each channel of the result comes from the same channel of the one map."""
    tensors = tensors_in((call.args, call.kwargs))
    channels = call.flow.channels_of(tensors[0])
    results = tensors_in(call.result)
    if channels is None or len(tensors) != 1:
        return _stop(call)
    for result in results:
        if result.ndim != tensors[0].ndim or result.shape[channels.axis] != channels.group.width:
            return _stop(call)
        call.flow.follow(result, channels.group.root, channels.axis)
    return None


def _layer(call: _Call) -> None:
    """A convolution or a linear layer: one group is read, another is made."""
    x, weight, bias = call.get(0, "input"), call.get(1, "weight"), call.get(2, "bias")
    module, flow = call.module_of(weight), call.flow
    if not _is_known_layer(module, call.name):
        return _stop(call)
    groups = int(getattr(module, "groups", 1))
    axis = -1 if call.name == "linear" else 1
    channels = flow.channels_of(x)
    if channels is not None and channels.axis != axis % x.ndim:
        flow.stop([x], "a layer does not read them as channels")
        channels = None
    made = flow.hold(weight, 0, "makes" if groups == 1 else "keeps")
    if made is None or (bias is not None and not _hold_beside(call, [bias], made, "makes")):
        return _stop(call)
    if groups == 1:
        _read(call, weight, channels)
    else:
        made = _keep_grouped(call, x, channels, made, module)
    flow.follow(call.result, made.root, axis)
    return None


def _is_known_layer(module: nn.Module | None, name: str) -> bool:
    kinds: dict[str, type[nn.Module]] = {"conv2d": nn.Conv2d, "linear": nn.Linear}
    return isinstance(module, kinds[name])


def _read(call: _Call, weight: Tensor, channels: _Channels | None) -> None:
    reads = call.flow.hold(weight, 1, "reads")
    if reads is None:
        return
    if channels is None:
        reads.stop("its input is not followed")
    else:
        join(reads, channels.group)


def _keep_grouped(
    call: _Call, x: Tensor, channels: _Channels | None, made: Group, module: nn.Module | None
) -> Group:
    """A convolution of as many outputs as inputs in groups grows by whole groups."""
    layer: Any = module
    if channels is None or layer.in_channels != layer.out_channels:
        reason = "a grouped convolution of two widths takes them"
        call.flow.stop([x], reason)
        made.stop(reason)
        return made
    made.step = math.lcm(made.step, layer.in_channels // layer.groups)
    return join(made, channels.group)


def _hold_beside(call: _Call, vectors: Iterable[Any], group: Group, role: Role) -> bool:
    """Put vectors as long as the group beside its weights."""
    for vector in vectors:
        if vector is not None:
            own = call.flow.hold(vector, 0, role)
            if own is None:
                return False
            join(group, own)
    return True


def _norm(call: _Call) -> None:
    """Batch norm keeps every channel by itself."""
    channels = call.flow.channels_of(call.args[0])
    vectors = [call.get(i, name) for i, name in enumerate(_NORM_ARGUMENTS, start=1)]
    owners = {id(call.module_of(vector)) for vector in vectors if vector is not None}
    module = next((call.module_of(vector) for vector in vectors if vector is not None), None)
    if channels is None or len(owners) > 1 or not isinstance(module, (_BatchNorm, type(None))):
        return _stop(call)
    if not _hold_beside(call, vectors, channels.group, "keeps"):
        return _stop(call)
    call.flow.follow(call.result, channels.group.root, channels.axis)
    return None


_NORM_ARGUMENTS = ("running_mean", "running_var", "weight", "bias")


def _meet(call: _Call) -> None:
    """A sum or a product of maps: their channels meet one by one."""
    tensors = tensors_in((call.args, call.kwargs))
    result = call.result
    known = [channels for tensor in tensors if (channels := call.flow.channels_of(tensor))]
    wide = [channels for channels in known if channels.group.root.width == _width(result, channels)]
    ends = {channels.axis - _ndim(call, channels) for channels in wide}
    if not wide or len(ends) != 1:
        return _stop(call)
    end = ends.pop()
    group = wide[0].group.root
    for tensor in tensors:
        channels = call.flow.channels_of(tensor)
        if channels is not None and channels in wide:
            group = join(group, channels.group)
        elif tensor.ndim >= -end and tensor.shape[end] != 1:
            group.stop("a map or weight of unknown channels meets them")
            call.flow.stop([tensor], "a map of other channels meets them")
        elif channels is not None:
            call.flow.stop([tensor], "one channel meets all of another map")
    group.joined = group.joined or (len(wide) > 1 and call.name in _SUMS)
    call.flow.follow(result, group, result.ndim + end)
    return None


def _width(result: Tensor, channels: _Channels) -> int:
    return result.shape[channels.axis] if channels.axis < result.ndim else -1


def _ndim(call: _Call, channels: _Channels) -> int:
    tensors = tensors_in((call.args, call.kwargs))
    return next(tensor.ndim for tensor in tensors if call.flow.channels_of(tensor) is channels)


def _reduce(call: _Call) -> None:
    """A mean over positions keeps the channels; one over channels takes them together."""
    x = call.args[0]
    channels = call.flow.channels_of(x)
    dims = call.get(1, "dim")
    if channels is None or dims is None:
        return _stop(call)
    reduced = {dim % x.ndim for dim in (dims if isinstance(dims, (tuple, list)) else (dims,))}
    if channels.axis in reduced or not isinstance(call.result, Tensor):
        return _stop(call)
    lost = 0 if call.get(2, "keepdim", False) else sum(dim < channels.axis for dim in reduced)
    call.flow.follow(call.result, channels.group.root, channels.axis - lost)
    return None


def _move(call: _Call) -> None:
    """A permutation moves the axis."""
    x = call.args[0]
    channels = call.flow.channels_of(x)
    if channels is None:
        return _stop(call)
    order = list(range(x.ndim))
    if call.name == "permute":
        given = call.get(1, "dims")
        order = list(given if isinstance(given, (tuple, list)) else call.args[1:])
    else:
        first, second = call.get(1, "dim0"), call.get(2, "dim1")
        order[first], order[second] = order[second], order[first]
    axis = [dim % x.ndim for dim in order].index(channels.axis)
    call.flow.follow(call.result, channels.group.root, axis)
    return None


def _flatten(call: _Call) -> None:
    """A vector laid flat keeps its channels; so does a map whose positions are laid flat."""
    x = call.args[0]
    channels = call.flow.channels_of(x)
    if channels is None:
        return _stop(call)
    start = call.get(1, "start_dim", 0) % x.ndim
    end = call.get(2, "end_dim", -1) % x.ndim
    inside = start <= channels.axis <= end
    if inside and math.prod(x.shape[start : end + 1]) != channels.group.root.width:
        return _stop(call)
    axis = start if inside else channels.axis - (end - start if channels.axis > end else 0)
    call.flow.follow(call.result, channels.group.root, axis)
    return None


def _pad(call: _Call) -> None:
    """A border around the positions leaves channels as they are."""
    x = call.get(0, "input")
    channels, border = call.flow.channels_of(x), call.get(1, "pad")
    if channels is None or len(border) > 2 * (x.ndim - 1 - channels.axis):
        return _stop(call)
    call.flow.follow(call.result, channels.group.root, channels.axis)
    return None


_RULES: dict[str, Callable[[_Call], None]] = {
    **dict.fromkeys(_PASSING, _pass),
    **dict.fromkeys(_MEETING, _meet),
    **dict.fromkeys(_POOLS, _reduce),
    **dict.fromkeys(("conv2d", "linear"), _layer),
    **dict.fromkeys(("permute", "transpose"), _move),
    "batch_norm": _norm,
    "flatten": _flatten,
    "pad": _pad,
}
