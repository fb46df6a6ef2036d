"""Modules in the place of a host's module: what is kept, how they start, what tools do to them."""

import copy
import io
import pickle
import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnxruntime
import pytest
import segmentation_models_pytorch as smp
import timm
import torch
import torchvision
from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_eval
from torchvision.models.detection.backbone_utils import resnet_fpn_backbone

import torchplug as tp
from torchplug.surgery.replace import Beside, Blend, Instead

EXAMPLE = (2, 3, 64, 64)
CONVS = ["acnet", "dwconv", "mixconv", "sk", "splat"]


def is_dense3x3(path: str, module: nn.Module) -> bool:
    is_conv = isinstance(module, nn.Conv2d) and ".torchplug." not in path
    return is_conv and module.kernel_size == (3, 3) and module.groups == 1


def has_even_width(path: str, module: nn.Module) -> bool:
    return is_dense3x3(path, module) and module.in_channels % 2 == 0


def unet() -> nn.Module:
    return smp.Unet("resnet18", encoder_weights=None)


HOSTS: dict[str, Callable[[], nn.Module]] = {
    "torchvision-resnet18": torchvision.models.resnet18,
    "timm-resnet26d": lambda: timm.create_model("resnet26d"),
}


def draw(*shape: int, seed: int = 3) -> torch.Tensor:
    return torch.randn(shape or EXAMPLE, generator=torch.Generator().manual_seed(seed))


def fingerprint(model: nn.Module) -> list[object]:
    return [
        *((name, type(module), module.training) for name, module in model.named_modules()),
        *((name, id(value)) for name, value in model.state_dict(keep_vars=True).items()),
        *((name, value.requires_grad) for name, value in model.named_parameters()),
        *(value.clone().numpy().tobytes() for value in model.state_dict().values()),
        *(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules()),
        *(sorted(vars(module)) for module in model.modules()),
    ]


def wake(model: nn.Module) -> nn.Module:
    """Make every plug and every norm count."""
    generator = torch.Generator().manual_seed(7)
    for _, _, plug in tp.find_plugs(model):
        for weight in plug.parameters():
            if weight.ndim == 1:
                nn.init.uniform_(weight, 0.5, 1.0, generator=generator)
    for norm in model.modules():
        if isinstance(norm, nn.BatchNorm2d):
            norm.running_mean.copy_(0.1 * torch.randn(norm.num_features, generator=generator))
            norm.running_var.uniform_(0.5, 1.5, generator=generator)
            nn.init.uniform_(norm.weight, 0.5, 1.5, generator=generator)
    return model


def assert_close(got: torch.Tensor, wanted: torch.Tensor, tolerance: float = 1e-5) -> None:
    assert (got - wanted).abs().max() <= tolerance * wanted.abs().max()


@pytest.fixture(scope="module")
def small() -> Callable[..., nn.Module]:
    """Build a resnet18 with awake plugs in the place of two convolutions."""

    def make(key: str, start: str = "identity") -> nn.Module:
        model = torchvision.models.resnet18().eval()
        places = ["layer1.0.conv1", "layer2.0.conv1"]  # the second has stride 2
        at = None if key == "blazeblock" else places
        tp.plug(model, key, at, example=EXAMPLE, start=start)
        return wake(model)

    return make


