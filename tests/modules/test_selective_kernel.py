"""What selective kernels select, start from and refuse."""

from functools import partial
from typing import Any

import pytest
import torch
from torch import nn
from torch.export import Dim

import torchplug as tp
from torchplug import SelectiveKernel


@pytest.mark.parametrize(
    ("channels", "parameters"), [(128, 22_080), (256, 62_528), (512, 198_720), (1024, 790_656)]
)
def test_parameters_are_those_of_the_released_networks(channels: int, parameters: int) -> None:
    block = SelectiveKernel(channels, channels, device="meta")
    assert sum(p.numel() for p in block.parameters()) == parameters


@pytest.mark.parametrize("dilated", [True, False])
def test_every_branch_sees_one_pixel_further(dilated: bool) -> None:
    block = SelectiveKernel(1, 1, branches=3, groups=1, min_hidden=1, dilated=dilated).eval()
    x = torch.zeros(1, 1, 11, 11)
    x[..., 5, 5] = 1
    for reach, branch in enumerate(block.branches, start=1):
        nn.init.ones_(branch.conv.weight)
        rows = branch(x)[0, 0].amax(1).nonzero().flatten()
        assert (int(rows.min()), int(rows.max())) == (5 - reach, 5 + reach)


@pytest.mark.parametrize("dilated", [True, False])
def test_every_branch_sees_its_kernel_size(dilated: bool) -> None:
    sizes = (7, 3, 9)
    block = SelectiveKernel(
        1, 1, kernel_sizes=sizes, groups=1, min_hidden=1, dilated=dilated
    ).eval()
    x = torch.zeros(1, 1, 11, 11)
    x[..., 5, 5] = 1
    for size, branch in zip(sizes, block.branches, strict=True):
        assert branch.conv.kernel_size == ((3, 3) if dilated else (size, size))
        nn.init.ones_(branch.conv.weight)
        rows = branch(x)[0, 0].amax(1).nonzero().flatten()
        assert (int(rows.min()), int(rows.max())) == (5 - size // 2, 5 + size // 2)


def test_weights_of_any_number_of_branches_are_read() -> None:
    """pytorchcv's names, which count from two; timm's are held against its own outputs."""
    block = SelectiveKernel(8, 8, branches=12, groups=2)
    heads = {"reduce.": "fc1.conv.", "norm.": "fc1.bn.", "select.": "fc2."}
    theirs = {}
    for name, tensor in block.state_dict().items():
        if name.startswith("branches."):
            _, index, layer, last = name.split(".")
            layer = {"conv": "conv", "norm": "bn"}[layer]
            theirs[f"branches.branch{int(index) + 2}.{layer}.{last}"] = tensor
        else:
            head = next(head for head in heads if name.startswith(head))
            theirs[heads[head] + name.removeprefix(head)] = tensor
    block.load_state_dict(tp.convert_state_dict(theirs, "sk", source="pytorchcv"), strict=True)
    strange = {**theirs, "branches.branch1.conv.weight": torch.zeros(1)}
    with pytest.raises(tp.UsageError, match=r"got 'branches.branch1.conv.weight'"):
        tp.convert_state_dict(strange, "sk", source="pytorchcv")


def test_the_weights_of_a_channel_sum_to_one_and_start_near_equal() -> None:
    block = SelectiveKernel(32, 64, branches=3)
    maps = [branch(torch.randn(2, 32, 5, 7)) for branch in block.branches]
    weights = torch.stack(block.find_weights([x.mean((2, 3), keepdim=True) for x in maps]))
    torch.testing.assert_close(weights.sum(0), torch.ones(2, 64, 1, 1))
    assert (weights - 1 / 3).abs().max() < 0.05


def test_batch_norm_refuses_to_train_on_one_image_and_says_what_to_do() -> None:
    block = SelectiveKernel(32, 32)
    with pytest.raises(ValueError, match=r"SelectiveKernel .* needs 2 images .*norm_layer="):
        block(torch.randn(1, 32, 5, 5))
    assert block.eval()(torch.randn(1, 32, 5, 5)).isfinite().all()


def test_a_norm_of_each_image_trains_on_one() -> None:
    block = SelectiveKernel(32, 32, norm_layer=partial(nn.GroupNorm, 1))
    assert block(torch.randn(1, 32, 5, 5)).isfinite().all()


def test_training_compiles_and_exports_with_every_size_dynamic() -> None:
    torch._dynamo.reset()
    block, x = SelectiveKernel(32, 32).train(), torch.randn(2, 32, 9, 7)
    torch.compile(block, fullgraph=True, backend="aot_eager")(x)
    sizes = {0: Dim("batch", max=64), 2: Dim("height", max=512), 3: Dim("width", max=512)}
    program = torch.export.export(block, (x,), dynamic_shapes=(sizes,))
    assert program.module()(torch.randn(5, 32, 11, 4)).shape == (5, 32, 11, 4)


@pytest.mark.parametrize(
    ("args", "options", "text"),
    [
        ((64, 64), {"branches": 1}, "at least 2 branches: got branches=1; pass 2"),
        ((64, 64), {"kernel_sizes": (3,)}, r"at least 2 branches: got kernel_sizes=\(3,\)"),
        ((64, 64), {"kernel_sizes": (3, 6)}, r"kernel_sizes\[1\] must be odd: .*pass 5 or 7"),
        ((64, 64), {"kernel_sizes": (1, 3)}, r"got kernel_sizes=\(1, 3\); pass dilated=False"),
        (
            (64, 64),
            {"kernel_sizes": (3, 7), "branches": 3},
            r"one kernel size: got branches=3 and kernel_sizes=\(3, 7\); pass one of the two",
        ),
        ((48, 64), {}, "must divide in_channels: got in_channels=48 and groups=32; .*groups=16"),
        ((64, 48), {}, "must divide out_channels: got out_channels=48 and groups=32"),
        ((64, 64), {"groups": 0}, "groups must be at least 1: got groups=0"),
        ((64, 64), {"hidden_channels": 0}, "at least 1 hidden channel: got hidden_channels=0"),
        ((64, 64), {"reduction": 0}, "reduction must be at least 1"),
    ],
)
def test_impossible_options_are_refused(
    args: tuple[int, int], options: dict[str, Any], text: str
) -> None:
    with pytest.raises(ValueError, match=text):
        SelectiveKernel(*args, **options)


def test_autocast_selects_in_the_type_of_the_branches() -> None:
    """A softmax in float32 must not turn the whole map into float32."""
    block = SelectiveKernel(32, 32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert block(torch.randn(2, 32, 5, 7)).dtype == torch.bfloat16
