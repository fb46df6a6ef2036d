"""What single gates refuse, and training on one image."""

from functools import partial

import pytest
import torch
from torch import nn
from torch.export import Dim

import torchplug as tp
from tests.contract.cases import randomize
from tests.oracles.bam import reference
from torchplug.kernels import eager


def test_bam_with_batch_norm_refuses_to_train_on_one_image_and_says_what_to_do() -> None:
    block = tp.BAM(32)
    with pytest.raises(ValueError, match=r"BAM .* needs 2 images in training.*norm_layer="):
        block(torch.randn(1, 32, 5, 5))
    assert block.eval()(torch.randn(1, 32, 5, 5)).isfinite().all()


def test_bam_with_a_norm_of_each_image_trains_on_one() -> None:
    block = tp.BAM(32, norm_layer=partial(nn.GroupNorm, 1))
    assert block(torch.randn(1, 32, 5, 5)).isfinite().all()


@pytest.mark.parametrize("combine", ["product", "sum", "max"])
@pytest.mark.parametrize("size", [(9, 7), (96, 100)])
def test_bam_learns_alike_on_maps_of_any_size(combine: str, size: tuple[int, int]) -> None:
    """The large one takes the way by pieces, which writes its own gradients."""
    block = tp.BAM(16, reduction=4, combine=combine, dtype=torch.float64).eval()
    randomize(block, 0)
    x = torch.randn(2, 16, *size, dtype=torch.float64, requires_grad=True)
    assert (x.numel() >= eager.SMALLEST) == (size[0] > 50)
    cotangent = torch.randn_like(x)
    results = []
    for function in (block, lambda x: reference(block, x)):
        y = function(x)
        results.append([y, *torch.autograd.grad((y * cotangent).sum(), [x, *block.parameters()])])
    for ours, wanted in zip(*results, strict=True):
        torch.testing.assert_close(ours, wanted, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(
    ("build", "text"),
    [
        (lambda: tp.CBAM(32, kernel_size=4), "kernel_size must be odd: got kernel_size=4"),
        (lambda: tp.CBAM(32, order="parallel"), "order is one of 'channel_first'"),
        (lambda: tp.CBAM(32, pools=()), "a channel gate needs a pool"),
        (lambda: tp.CBAM(32, pools=("mean",)), "pools is one of"),
        (lambda: tp.BAM(32, combine="times"), "combine is one of 'product', 'sum', 'max'"),
        (lambda: tp.BAM(32, channel_layers=0), "BAM needs a channel layer"),
        (lambda: tp.ConcurrentSE(8, fusion="mean"), "fusion is one of 'max', 'add'"),
        (lambda: tp.GlobalContext(32, hidden_channels=1), "at least 2 hidden channels"),
        (lambda: tp.SqueezeExcite(8), r"reduction=16; pass hidden_channels=1 or reduction <= 8"),
        (lambda: tp.SqueezeExcite(0), "channels must be at least 1"),
        (lambda: tp.SqueezeExcite(8, reduction=0), "reduction must be at least 1"),
    ],
)
def test_impossible_options_are_refused(build: object, text: str) -> None:
    with pytest.raises(ValueError, match=text):
        build()


def test_cbam_starts_with_a_spatial_gate_of_one_half_as_the_authors_do() -> None:
    gate = tp.SpatialGate().find_gate(torch.randn(2, 8, 5, 7))
    assert torch.equal(gate, torch.full_like(gate, 0.5))


@pytest.mark.parametrize(
    "norm_layer", [nn.SyncBatchNorm, partial(nn.GroupNorm, 1), partial(nn.BatchNorm2d, eps=1e-3)]
)
def test_the_spatial_gate_starts_at_one_half_with_any_norm_that_has_a_weight(
    norm_layer: object,
) -> None:
    gate = tp.SpatialGate(norm_layer=norm_layer).eval().find_gate(torch.randn(2, 8, 5, 7))
    assert torch.equal(gate, torch.full_like(gate, 0.5))


def test_a_norm_without_a_weight_is_accepted_by_the_spatial_gate() -> None:
    gate = tp.SpatialGate(norm_layer=partial(nn.BatchNorm2d, affine=False))
    assert gate(torch.randn(2, 8, 5, 7)).isfinite().all()


def test_the_spatial_gate_takes_the_authors_momentum_unless_the_user_names_one() -> None:
    assert tp.SpatialGate().norm.momentum == 0.01
    assert tp.SpatialGate(norm_layer=nn.SyncBatchNorm).norm.momentum == 0.01
    assert tp.SpatialGate(norm_layer=partial(nn.BatchNorm2d, momentum=0.3)).norm.momentum == 0.3


def test_a_channel_of_zeros_gets_a_finite_gradient_through_every_pool() -> None:
    x = torch.randn(2, 16, 4, 4)
    x[:, 0] = 0
    tp.ChannelGate(16, pools=("avg", "max", "lp", "lse"))(x.requires_grad_()).sum().backward()
    assert x.grad.isfinite().all()


def test_the_lp_pool_of_a_large_half_precision_map_does_not_overflow() -> None:
    x = torch.full((1, 16, 60, 60), 30.0, dtype=torch.float16)
    assert tp.ChannelGate(16, pools=("lp",), dtype=torch.float16)(x).isfinite().all()


@pytest.mark.parametrize("key", ["cbam", "bam", "scse"])
def test_training_compiles_and_exports_with_every_size_dynamic(key: str) -> None:
    torch._dynamo.reset()
    block = tp.get_card(key).factory(32).train()
    x = torch.randn(2, 32, 9, 7)
    torch.compile(block, fullgraph=True, backend="aot_eager")(x)
    sizes = {0: Dim("batch", max=64), 2: Dim("height", max=512), 3: Dim("width", max=512)}
    program = torch.export.export(block, (x,), dynamic_shapes=(sizes,))
    assert program.module()(torch.randn(5, 32, 11, 4)).shape == (5, 32, 11, 4)


def test_layer_choices_reach_both_gates() -> None:
    both = tp.ConcurrentSE(8, act_layer=nn.SiLU, gate_layer=nn.Hardsigmoid)
    assert isinstance(both.channel.act, nn.SiLU)
    assert isinstance(both.channel.gate, nn.Hardsigmoid)
    assert isinstance(both.spatial.gate, nn.Hardsigmoid)
    one_after_the_other = tp.CBAM(32, gate_layer=nn.Hardsigmoid)
    assert isinstance(one_after_the_other.channel.gate, nn.Hardsigmoid)
    assert isinstance(one_after_the_other.spatial.gate, nn.Hardsigmoid)


def test_a_group_of_one_value_is_refused_with_the_way_out() -> None:
    norm = partial(nn.GroupNorm, 1)
    with pytest.raises(ValueError, match=r"2 values: got 1 groups of 1 channels.*reduction="):
        tp.BAM(16, norm_layer=norm)(torch.randn(1, 16, 7, 7))
    assert tp.BAM(16, reduction=8, norm_layer=norm)(torch.randn(1, 16, 7, 7)).isfinite().all()


@pytest.mark.parametrize(("depth", "length"), [(1, 2), (3, 0), (2, 4)])
def test_the_authors_bam_is_read_with_any_number_of_layers(depth: int, length: int) -> None:
    """Names as the authors' loops make them: their norms count from one."""
    gate = "channel_att.gate_c.gate_c_"
    spatial = "spatial_att.gate_s.gate_s_"
    theirs = [f"{gate}fc_{i}" for i in range(depth)] + [f"{gate}bn_{i + 1}" for i in range(depth)]
    theirs += [f"{gate}fc_final", f"{spatial}conv_reduce0", f"{spatial}bn_reduce0"]
    theirs += [f"{spatial}{kind}_di_{i}" for i in range(length) for kind in ("conv", "bn")]
    theirs += [f"{spatial}conv_final"]
    state = {f"{name}.weight": torch.tensor(float(i)) for i, name in enumerate(theirs)}
    read = tp.convert_state_dict(state, "bam", source="official")
    ours = tp.BAM(32, channel_layers=depth, spatial_layers=length).state_dict()
    assert set(read) == {name for name in ours if name.endswith("weight")}
    order = [f"channel.{i}.0" for i in range(depth)] + [f"channel.{i}.1" for i in range(depth)]
    order += [f"channel.{depth}", "spatial.0.0", "spatial.0.1"]
    order += [f"spatial.{i + 1}.{kind}" for i in range(length) for kind in (0, 1)]
    assert [f"{name}.weight" for name in (*order, f"spatial.{length + 1}")] == list(read)