@pytest.mark.parametrize("host", sorted(HOSTS))
@pytest.mark.parametrize("key", CONVS)
def test_in_the_place_of_every_3x3_the_start_is_bit_equal_and_the_base_is_kept(
    key: str, host: str
) -> None:
    model = HOSTS[host]().eval()
    at = has_even_width if key == "splat" else is_dense3x3
    wanted = [path for path, module in model.named_modules() if at(path, module)]
    x, before, base = draw(), fingerprint(model), copy.deepcopy(model.state_dict())
    expected = model(x)

    report = tp.plug(model, key, at, example=EXAMPLE)

    assert list(report.paths) == wanted
    assert torch.equal(model(x), expected)
    assert (report.max_difference, report.max_relative_difference) == (0, 0)
    state = model.state_dict()
    assert all(torch.equal(state[name], value) for name, value in base.items())
    into_plugged = model.load_state_dict(base, strict=False)
    assert not into_plugged.unexpected_keys
    assert all(".torchplug." in name for name in into_plugged.missing_keys)
    into_base = HOSTS[host]().load_state_dict(state, strict=False)
    assert not into_base.missing_keys
    assert all(".torchplug." in name for name in into_base.unexpected_keys)

    assert tp.unplug(model) == len(wanted)
    assert fingerprint(model) == before
    assert torch.equal(model(x), expected)


@pytest.mark.parametrize("start", ["seeded", "paper"])
@pytest.mark.parametrize("key", CONVS)
def test_other_starts_tell_how_far_the_output_moved(key: str, start: str) -> None:
    model = torchvision.models.resnet18().eval()
    x, before = draw(), fingerprint(model)
    expected = model(x)
    report = tp.plug(model, key, "layer?.*.conv2", example=x, start=start)
    distance = (model(x) - expected).abs().max().detach()
    assert report.max_difference == distance
    assert report.max_relative_difference == pytest.approx(
        float(distance / expected.detach().abs().max())
    )
    if distance > 0:
        assert f"largest difference {distance:.3g}, " in str(report)
    tp.unplug(model)
    assert fingerprint(model) == before


def test_acnet_in_resnet18_has_the_published_count_and_cost() -> None:
    report = tp.plug(torchvision.models.resnet18(), "acnet", is_dense3x3, example=(1, 3, 224, 224))
    # the row and column kernels, two thirds of the 3x3 kernels, and the norms of both: the
    # host's own norm is the third of each block
    assert report.parameters == 19_028_520
    assert report.base_parameters == 11_689_512
    assert report.flops == (2 * 1_814_073_344, 2 * 2_931_593_216)
    assert report.idle_parameters == 0


class DenseMobileNet(nn.Sequential):
    """The network that MobileNet is compared with in its paper: 29.3 million parameters."""

    WIDTHS = (32, 64, 128, 128, 256, 256, 512, 512, 512, 512, 512, 512, 1024, 1024)
    HALVED = (0, 2, 4, 6, 12)

    def __init__(self) -> None:
        layers: list[nn.Module] = []
        width = 3
        for index, out in enumerate(self.WIDTHS):
            stride = 2 if index in self.HALVED else 1
            conv = nn.Conv2d(width, out, 3, stride=stride, padding=1, bias=False)
            layers += [conv, nn.BatchNorm2d(out), nn.ReLU()]
            width = out
        super().__init__(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, 1000))


def test_separable_convolutions_make_the_mobilenet_of_the_paper() -> None:
    model = DenseMobileNet()
    report = tp.plug(model, "dwconv", example=(1, 3, 64, 64), start="paper")
    assert round(report.base_parameters / 1e6, 1) == 29.3
    assert report.parameters - report.idle_parameters == 4_231_976  # as in Keras and timm
    assert report.skipped == (("0", "its paper keeps the first convolution"),)
    assert "skipped            1: 0" in str(report)
    assert "28,256,256 of the base kept at rest" in str(report)
    assert report.flops[1] < report.flops[0] / 7


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


SIDES = ("horizontal", "vertical")


def step(model: nn.Module, steps: int = 1) -> set[str]:
    """Train for some steps; return the names of the parameters that moved."""
    before = {name: value.detach().clone() for name, value in model.named_parameters()}
    learned = [weight for weight in model.parameters() if weight.requires_grad]
    optimizer = torch.optim.SGD(learned, lr=0.1)
    for _ in range(steps):
        optimizer.zero_grad()
        outputs = model(draw(4, 3, 64, 64))
        outputs = list(outputs.values()) if isinstance(outputs, dict) else [outputs]
        sum(output.square().mean() for output in outputs).backward()
        optimizer.step()
    after = dict(model.named_parameters())
    return {name for name, value in before.items() if not torch.equal(value, after[name])}


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


