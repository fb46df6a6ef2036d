"""Depthwise separable convolution: recordings of mmcv, of RFBNet's MobileNet and of timm."""

import torch
from torch import Tensor, nn

from tests.oracles import Golden
from tests.oracles.naive import normalize
from tests.oracles.windows import same_border, sum_windows, zero_pad
from torchplug.modules import SeparableConv

GOLDENS = (
    Golden("dwconv__mmcv__k3_bn_relu", "mmcv", (7, 10)),
    Golden("dwconv__mmcv__k3_dil2", "mmcv", (7, 10), {"dilation": 2}),
    Golden("dwconv__mmcv__k5_s2", "mmcv", (7, 10), {"kernel_size": 5, "stride": 2}),
    Golden("dwconv__rfbnet_mobilenet__conv_dw_s2", "rfbnet", (7, 10), {"stride": 2}),
    Golden(
        "dwconv__timm__ds_residual",
        "timm",
        (8, 8),
        {"act_after": "depthwise", "residual": True},
    ),
)


def reference(module: SeparableConv, x: Tensor) -> Tensor:
    """Section 3.1 of the paper, one sample, one channel and one tap at a time."""
    return torch.stack([filter_and_mix(module, sample) for sample in x])


def filter_and_mix(module: SeparableConv, sample: Tensor) -> Tensor:
    conv, size = module.depthwise, module.depthwise.kernel_size[0]
    borders = [(conv.padding[0],) * 2] * 2
    if conv.padding == (0, 0) and size > 1:
        settings = (size, conv.stride[0], conv.dilation[0])
        borders = [same_border(side, *settings) for side in sample.shape[1:]]
    planes = []
    for index, kernel in enumerate(conv.weight):
        plane = sample[index // (conv.out_channels // conv.in_channels)][None]
        settings = {"stride": conv.stride[0], "dilation": conv.dilation[0]}
        planes.append(sum_windows(zero_pad(plane, *borders), kernel[None], **settings))
    y = follow(torch.cat(planes), conv, module.depthwise_norm, module.depthwise_act)
    mixed = torch.einsum("oc,chw->ohw", module.pointwise.weight.flatten(1), y)
    y = follow(mixed, module.pointwise, module.pointwise_norm, module.pointwise_act)
    return sample + y if module.residual else y


def follow(y: Tensor, conv: nn.Conv2d, norm: nn.Module | None, act: nn.Module | None) -> Tensor:
    if conv.bias is not None:
        y = y + conv.bias[:, None, None]
    if norm is not None:
        y = normalize(norm, y)
    if isinstance(act, nn.SiLU):
        return y / (1 + torch.exp(-y))
    return y if act is None else y.clamp(min=0)
