"""Selective Kernel: convolutions of several sizes, chosen between for each channel of each image.

Equation (Li et al., section 3.1), with branches i = 1 … M::

    U_i = relu(BN(conv_i(x)))                            split, the receptive field grows with i
    s   = mean_hw(U_1 + … + U_M)                         fuse, eq. 1 and 2
    z   = relu(BN(W s)),  of width max(C / r, L)         eq. 3 and 4
    a_i = exp(A_i z) / sum_j exp(A_j z)                  select, eq. 5: one weight a channel
    y   = a_1 * U_1 + … + a_M * U_M                      eq. 6

Compared with the authors' released network definitions (implus/SKNet, commit 17dd7086), with timm
and with pytorchcv.

Deviations: none from the released definitions; the mean of the sum is taken as the sum of the
means, so the summed map is never built.
"""

import re
from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from torchplug.card import Card, CheckpointFormat, Paper, Place, Sample, State
from torchplug.errors import explain
from torchplug.kernels import pool_positions
from torchplug.nn import (
    ActLayer,
    NormLayer,
    build_act,
    build_norm,
    check_batch,
    check_divisible,
    check_odd,
    check_positive,
    check_several,
    check_whole,
    conv_norm_act,
    hidden_width,
    rename_matches,
    reset_layers,
    weighted_sum,
)