@pytest.mark.parametrize(
    ("conv", "key", "text"),
    [
        (nn.Conv2d(4, 4, 3, padding=2, dilation=2), "sk", "got dilation=2"),
        (nn.Conv2d(4, 4, 3, padding=0), "sk", "got padding=0 with kernel_size=3"),
        (nn.Conv2d(4, 4, 3, padding=1, padding_mode="reflect"), "sk", "padding_mode='reflect'"),
        (nn.Conv2d(4, 4, (1, 3), padding=(0, 1)), "acnet", r"got kernel_size=\(1, 3\)"),
        (nn.Conv2d(4, 4, 3, padding=1, stride=(1, 2)), "acnet", r"got stride=\(1, 2\)"),
        (nn.Conv2d(4, 4, 4, padding="same"), "acnet", "got padding='same' with kernel_size=4"),
        (nn.Conv2d(4, 4, 2), "acnet", "cannot be built for 0"),
        (nn.Conv2d(4, 4, 3, padding=1, groups=2), "dwconv", "got groups=2; choose dense"),
        (nn.Conv2d(4, 4, 3, padding=1, groups=2), "mixconv", "got groups=2 of 4 channels"),
        (nn.Conv2d(9, 6, 3, padding=1, groups=3), "splat", r"radix \* cardinality must divide"),
        (nn.BatchNorm2d(4), "acnet", "stands in the place of an nn.Conv2d: got BatchNorm2d"),
    ],
)
def test_a_property_that_cannot_be_expressed_is_named(conv: nn.Module, key: str, text: str) -> None:
    width = conv.in_channels if isinstance(conv, nn.Conv2d) else 4
    model = nn.Sequential(conv, nn.ReLU())
    before = fingerprint(model)
    with pytest.raises(tp.PlugError, match=text):
        tp.plug(model, key, "0", example=(2, width, 9, 9))
    assert fingerprint(model) == before


CASES: dict[str, tuple[Callable[[nn.Module], object], type[Exception], str]] = {
    "seeds of a block": (
        lambda m: tp.plug(m, "blazeblock", example=EXAMPLE, start="seeded"),
        tp.PlugError,
        "blazeblock in the place of BasicBlock at layer1.0",
    ),
    "seeds behind a module": (
        lambda m: tp.plug(m, "se", example=EXAMPLE, start="seeded"),
        tp.UsageError,
        "'identity' or 'paper'",
    ),
    "unknown mode": (
        lambda m: tp.plug(m, "se", example=EXAMPLE, mode="beside"),
        tp.UsageError,
        "'attach', 'replace' or 'merge'",
    ),
    "no place fits": (
        lambda m: tp.plug(m, "mixconv", example=EXAMPLE),
        tp.PlugError,
        "16 that it does not fit; layer1.0.conv1: its paper replaces depthwise",
    ),
    "half of a list": (
        lambda m: tp.plug(m, "acnet", ["layer1.0.conv1", "layer1.0.bn1"], example=EXAMPLE),
        tp.PlugError,
        "got BatchNorm2d",
    ),
    "no decoder": (
        lambda m: tp.plug(m, "seb", example=EXAMPLE),
        tp.PlugError,
        "this model has no decoder module",
    ),
    "a block that loses channels": (
        lambda m: tp.plug(m, "blazeblock", "layer1.0.conv1", example=EXAMPLE, stride=2),
        tp.PlugError,
        "must keep the map's shape",
    ),
    "nothing to merge": (tp.merge_plugs, tp.PlugError, "plug acnet in the place"),
}


@pytest.mark.parametrize("case", sorted(CASES))
def test_a_failing_replacement_says_why_and_changes_nothing(case: str) -> None:
    call, error, text = CASES[case]
    model = torchvision.models.resnet18()
    before = fingerprint(model)
    with pytest.raises(error, match=text):
        call(model)
    assert fingerprint(model) == before


