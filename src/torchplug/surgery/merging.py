"""Turn replacements that are one convolution in evaluation mode into that convolution."""

from torch import nn

from torchplug.errors import PlugError, explain
from torchplug.surgery.attach import HOLDER, detach, find_plugs
from torchplug.surgery.memory import mark_merged
from torchplug.surgery.op_anchor import find_carrier
from torchplug.surgery.replace import Beside, Replacement


def merge_plugs(model: nn.Module, name: str | None = None) -> int:
    """Put plain convolutions where plugs stand that compute one in evaluation mode.

    ACNet's row and column move into the host's kernel, so the network that ships has the size and
    the speed that it had before, and biases; MixConv's kernels make it as large as the largest. The
    model must be in evaluation mode. Plugs that are no convolution are left as they are.

    What was merged is part of the model's own state dict: store that, and load it into a model
    that was plugged and merged alike. It cannot be taken out again.

    Args:
        model: the plugged host; it is changed in place.
        name: merge the plugs of this name only; ``None`` merges all that can be.

    Returns:
        How many plugs were merged.

    Raises:
        PlugError: if there is none that can be merged.
        UsageError: if a norm is in training mode; nothing was changed.

    >>> import torchplug as tp
    >>> from torchplug.hosts import build_model
    >>> model = build_model("torchplug:resnet8", num_classes=10, in_channels=1).eval()
    >>> report = tp.plug(model, "acnet", "**.conv2", example=(1, 1, 8, 8))
    >>> merge_plugs(model), len(tp.find_plugs(model))
    (3, 0)
    """
    merged = []
    for path, plug_name, plug in find_plugs(model):
        host = find_carrier(model, path)
        if isinstance(plug, Replacement) and name in {None, plug_name} and plug.can_merge:
            _check_alone(host, path)
            merged.append((path, plug_name, plug, plug.merge(host)))
    if not merged:
        text = explain(
            "only replacements that are one convolution in evaluation mode can be merged",
            f"a model without one{'' if name is None else f' named {name!r}'}",
            "plug acnet in the place of convolutions first",
        )
        raise PlugError(text)
    for path, plug_name, plug, plain in merged:
        host = model.get_submodule(path)
        detach(host, plug_name)
        if isinstance(plug, Beside) and plain.weight.shape == host.weight.shape:
            host.weight, host.bias = plain.weight, plain.bias
        else:
            model.set_submodule(path, plain.train(host.training))
    mark_merged(model, [(path, plug_name) for path, plug_name, _, _ in merged])
    return len(merged)


def _check_alone(host: nn.Module, path: str) -> None:
    others = len(list(host.get_submodule(HOLDER).children())) - 1
    if others:
        text = explain(
            "a plug is merged where it is the only one",
            f"{others} more at {path}",
            "take them out with unplug first",
        )
        raise PlugError(text)
