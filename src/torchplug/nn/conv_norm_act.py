"""A convolution, its norm and its activation."""

from collections import OrderedDict
from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from torchplug.errors import explain
from torchplug.nn.bareness import is_bare, is_bare_conv

NormLayer = Callable[..., nn.Module]
ActLayer = Callable[[], nn.Module]

_EXAMPLES = {
    "norm_layer": "nn.BatchNorm2d, or nn.Identity for none",
    "act_layer": "nn.ReLU",
    "gate_layer": "nn.Sigmoid",
}


def _check_maker(name: str, maker: object) -> None:
    if isinstance(maker, nn.Module) or not callable(maker):
        rule = f"{name} is a class, or a function that makes the layer"
        raise TypeError(explain(rule, f"{name}={maker!r}", f"pass the class: {_EXAMPLES[name]}"))


def build_norm(
    norm_layer: NormLayer, channels: int, *, device: Any = None, dtype: Any = None
) -> nn.Module:
    """Return a norm of ``channels``.

    >>> build_norm(nn.BatchNorm2d, 8).num_features
    8
    """
    _check_maker("norm_layer", norm_layer)
    return norm_layer(channels, device=device, dtype=dtype)


def build_gate(gate_layer: ActLayer) -> nn.Module:
    """Return a gate, which learns nothing.

    >>> build_gate(nn.Sigmoid)
    Sigmoid()
    """
    _check_maker("gate_layer", gate_layer)
    return gate_layer()


def build_act(act_layer: ActLayer, *, device: Any = None, dtype: Any = None) -> nn.Module:
    """Return an activation; one that learns has its weights where its module has them.

    >>> import torch
    >>> build_act(nn.PReLU, dtype=torch.float64).weight.dtype
    torch.float64
    """
    _check_maker("act_layer", act_layer)
    return act_layer().to(device=device, dtype=dtype)


def make_act(act_layer: ActLayer, *, device: Any = None, dtype: Any = None) -> nn.Module:
    """Return an activation for what a layer has just made: a ReLU may write over that.

    It saves a map and a pass over it; nobody else holds the result of a convolution or its norm.

    >>> make_act(nn.ReLU), make_act(nn.SiLU)
    (ReLU(inplace=True), SiLU())
    """
    if act_layer is nn.ReLU:
        return nn.ReLU(inplace=True)
    return build_act(act_layer, device=device, dtype=dtype)


class ConvNormAct(nn.Sequential):
    """``conv``, ``norm`` and ``act`` in sequence, padded so that stride 1 keeps the size.

    The convolution has a bias only where no norm follows: a norm would take it away again.

    Args:
        in_channels: width of the input.
        out_channels: width of the output.
        kernel_size: odd; a pair is height and width.
        stride: of the convolution.
        dilation: of the convolution.
        groups: of the convolution.
        norm_layer: called with ``out_channels``; ``None`` leaves the norm out.
        act_layer: ``None`` leaves the activation out.
        device: where the parameters are made.
        dtype: type of the parameters.

    >>> [name for name, _ in ConvNormAct(8, 16, 3).named_children()]
    ['conv', 'norm', 'act']
    """

    conv: nn.Conv2d

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | tuple[int, int] = 1,
        *,
        stride: int = 1,
        dilation: int = 1,
        groups: int = 1,
        norm_layer: NormLayer | None = nn.BatchNorm2d,
        act_layer: ActLayer | None = nn.ReLU,
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        factory = {"device": device, "dtype": dtype}
        height, width = (kernel_size, kernel_size) if isinstance(kernel_size, int) else kernel_size
        layers: OrderedDict[str, nn.Module] = OrderedDict()
        layers["conv"] = nn.Conv2d(
            in_channels,
            out_channels,
            (height, width),
            stride=stride,
            padding=(dilation * (height // 2), dilation * (width // 2)),
            dilation=dilation,
            groups=groups,
            bias=norm_layer is None,
            **factory,
        )
        if norm_layer is not None:
            layers["norm"] = build_norm(norm_layer, out_channels, **factory)
        if act_layer is not None:
            layers["act"] = make_act(act_layer, **factory)
        super().__init__(layers)

    def is_bare(self) -> bool:
        """Tell whether the convolution may be computed another way: nobody hooked or changed it."""
        return is_bare(self) and is_bare_conv(self.conv)

    def finish(self, y: Tensor) -> Tensor:
        """Return norm and activation of ``y``, a convolution that was computed another way."""
        for layer in [*self.children()][1:]:
            y = layer(y)
        return y


conv_norm_act = ConvNormAct
"""The class by the name of what it does, for the lines that make layers."""