def test_two_replacements_do_not_stand_in_one_place() -> None:
    model = torchvision.models.resnet18()
    tp.plug(model, "acnet", "layer1.0.conv1", example=EXAMPLE)
    before = fingerprint(model)
    with pytest.raises(tp.PlugError, match="one plug stands in the place of a module"):
        tp.plug(model, "sk", "layer1.*.conv1", example=EXAMPLE, start="paper")
    assert fingerprint(model) == before


def test_replacements_and_plugs_behind_live_together() -> None:
    model = torchvision.models.resnet18().eval()
    expected = model(draw())
    tp.plug(model, "sk", "layer1.0.conv1", example=EXAMPLE, start="paper")
    tp.plug(model, "se", "layer1.0.conv1", example=EXAMPLE, start="paper")
    tp.plug(model, "blazeblock", "layer1.0", example=EXAMPLE)
    both = model(draw())
    assert tp.unplug(model, "se") == 1
    assert not torch.equal(model(draw()), both)
    assert tp.unplug(model) == 2
    assert torch.equal(model(draw()), expected)


def test_a_plan_repeats_replacements_on_a_fresh_model() -> None:
    model = torchvision.models.resnet18().eval()
    plans = [
        tp.plug(model, "sk", "layer?.0.conv1", example=EXAMPLE, start="paper").plan,
        tp.plug(model, "blazeblock", example=EXAMPLE, start="paper").plan,
    ]
    other = torchvision.models.resnet18().eval()
    assert {plug.mode for plan in plans for plug in plan.plugs} == {"replace"}
    for plan in plans:
        again = tp.Plan.from_json(plan.to_json())
        assert again == plan
        assert tp.plug(other, again, example=EXAMPLE).plan == plan
    other.load_state_dict(model.state_dict())
    assert torch.equal(other(draw()), model(draw()))


def test_a_plan_of_a_merge_repeats_on_a_fresh_model() -> None:
    model = unet().eval()
    plan = tp.plug(model, "seb", example=EXAMPLE, start="paper").plan
    other = unet().eval()
    tp.plug(other, tp.Plan.from_json(plan.to_json()), example=EXAMPLE)
    other.load_state_dict(model.state_dict())
    assert torch.equal(other(draw()), model(draw()))


