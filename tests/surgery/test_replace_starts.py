"""How modules in the place of others start, and what of the old one they keep and train."""

import pytest
import timm
import torch
import torchvision
from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

import torchplug as tp
from tests.surgery.replacing import (
    EXAMPLE,
    assert_close,
    draw,
    fingerprint,
    step,
    wake,
)
from torchplug.surgery.replace import Beside, Blend, Instead

SIDES = ("horizontal", "vertical")


def test_the_old_kernel_is_the_square_one_and_learns_on() -> None:
    model = torchvision.models.resnet18(num_classes=4).train()
    tp.plug(model, "acnet", "layer1.0.conv1", example=EXAMPLE)
    host = model.layer1[0].conv1
    plug = host.torchplug.acnet
    assert isinstance(plug, Beside)
    moved = step(model, 2)
    assert "layer1.0.conv1.weight" in moved
    gammas = {f"layer1.0.conv1.torchplug.acnet.module.{n}_norm.weight" for n in SIDES}
    kernels = {f"layer1.0.conv1.torchplug.acnet.module.{n}.weight" for n in SIDES}
    assert gammas | kernels <= moved


@pytest.mark.parametrize("key", ["sk", "dwconv", "blazeblock"])
def test_a_blend_trains_the_old_module_and_the_gain_first_and_then_the_new_one(key: str) -> None:
    model = torchvision.models.resnet18(num_classes=4).train()
    path = "layer1.0" if key == "blazeblock" else "layer1.0.conv1"
    tp.plug(model, key, path, example=EXAMPLE)
    assert isinstance(model.get_submodule(path).torchplug.get_submodule(key), Blend)
    new = {name for name, _ in model.named_parameters() if f"{key}.module." in name}
    first = step(model)
    assert f"{path}.torchplug.{key}.gain" in first
    assert not first & new
    assert "layer1.0.conv1.weight" in first
    assert step(model) & new


@pytest.mark.parametrize("start", ["seeded", "paper"])
def test_a_replaced_convolution_rests_until_the_plug_is_taken_out(start: str) -> None:
    model = torchvision.models.resnet18(num_classes=4).train()
    model.layer1[0].conv2.weight.requires_grad_(False)
    before = fingerprint(model)
    places = ["layer1.0.conv1", "layer1.0.conv2"]
    report = tp.plug(model, "dwconv", places, example=EXAMPLE, start=start)
    host = model.layer1[0].conv1
    assert isinstance(host.torchplug.dwconv, Instead)
    assert report.idle_parameters == 2 * host.weight.numel()
    assert not host.weight.requires_grad
    tp.unplug(model)
    assert fingerprint(model) == before
    tp.plug(model, "dwconv", places, example=EXAMPLE, start=start)
    moved = step(model)
    assert "layer1.0.conv1.weight" not in moved
    assert "layer1.0.conv1.torchplug.dwconv.module.depthwise.weight" in moved


def test_a_mixed_convolution_holds_the_kernel_of_a_smaller_one() -> None:
    model = timm.create_model("mobilenetv3_small_050").eval()
    report = tp.plug(model, "mixconv", example=EXAMPLE, start="seeded")
    assert report.max_relative_difference < 1e-5
    assert [reason for path, reason in report.skipped if path == "conv_stem"] == [
        "its paper replaces depthwise convolutions only"
    ]
    wirings = {plug.module.wiring for _, _, plug in tp.find_plugs(model)}
    assert wirings == {"depthwise"}


def test_a_mixed_convolution_grows_beside_the_old_kernel() -> None:
    model = timm.create_model("mobilenetv3_small_050", num_classes=4).eval()
    expected = model(draw())
    report = tp.plug(model, "mixconv", example=EXAMPLE)
    assert torch.equal(model(draw()), expected)
    assert report.gate_parameters == 0
    plugs = [plug for _, _, plug in tp.find_plugs(model)]
    assert all(isinstance(plug, Beside) for plug in plugs)
    moved = step(model.train())
    assert all(f"{path}.weight" in moved for path in report.paths)
    assert sum(".mixed.branches." in name for name in moved) == 3 * len(plugs)
    grown = model.eval()(draw())
    assert tp.merge_plugs(model) == len(plugs)
    assert_close(model(draw()), grown)
    depthwise = model.get_submodule(report.paths[0])
    assert (depthwise.kernel_size, depthwise.groups) == ((7, 7), depthwise.in_channels)


def test_growth_merges_whatever_the_wiring_and_after_a_fuse() -> None:
    conv = nn.Conv2d(6, 12, 5, padding=2, stride=2)
    model = nn.Sequential(conv, nn.BatchNorm2d(12)).eval()
    options = {"kernel_sizes": (3, 7), "wiring": "split"}
    tp.plug(model, "mixconv", "0", example=(1, 6, 9, 9), **options)
    for weight in conv.torchplug.mixconv.parameters():
        nn.init.normal_(weight)
    wake(model)
    expected = model(draw(1, 6, 9, 9))
    model[0], model[1] = fuse_conv_bn_eval(model[0], model[1]), nn.Identity()
    assert_close(model(draw(1, 6, 9, 9)), expected)
    tp.merge_plugs(model)
    assert model[0].kernel_size == (7, 7)
    assert_close(model(draw(1, 6, 9, 9)), expected)


