"""Our modules against the installed libraries' at many settings, not only the recorded ones.

Random weights in float64, moved across by the card's checkpoint format; outputs and gradients of
the input must agree.
"""

import itertools
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from segmentation_models_pytorch.base.modules import SCSEModule
from segmentation_models_pytorch.decoders.deeplabv3 import decoder as deeplab
from timm.layers import (
    GlobalContext,
    MixedConv2d,
    NonLocalAttn,
    SelectiveKernel,
    SplitAttn,
    SqueezeExcite,
)
from timm.layers.cbam import CbamModule
from timm.models._efficientnet_blocks import DepthwiseSeparableConv
from timm.models._efficientnet_blocks import SqueezeExcite as EfficientSE
from torch import nn
from torchvision.models.segmentation.deeplabv3 import ASPP
from torchvision.ops import SqueezeExcitation

import torchplug as tp

Maker = Callable[[], nn.Module]
Case = tuple[str, str, Maker, tuple[int, ...], dict[str, Any]]


CASES: dict[str, Case] = {}


def add(name: str, key: str, source: str, make: Maker, *args: int, **options: Any) -> None:
    """Note a case: the card and its format, how to build theirs, and our arguments."""
    CASES[name] = (key, source, make, args, options)


def add_gates() -> None:
    for c, r in itertools.product((16, 48, 63), (2, 4, 16)):
        if c // r:
            make = partial(SqueezeExcite, c, rd_channels=c // r)
            add(f"se timm {c}/{r}", "se", "timm", make, c, reduction=r)
            make = partial(EfficientSE, c, rd_ratio=1 / r, rd_round_fn=int)
            add(f"se efficientnet {c}/{r}", "se", "timm", make, c, reduction=r)
            make = partial(SqueezeExcitation, c, c // r)
            add(f"se torchvision {c}/{r}", "se", "torchvision", make, c, reduction=r)
            make = partial(SCSEModule, c, r)
            add(f"scse smp {c}/{r}", "scse", "smp", make, c, reduction=r, fusion="add")
            make = partial(CbamModule, c, rd_channels=c // r, mlp_bias=True)
            add(f"cbam {c}/{r}", "cbam", "timm", make, c, reduction=r)
        if c // r > 1:
            for add_, scale in ((True, False), (False, True), (True, True)):
                make = partial(
                    GlobalContext, c, rd_channels=c // r, fuse_add=add_, fuse_scale=scale
                )
                fusion = "scale_add" if add_ and scale else "add" if add_ else "scale"
                options = {"reduction": r, "fusion": fusion, "eps": 1e-6}
                add(f"gc {c}/{r} {fusion}", "gc", "timm", make, c, **options)


def add_attention() -> None:
    for k in (3, 5):
        make = partial(CbamModule, 24, rd_channels=6, spatial_kernel_size=k)
        options = {"reduction": 4, "bias": False, "kernel_size": k}
        add(f"cbam kernel {k}", "cbam", "timm", make, 24, **options)
    for h in (4, 12, 24):
        make = partial(NonLocalAttn, 24, rd_channels=h)
        options = {"hidden_channels": h, "subsample": "none", "scale": "channels"}
        add(f"nl {h}", "nl", "timm", make, 24, **options)
    for stride, groups, d in itertools.product((1, 2), (1, 4), (5, 16)):
        make = partial(
            SelectiveKernel, 16, 24, stride=stride, groups=groups, rd_channels=d, split_input=False
        )
        options = {"stride": stride, "groups": groups, "hidden_channels": d}
        add(f"sk {stride} {groups} {d}", "sk", "timm", make, 16, 24, **options)
    for sizes, keep in itertools.product(((3, 5, 7, 9, 11), (5, 7)), (True, False)):
        make = partial(
            SelectiveKernel,
            8,
            12,
            list(sizes),
            groups=2,
            rd_channels=6,
            keep_3x3=keep,
            split_input=False,
        )
        options = {"kernel_sizes": sizes, "dilated": keep, "groups": 2, "hidden_channels": 6}
        add(f"sk {sizes} {keep}", "sk", "timm", make, 8, 12, **options)
    for radix, groups, stride in itertools.product((1, 2, 3), (1, 2), (1, 2)):
        make = partial(
            SplitAttn,
            12,
            24,
            3,
            stride,
            groups=groups,
            radix=radix,
            rd_channels=8,
            norm_layer=nn.BatchNorm2d,
        )
        options = {
            "radix": radix,
            "cardinality": groups,
            "stride": stride,
            "hidden_channels": 8 * radix,
        }
        add(f"splat {radix} {groups} {stride}", "splat", "timm", make, 12, 24, **options)


def add_convolutions() -> None:
    for kernels, stride, dilation in (((3, 5), 1, 1), ((3, 5, 7, 9), 2, 1), ((3, 9), 1, 2)):
        make = partial(
            MixedConv2d,
            14,
            14,
            list(kernels),
            stride=stride,
            dilation=dilation,
            depthwise=True,
            bias=False,
        )
        options = {"kernel_sizes": kernels, "stride": stride, "dilation": dilation}
        add(f"mixconv {kernels} {stride} {dilation}", "mixconv", "timm", make, 14, **options)
    for k, stride in itertools.product((3, 5, 7), (1, 2)):
        make = partial(DepthwiseSeparableConv, 8, 12, k, stride, pw_act=True)
        add(f"dwconv {k} {stride}", "dwconv", "timm", make, 8, 12, kernel_size=k, stride=stride)
    for rates in ((6, 12, 18), (1,), (2, 5, 9, 14)):
        make = partial(ASPP, 6, list(rates), 5)
        add(f"aspp {rates}", "aspp", "torchvision", make, 6, 5, rates=rates)
    make = partial(deeplab.ASPP, 6, 5, (2, 3, 7), separable=True, dropout=0.5)
    options = {"rates": (2, 3, 7), "atrous": "linear_separable"}
    add("aspp smp", "aspp", "smp", make, 6, 5, **options)
    make = partial(deeplab.ASPP, 6, 5, (2, 3, 7), separable=False, dropout=0.5)
    add("aspp smp dense", "aspp", "smp", make, 6, 5, rates=(2, 3, 7))


add_gates()
add_attention()
add_convolutions()


def randomize(module: nn.Module) -> None:
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, tensor in [*module.named_parameters(), *module.named_buffers()]:
            if tensor.is_floating_point():
                values = torch.randn(tensor.shape, generator=generator, dtype=torch.float64)
                tensor.copy_(values.abs() + 0.5 if name.endswith("running_var") else values / 2)


@pytest.mark.parametrize("name", CASES)
def test_output_and_gradient_agree(name: str) -> None:
    key, source, make, args, options = CASES[name]
    theirs = make().double().eval()
    randomize(theirs)
    ours = tp.get_card(key).factory(*args, **options, dtype=torch.float64).eval()
    state = tp.convert_state_dict(theirs.state_dict(), key, source=source)
    missing, unexpected = ours.load_state_dict(state, strict=False)
    assert not unexpected
    assert all(name.endswith("num_batches_tracked") for name in missing), missing
    x = torch.randn(2, args[0], 11, 14, dtype=torch.float64, requires_grad=True)
    got, wanted = ours(x), theirs(x)
    assert wanted.std() > 0
    torch.testing.assert_close(got, wanted, rtol=1e-9, atol=1e-9)
    weight = torch.randn_like(wanted)
    gradients = (torch.autograd.grad(y, x, weight)[0] for y in (got, wanted))
    torch.testing.assert_close(*gradients, rtol=1e-9, atol=1e-9)