class Wider(nn.Module):
    """A convolution of the user's own."""

    def __init__(self, in_channels: int, out_channels: int, *, stride: int = 1) -> None:
        super().__init__()
        self.conv = nn.Conv2d(in_channels, out_channels, 5, stride=stride, padding=2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.conv(x)


def test_a_convolution_of_ones_own_takes_the_place() -> None:
    model = torchvision.models.resnet18().eval()
    report = tp.plug(model, Wider, "layer?.0.conv1", example=EXAMPLE, mode="replace")
    assert report.max_difference == 0
    assert model.layer2[0].conv1.torchplug.wider.module.conv.stride == (2, 2)
    grouped = nn.Sequential(nn.Conv2d(4, 4, 3, padding=1, groups=2), nn.ReLU())
    with pytest.raises(tp.PlugError, match="got groups=2"):
        tp.plug(grouped, Wider, "0", example=(1, 4, 8, 8), mode="replace")


@pytest.mark.parametrize(
    ("key", "start"), [("acnet", "identity"), ("sk", "identity"), ("dwconv", "seeded")]
)
def test_a_norm_that_a_tool_folds_in_reaches_the_replacement(
    key: str, start: str, small: Callable[..., nn.Module]
) -> None:
    model = small(key, start)
    expected = model(draw())
    for block in (model.layer1[0], model.layer2[0]):
        block.conv1 = fuse_conv_bn_eval(block.conv1, block.bn1)
        block.bn1 = nn.Identity()
    assert_close(model(draw()), expected)
    assert_close(pickle.loads(pickle.dumps(model))(draw()), expected)


@pytest.mark.parametrize(
    ("key", "start"), [("acnet", "identity"), ("sk", "identity"), ("dwconv", "seeded")]
)
def test_the_fuse_of_ultralytics_keeps_replacements(key: str, start: str) -> None:
    yolo = pytest.importorskip("ultralytics").YOLO("yolov8n.yaml").model.eval()
    x = draw(1, 3, 64, 64)
    tp.plug(yolo, key, "model.*.cv1.conv", example=x, start=start)
    wake(yolo)
    expected = yolo(x)[0]
    yolo.fuse(verbose=False)
    assert not any(isinstance(m, nn.BatchNorm2d) for m in yolo.model[2].cv1.children())
    assert_close(yolo(x)[0], expected)


def test_assigning_a_checkpoint_is_not_taken_for_a_folded_norm() -> None:
    model = nn.Sequential(nn.Conv2d(4, 4, 3, padding=1), nn.BatchNorm2d(4)).eval()
    tp.plug(model, "sk", "0", example=(1, 4, 8, 8))
    wake(model)
    expected = model(draw(1, 4, 8, 8))
    model.load_state_dict(copy.deepcopy(model.state_dict()), assign=True)
    assert torch.equal(model(draw(1, 4, 8, 8)), expected)
    trained = {"0.weight": model[0].weight + 0.01, "0.bias": model[0].bias + 1}
    model.load_state_dict(trained, assign=True, strict=False)
    assert model[0].torchplug.sk.scale is None


def test_a_norm_over_a_kernel_of_zeros_cannot_be_folded() -> None:
    model = nn.Sequential(nn.Conv2d(4, 4, 3, padding=1), nn.BatchNorm2d(4)).eval()
    tp.plug(model, "acnet", "0", example=(1, 4, 8, 8))
    model[0].weight.data[2] = 0
    with pytest.raises(tp.PlugError, match="a kernel of zeros; call unplug or merge_plugs"):
        fuse_conv_bn_eval(model[0], model[1])


def test_merged_asymmetric_convolutions_compute_the_same(small: Callable[..., nn.Module]) -> None:
    model = small("acnet")
    expected, base = model(draw()), torchvision.models.resnet18()
    assert tp.merge_plugs(model) == 2
    assert not tp.find_plugs(model)
    assert [type(m) for m in model.modules()] == [type(m) for m in base.modules()]
    biases = 64 + 128
    assert sum(p.numel() for p in model.parameters()) == 11_689_512 + biases
    assert_close(model(draw()), expected)


def test_merging_works_after_a_fuse_and_for_mixed_convolutions(
    small: Callable[..., nn.Module],
) -> None:
    model = small("acnet")
    expected = model(draw())
    block = model.layer1[0]
    block.conv1, block.bn1 = fuse_conv_bn_eval(block.conv1, block.bn1), nn.Identity()
    tp.merge_plugs(model)
    assert_close(model(draw()), expected)

    mixed = small("mixconv", "paper")
    expected = mixed(draw())
    assert tp.merge_plugs(mixed) == 2
    assert mixed.layer1[0].conv1.kernel_size == (7, 7)
    assert_close(mixed(draw()), expected)


def test_merging_in_training_mode_changes_nothing(small: Callable[..., nn.Module]) -> None:
    model = small("acnet").train()
    before = fingerprint(model)
    with pytest.raises(tp.UsageError, match="in training mode"):
        tp.merge_plugs(model)
    assert fingerprint(model) == before


WAYS = [("acnet", "identity"), ("sk", "identity"), ("dwconv", "seeded"), ("blazeblock", "identity")]


@pytest.mark.parametrize(("key", "start"), [*WAYS, ("seb", "identity")])
@pytest.mark.filterwarnings("ignore")
def test_copies_compilers_and_exporters_keep_replacements(
    key: str, start: str, small: Callable[..., nn.Module]
) -> None:
    model, x = small(key, start) if key != "seb" else awake_unet(), draw()
    expected = model(x)
    assert torch.equal(copy.deepcopy(model)(x), expected)
    torch._dynamo.reset()
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    assert_close(compiled(x), expected)
    compiled(x).sum().backward()
    for strict in (False, True):
        program = torch.export.export(model, (x,), strict=strict)
        assert_close(program.module()(x), expected)
    file = io.BytesIO()
    torch.onnx.export(model, (x,), file, dynamo=True, verbose=False)
    session = onnxruntime.InferenceSession(file.getvalue(), providers=["CPUExecutionProvider"])
    (output,) = session.run(None, {session.get_inputs()[0].name: x.numpy()})
    assert_close(torch.from_numpy(output), expected, 1e-4)


def awake_unet() -> nn.Module:
    model = unet().eval()
    tp.plug(model, "seb", example=EXAMPLE)
    return wake(model)


def test_another_process_unpickles_replacements(
    small: Callable[..., nn.Module], tmp_path: Path
) -> None:
    models = [small(key, start) for key, start in WAYS] + [awake_unet()]
    torch.save((models, draw(), [model(draw()) for model in models]), tmp_path / "models.pt")
    code = (
        "import sys, torch;"
        "models, x, outputs = torch.load(sys.argv[1], weights_only=False);"
        "pairs = [(m(x), y) for m, y in zip(models, outputs, strict=True)];"
        "assert all((a - b).abs().max() <= 1e-5 * b.abs().max() for a, b in pairs)"
    )
    subprocess.run([sys.executable, "-c", code, str(tmp_path / "models.pt")], check=True)


@pytest.mark.parametrize("key", ["acnet", "sk", "splat"])
def test_half_precision_and_channels_last_work(key: str, small: Callable[..., nn.Module]) -> None:
    model, x = small(key), draw()
    expected = model(x)
    last = model.to(memory_format=torch.channels_last)
    assert_close(last(x.to(memory_format=torch.channels_last)), expected, 1e-4)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.isfinite(model(x)).all()


def test_distributed_training_finds_no_weight_unused(tmp_path: Path) -> None:
    model = torchvision.models.resnet18(num_classes=4).train()
    tp.plug(model, "dwconv", "layer?.*.conv2", example=EXAMPLE, start="seeded")
    tp.plug(model, "sk", "layer?.*.conv1", example=EXAMPLE)
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1
    )
    try:
        wrapped = nn.parallel.DistributedDataParallel(model)
        for _ in range(2):  # a weight without a gradient fails in the second
            wrapped(draw(4, 3, 64, 64)).square().mean().backward()
    finally:
        torch.distributed.destroy_process_group()