def test_a_blend_of_equals_would_not_learn_and_is_not_made() -> None:
    model = nn.Sequential(nn.Conv2d(4, 4, 3, padding=1), nn.Flatten(), nn.Linear(256, 2))
    model[0].requires_grad_(False)
    exact = {"multiplier": 9, "norm_after": "none", "act_after": "none"}
    tp.plug(model, "dwconv", "0", example=(1, 4, 8, 8), **exact)
    model(draw(2, 4, 8, 8)).square().mean().backward()
    assert model[0].torchplug.dwconv.gain.grad.abs() > 1e-3


def test_a_mixed_convolution_crops_a_larger_kernel() -> None:
    conv = nn.Conv2d(4, 4, 5, padding=2, groups=4, bias=False)
    model = nn.Sequential(conv, nn.ReLU())
    options = {"kernel_sizes": (3, 5)}
    tp.plug(model, "mixconv", "0", example=(1, 4, 8, 8), start="seeded", **options)
    small, same = conv.torchplug.mixconv.module.branches
    assert torch.equal(small.weight, conv.weight[:2, :, 1:4, 1:4])
    assert torch.equal(same.weight, conv.weight[2:])


def test_the_nearest_separable_kernel_is_found() -> None:
    torch.manual_seed(0)
    taps, mix = torch.rand(6, 1, 3, 3), torch.randn(8, 6, 1, 1)
    conv = nn.Conv2d(6, 8, 3, padding=1)
    conv.weight.data = mix * taps[:, 0]  # separable: the start has to be exact
    linear = {"norm_after": "none", "act_after": "none"}
    model = nn.Sequential(conv, nn.ReLU())
    report = tp.plug(model, "dwconv", "0", example=(1, 6, 9, 9), start="seeded", **linear)
    assert report.max_relative_difference < 1e-5
    # nine kernels for each input can hold any 3x3 kernel
    nn.init.normal_(conv.weight)
    tp.unplug(model)
    options = {**linear, "multiplier": 9}
    report = tp.plug(model, "dwconv", "0", example=(1, 6, 9, 9), start="seeded", **options)
    assert report.max_relative_difference < 1e-5
    tp.unplug(model)
    one = tp.plug(model, "dwconv", "0", example=(1, 6, 9, 9), start="seeded", **linear)
    assert one.max_relative_difference > 0.05


@pytest.mark.parametrize("groups", [1, 2])
def test_split_attention_without_its_nonlinear_parts_starts_as_the_old_convolution(
    groups: int,
) -> None:
    conv = nn.Conv2d(8, 12, 3, padding=1, groups=groups)
    if groups == 2:  # the splits of two cardinal groups see a part of the groups only
        conv.weight.data[:] = 0
    model = nn.Sequential(conv, nn.ReLU())
    plain = {"norm_layer": lambda width, **factory: nn.Identity(), "act_layer": nn.Identity}
    report = tp.plug(model, "splat", "0", example=(1, 8, 9, 9), start="seeded", **plain)
    module = conv.torchplug.splat.module
    assert module.cardinality == groups
    y = module.conv(torch.ones(1, 8, 5, 5)).chunk(2, 1)
    wanted = nn.functional.conv2d(torch.ones(1, 8, 5, 5), conv.weight, None, 1, 1, 1, groups)
    assert_close((y[0] + y[1]) / 2 + 1, wanted + 1)
    assert report.max_difference > 0 or groups == 2  # the bias has no layer to go to


def test_every_branch_of_a_selective_kernel_holds_the_old_kernel() -> None:
    conv = nn.Conv2d(8, 8, 3, padding=1, stride=2, groups=4)
    model = nn.Sequential(conv, nn.ReLU())
    tp.plug(model, "sk", "0", example=(1, 8, 9, 9), start="seeded")
    module = conv.torchplug.sk.module
    for branch in module.branches:
        assert torch.equal(branch.conv.weight, conv.weight)
        assert torch.equal(branch.norm.bias, conv.bias)
    assert not module.select.weight.any()
    tp.unplug(model)
    tp.plug(model, "sk", "0", example=(1, 8, 9, 9), start="seeded", dilated=False)
    wide = conv.torchplug.sk.module.branches[1].conv.weight
    assert torch.equal(wide[..., 1:4, 1:4], conv.weight)
    assert_close(wide.square().sum(), conv.weight.square().sum())


def test_what_the_user_gives_wins_over_the_old_convolution() -> None:
    model = torchvision.models.resnet18()
    tp.plug(model, "sk", "layer1.0.conv1", example=EXAMPLE, groups=32)
    assert model.layer1[0].conv1.torchplug.sk.module.branches[0].conv.groups == 32