class SelectiveKernel(nn.Module):
    """Selective kernel convolution, in the place of a 3x3 convolution.

    A softmax over the branches, computed from the global averages of all of them, weighs each
    channel of each branch. Norm and activation are inside the branches: nothing follows the sum.

    Args:
        in_channels: width of the input.
        out_channels: width of the output.
        branches: number M of convolutions; 2 in the paper, and if nothing is given.
        kernel_sizes: odd size of each branch instead, as the paper varies them: ``(5, 7)`` is its
            K5 and K7; 3, 5, 7, … if not given.
        stride: of every branch.
        groups: of every branch; 32 in the paper. Must divide both widths.
        dilated: whether each branch is a 3x3 convolution, dilated to its size, as in the released
            networks; otherwise the kernels themselves grow.
        reduction: divisor r of ``out_channels`` that gives the hidden width, rounded down.
        min_hidden: the least hidden width L that the division gives.
        hidden_channels: the hidden width itself; overrides ``reduction`` and ``min_hidden``.
        norm_layer: norm of the branches and of the hidden layer. Batch norm in the hidden layer
            cannot train on one image a device; a group norm of one group can:
            ``functools.partial(torch.nn.GroupNorm, 1)``.
        act_layer: activation of the branches and of the hidden layer.
        device: where the parameters are made.
        dtype: type of the parameters.

    Shape:
        ``(N, in_channels, H, W) -> (N, out_channels, ceil(H / stride), ceil(W / stride))``.

    Raises:
        ValueError: if ``groups`` does not divide a width, there are fewer than two branches, or
            ``branches`` is not the number of kernel sizes; in training, if batch norm sees one
            image.

    Source:
        Selective Kernel Networks, arXiv 1903.06586; implus/SKNet.

    >>> import torch
    >>> SelectiveKernel(64, 64, stride=2)(torch.randn(2, 64, 7, 9)).shape
    torch.Size([2, 64, 4, 5])
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        branches: int | None = None,
        kernel_sizes: Sequence[int] | None = None,
        stride: int = 1,
        groups: int = 32,
        dilated: bool = True,
        reduction: int = 16,
        min_hidden: int = 32,
        hidden_channels: int | None = None,
        norm_layer: NormLayer = nn.BatchNorm2d,
        act_layer: ActLayer = nn.ReLU,
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        super().__init__()
        self.kernel_sizes = _choose_sizes(branches, kernel_sizes, dilated)
        check_positive({"stride": stride})
        widths = {"in_channels": in_channels, "out_channels": out_channels}
        check_divisible(widths, groups, "groups")
        hidden = hidden_width(
            out_channels, reduction=reduction, hidden_channels=hidden_channels, floor=min_hidden
        )
        self.in_channels, self.out_channels, self.hidden_channels = (
            in_channels,
            out_channels,
            hidden,
        )
        self.stride = stride
        factory = {"device": device, "dtype": dtype}
        self.branches = nn.ModuleList(
            conv_norm_act(
                in_channels,
                out_channels,
                3 if dilated else size,
                stride=stride,
                dilation=size // 2 if dilated else 1,
                groups=groups,
                norm_layer=norm_layer,
                act_layer=act_layer,
                **factory,
            )
            for size in self.kernel_sizes
        )
        self.reduce = nn.Conv2d(out_channels, hidden, 1, bias=False, **factory)
        self.norm = build_norm(norm_layer, hidden, **factory)
        self.act = build_act(act_layer, device=device, dtype=dtype)
        scores = len(self.kernel_sizes) * out_channels
        self.select = nn.Conv2d(hidden, scores, 1, bias=False, **factory)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw kernels as He et al. and the two small layers from N(0, 0.01), as the authors do."""
        reset_layers(self)
        for branch in self.branches:
            kernel = branch.get_parameter("conv.weight")
            nn.init.kaiming_normal_(kernel, mode="fan_in", nonlinearity="relu")
        for layer in (self.reduce, self.select):
            nn.init.normal_(layer.weight, std=0.01)

    def find_weights(self, means: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """Return the weight of every channel for each branch: M tensors ``(N, C, 1, 1)``.

        Args:
            means: of every branch's map over its positions, ``(N, C, 1, 1)`` each.
        """
        hidden = self.reduce(sum(means[1:], start=means[0]))
        check_batch(hidden, self.norm, owner="SelectiveKernel")
        scores = self.select(self.act(self.norm(hidden)))
        return scores.unflatten(1, (len(means), self.out_channels)).softmax(1).unbind(1)

    def forward(self, x: Tensor) -> Tensor:
        """Return the branches' maps, summed with their weights."""
        pairs = (pool_positions(branch(x)) for branch in self.branches)
        maps, means = zip(*pairs, strict=True)
        return weighted_sum(maps, self.find_weights(means))

    def extra_repr(self) -> str:
        """Name the resolved widths and sizes."""
        return (
            f"in_channels={self.in_channels}, out_channels={self.out_channels}, "
            f"hidden_channels={self.hidden_channels}, kernel_sizes={self.kernel_sizes}"
        )


def _choose_sizes(
    branches: int | None, kernel_sizes: Sequence[int] | None, dilated: bool
) -> tuple[int, ...]:
    """Return the size that each branch sees."""
    if kernel_sizes is None:
        count = 2 if branches is None else branches
        check_whole("branches", count)
        sizes, got = tuple(range(3, 2 * count + 2, 2)), f"branches={count}"
    else:
        check_several("kernel_sizes", kernel_sizes)
        sizes = tuple(kernel_sizes)
        got = f"kernel_sizes={sizes}"
    for index, size in enumerate(sizes):
        check_odd(f"kernel_sizes[{index}]", size)
    if len(sizes) < 2:
        raise ValueError(explain("a selection needs at least 2 branches", got, "pass 2 or more"))
    if branches not in (None, len(sizes)):
        got = f"branches={branches} and {got}"
        raise ValueError(explain("each branch has one kernel size", got, "pass one of the two"))
    if dilated and min(sizes) < 3:
        rule, fix = "a dilated 3x3 kernel sees 3 positions or more", "pass dilated=False"
        raise ValueError(explain(rule, got, fix))
    return sizes


def _flops(module: SelectiveKernel, shape: tuple[int, ...]) -> int:
    batch, _, height, width = shape
    flops = 2 * (module.reduce.weight.numel() + module.select.weight.numel())
    for branch in module.branches:
        kernel = branch.get_parameter("conv.weight")
        flops += 2 * kernel.numel() * -(-height // module.stride) * -(-width // module.stride)
    return batch * flops


def _count(
    channels: tuple[int, int], hidden: int, *, groups: int, kernels: tuple[int, ...] = (3, 3)
) -> int:
    before, after = channels
    branches = sum(before * after * kernel**2 // groups + 2 * after for kernel in kernels)
    return branches + after * hidden + 2 * hidden + hidden * len(kernels) * after


_CAFFE_NORM = {
    "scale": "weight",
    "mean": "running_mean",
    "var": "running_var",
}


def _rename_caffe_norm(state: State) -> State:
    renamed = {}
    for name, tensor in state.items():
        layer, _, last = name.rpartition(".")
        renamed[f"{layer}.{_CAFFE_NORM.get(last, last)}"] = tensor
    return renamed


_PYTORCHCV_BRANCH = re.compile(r"^branches\.branch([2-9]|[1-9]\d+)\.(conv|bn)\.")


def _read_pytorchcv(state: State) -> State:
    """Count branches from zero; pytorchcv counts from two."""

    def rename(found: re.Match[str]) -> str:
        return f"branches.{int(found[1]) - 2}.{'conv' if found[2] == 'conv' else 'norm'}."

    return {_PYTORCHCV_BRANCH.sub(rename, name): state[name] for name in state}


CARD = Card(
    key="sk",
    factory=SelectiveKernel,
    title="Selective Kernel",
    summary="Convolve at several sizes and weigh the results for each channel by their averages.",
    equation=(
        "U_i = relu(BN(conv_i x)); z = relu(BN(W mean_hw(sum_i U_i))); "
        "y = sum_i softmax_i(A_i z) * U_i"
    ),
    paper=Paper(
        title="Selective Kernel Networks",
        authors="Li, Wang, Hu, Yang",
        venue="CVPR",
        year=2019,
        arxiv="1903.06586",
        code="https://github.com/implus/SKNet",
    ),
    kind="conv",
    place=Place(
        role="conv3x3",
        note="in the place of every 3x3 convolution behind the stem, with its norm and "
        "activation; the paper's base is ResNeXt-50 32x4d",
    ),
    identity_at_start=False,
    min_channels=32,
    flops=_flops,
    samples=(
        Sample(
            args=(32, 64),
            shape=(2, 32, 9, 7),
            parameters=_count((32, 64), 32, groups=32),
        ),
        Sample(
            args=(6, 10),
            options={"branches": 3, "dilated": False, "groups": 2, "stride": 2, "min_hidden": 4},
            shape=(2, 6, 8, 11),
            parameters=_count((6, 10), 4, groups=2, kernels=(3, 5, 7)),
        ),
        Sample(
            args=(8, 8),
            options={"groups": 1, "reduction": 2, "min_hidden": 1, "act_layer": nn.SiLU},
            shape=(2, 8, 7, 6),
            parameters=_count((8, 8), 4, groups=1),
        ),
        Sample(
            args=(6, 9),
            options={"branches": 4, "groups": 3, "hidden_channels": 5},
            shape=(2, 6, 6, 7),
            parameters=_count((6, 9), 5, groups=3, kernels=(3, 3, 3, 3)),
        ),
        Sample(
            args=(4, 6),
            options={"kernel_sizes": (5, 9), "groups": 2, "stride": 2, "hidden_channels": 3},
            shape=(2, 4, 8, 7),
            parameters=_count((4, 6), 3, groups=2),
        ),
        Sample(
            args=(4, 4),
            options={
                "kernel_sizes": (7, 1, 3),
                "branches": 3,
                "dilated": False,
                "groups": 1,
                "hidden_channels": 3,
            },
            shape=(2, 4, 5, 6),
            parameters=_count((4, 4), 3, groups=1, kernels=(7, 1, 3)),
        ),
    ),
    formats=(
        CheckpointFormat(
            source="official",
            rename={
                "3x3g32": "branches.0.conv",
                "3x3g32/bn": "branches.0.norm",
                "3x3g32d2": "branches.1.conv",
                "3x3g32d2/bn": "branches.1.norm",
                "B_fc1": "reduce",
                "B_fc1/bn": "norm",
                "B_fc2": "select",
            },
            transform=_rename_caffe_norm,
        ),
        CheckpointFormat(
            source="timm",
            rename={
                "attn.fc_reduce": "reduce",
                "attn.bn": "norm",
                "attn.fc_select": "select",
            },
            transform=rename_matches(
                {
                    r"^paths\.(\d+)\.conv\.": r"branches.\1.conv.",
                    r"^paths\.(\d+)\.bn\.": r"branches.\1.norm.",
                }
            ),
        ),
        CheckpointFormat(
            source="pytorchcv",
            rename={
                "fc1.conv": "reduce",
                "fc1.bn": "norm",
                "fc2": "select",
            },
            transform=_read_pytorchcv,
        ),
    ),
)