def test_semantic_embedding_refines_what_a_decoder_receives() -> None:
    model = unet().eval()
    before, expected = fingerprint(model), model(draw())
    report = tp.plug(model, "seb", example=EXAMPLE)
    assert report.paths == ("decoder",)
    assert torch.equal(model(draw()), expected)
    # four encoder maps have coarser ones above them; the image is no encoder map
    assert report.gate_parameters == 4
    received: list[Any] = []
    decoder = model.decoder
    wake(model)
    handle = decoder.torchplug.seb.register_forward_hook(
        lambda module, args, output: received.append((args[0][0], output[0][0]))
    )
    active = model(draw())
    handle.remove()
    (old, new), *_ = received
    gain, embed = decoder.torchplug.seb.gain, decoder.torchplug.seb.embeddings
    assert torch.equal(new[0], old[0])
    assert torch.equal(new[-1], old[-1])
    wanted = old[1] + gain[0] * (embed[0](old[1], old[2], old[3], old[4], old[5]) - old[1])
    assert_close(new[1], wanted)
    assert not torch.equal(active, expected)
    tp.unplug(model)
    assert [type(m) for m in model.modules()] == [type(m) for m in unet().modules()]
    assert len(before) == len(fingerprint(model))


def test_semantic_embedding_leaves_out_what_a_decoder_does_not_read() -> None:
    model = smp.DeepLabV3Plus("resnet18", encoder_weights=None)
    report = tp.plug(model, "seb", example=EXAMPLE)
    assert report.gate_parameters == 1
    assert {f"decoder.torchplug.seb.{name}" for name in ("gain",)} <= step(model.train())


