"""The algebra that moves a batch norm into the convolution before it."""

from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from torchplug.errors import UsageError, explain

Conv = TypeVar("Conv", bound=nn.modules.conv._ConvNd)

_FORWARDS = (_BatchNorm.forward, nn.SyncBatchNorm.forward)


def affine_of(norm: nn.Module) -> tuple[Tensor, Tensor]:
    """Return ``scale`` and ``shift`` of each channel: ``norm(y) = scale * y + shift``.

    In float32 or the norm's own type, whichever holds more.

    Raises:
        UsageError: if ``norm`` is no such function: not a batch norm or one that does more, in
            training, without running statistics, or with hooks.

    >>> norm = nn.BatchNorm2d(1, eps=0.0).eval()
    >>> _ = norm.running_var.fill_(4.0), norm.running_mean.fill_(3.0)
    >>> affine_of(norm)
    (tensor([0.5000]), tensor([-1.5000]))
    """
    got = _find_obstacle(norm)
    if got or not isinstance(norm, _BatchNorm):
        rule = "only a plain batch norm in evaluation mode folds"
        raise UsageError(explain(rule, got, "call .eval() first, or leave this norm as it is"))
    mean, variance = norm.running_mean, norm.running_var
    if mean is None or variance is None:
        rule = "a batch norm folds by its running statistics"
        raise UsageError(explain(rule, "track_running_stats=False", "leave this norm as it is"))
    exact = torch.promote_types(variance.dtype, torch.float32)
    scale = (variance.detach().to(exact) + norm.eps).rsqrt()
    if norm.weight is not None:
        scale = scale * norm.weight.detach()
    shift = -mean.detach() * scale
    if norm.bias is not None:
        shift = shift + norm.bias.detach()
    return scale, shift


def _find_obstacle(norm: nn.Module) -> str:
    """What keeps ``norm`` from being an affine function of each channel, or nothing."""
    if not isinstance(norm, _BatchNorm):
        return type(norm).__name__
    if type(norm).forward not in _FORWARDS or "forward" in vars(norm):
        return f"{type(norm).__name__} with a forward of its own"
    if norm.training:
        return f"{type(norm).__name__} in training mode"
    if norm._forward_hooks or norm._forward_pre_hooks:
        return f"{type(norm).__name__} with hooks"
    return ""


def replace_weights(conv: Conv, weight: Tensor, bias: Tensor | None) -> Conv:
    """Give ``conv`` new weights, in the type and with the ``requires_grad`` of its own.

    Changes and returns ``conv``.
    """
    dtype, learns = conv.weight.dtype, conv.weight.requires_grad
    conv.weight = nn.Parameter(weight.detach().to(dtype), requires_grad=learns)
    if bias is not None:
        bias = nn.Parameter(bias.detach().to(dtype), requires_grad=learns)
    conv.bias = bias
    return conv