class ReadsTheImage(nn.Module):
    """A decoder that looks at the image too."""

    def forward(self, maps: list[torch.Tensor]) -> torch.Tensor:
        return sum(nn.functional.interpolate(x, 16).mean(1) for x in maps)


class Pyramid(nn.Module):
    """Two maps and the image go into the decoder."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 4, 3, stride=2, padding=1)
        self.second = nn.Conv2d(4, 8, 3, stride=2, padding=1)
        self.decoder = ReadsTheImage()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.first(x)
        return self.decoder([x, y, self.second(y)])


def test_the_image_is_no_map_to_refine() -> None:
    model = Pyramid()
    assert tp.plug(model, "seb", example=(2, 3, 16, 16)).gate_parameters == 1
    assert model.decoder.torchplug.seb.embeddings[0].high_channels == (8,)


def test_semantic_embedding_goes_where_it_is_told() -> None:
    model = smp.FPN("resnet18", encoder_weights=None).eval()
    paths = tp.plug(model, "seb", "decoder.p?", example=EXAMPLE).paths
    assert paths == ("decoder.p4", "decoder.p3", "decoder.p2")
    with pytest.raises(tp.PlugError, match="got 'encoder'; name one of these with at=: decoder"):
        tp.plug(model, "seb", "encoder", example=EXAMPLE)


def fpn() -> nn.Module:
    return resnet_fpn_backbone(backbone_name="resnet18", weights=None, trainable_layers=5)


# the default place of each, or, where the model cannot tell it by itself, that place by name
PLACES: dict[str, tuple[Callable[[], nn.Module], Any]] = {
    **dict.fromkeys(
        ["acnet", "aspp", "bam", "blazeblock", "cbam", "cc", "dwconv", "gc", "nl", "ppm", "rfb"],
        (torchvision.models.resnet18, None),
    ),
    **dict.fromkeys(["scse", "se", "sk", "spp", "splat"], (torchvision.models.resnet18, None)),
    "mixconv": (torchvision.models.mobilenet_v2, None),
    "seb": (unet, None),
    "ssh": (fpn, "fpn.layer_blocks.*"),
    "strippool": (torchvision.models.resnet18, "layer4.*.bn1"),
}


@pytest.mark.parametrize("key", sorted(tp.cards()))
def test_every_module_goes_to_its_place_starts_as_the_identity_and_trains(key: str) -> None:
    make, at = PLACES[key]
    model = make().eval()
    x, before = draw(), fingerprint(model)
    expected = model(x)
    report = tp.plug(model, key, at, example=EXAMPLE)
    got = model(x)
    pairs = zip(got.values(), expected.values(), strict=True) if isinstance(got, dict) else None
    assert all(torch.equal(a, b) for a, b in pairs or [(got, expected)])
    assert report.max_difference == 0
    copied = copy.deepcopy(model)
    moved = step(copied.train())
    assert any(".torchplug." in name for name in moved)
    tp.unplug(model)
    assert fingerprint(model) == before


def test_the_report_tells_cost_and_change() -> None:
    model = torchvision.models.resnet18()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        report = tp.plug(model, "dwconv", example=(1, 3, 64, 64), start="seeded")
    before, after = report.flops
    text = str(report)
    assert f"{before:,} before, {after:,} after (-8" in text
    assert f"{report.idle_parameters:,} of the base kept at rest" in text
    assert "of the largest value" in text
    assert report.parameters == sum(p.numel() for p in model.parameters())
