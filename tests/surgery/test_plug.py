"""Plugging keeps the base, starts as the identity, and counts what the papers count."""

import copy
import io
import pickle
import subprocess
import sys
from pathlib import Path

import onnxruntime
import pytest
import timm
import torch
import torchvision
from torch import nn

import torchplug as tp
from torchplug.surgery.attach import attach

EXAMPLE = (1, 3, 64, 64)
HOSTS = {
    "torchvision-resnet18": torchvision.models.resnet18,
    "torchvision-resnet50": torchvision.models.resnet50,
    "timm-resnet50": lambda: timm.create_model("resnet50"),
}
# arXiv papers' counts for ImageNet, reproduced from the official code
PUBLISHED = {
    ("se", "resnet50"): 28_088_024,
    ("cbam", "resnet50"): 28_089_624,
    ("bam", "resnet50"): 25_915_099,
    ("gc", "resnet50"): 28_078_773,
    ("se", "resnet101"): 49_326_872,
    ("cbam", "resnet18"): 11_779_392,
    ("cbam", "resnet34"): 21_960_468,
    ("bam", "resnet18"): 11_712_503,
}


def draw(shape: tuple[int, ...] = (2, 3, 64, 64)) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(3))


@pytest.fixture
def plugged() -> nn.Module:
    """A resnet18 with active SE plugs."""
    model = torchvision.models.resnet18().eval()
    tp.plug(model, "se", example=EXAMPLE, start="paper")
    return model


@pytest.mark.parametrize("host", sorted(HOSTS))
@pytest.mark.parametrize("key", ["se", "cbam", "gc", "bam", "nl", "scse"])
def test_output_is_bit_equal_at_the_start_and_the_base_is_kept(key: str, host: str) -> None:
    model = HOSTS[host]().eval()
    x, before = draw(), {name: value.clone() for name, value in model.state_dict().items()}
    expected = model(x)

    report = tp.plug(model, key, example=EXAMPLE)

    assert torch.equal(model(x), expected)
    assert report.max_difference == 0
    state = model.state_dict()
    assert all(torch.equal(state[name], value) for name, value in before.items())
    assert all(".torchplug." in name for name in set(state) - set(before))

    tp.unplug(model)
    assert list(model.state_dict()) == list(before)
    assert torch.equal(model(x), expected)
    assert repr(model) == repr(HOSTS[host]())


@pytest.mark.parametrize(("key", "host"), sorted(PUBLISHED))
def test_parameters_are_the_published_number(key: str, host: str) -> None:
    model = torchvision.models.get_model(host)
    report = tp.plug(model, key, example=EXAMPLE)
    assert report.base_parameters + report.module_parameters == PUBLISHED[key, host]
    assert report.parameters == sum(p.numel() for p in model.parameters())


def test_one_non_local_block_before_the_last_of_res4_has_the_published_count() -> None:
    report = tp.plug(torchvision.models.resnet50(), "nl", "layer3.4", example=EXAMPLE)
    assert report.parameters == 27_658_792


def test_non_local_goes_after_every_second_block_of_the_middle_stages() -> None:
    paths = tp.plug(torchvision.models.resnet50(), "nl", example=EXAMPLE).paths
    assert paths == ("layer2.1", "layer2.3", "layer3.1", "layer3.3", "layer3.5")


def test_gates_are_counted_apart() -> None:
    report = tp.plug(torchvision.models.resnet50(), "se", example=EXAMPLE)
    assert (report.module_parameters, report.gate_parameters) == (2_530_992, 16)
    assert "2,530,992 in modules (+9.9%) + 16 in start gates" in str(report)
    assert repr(report) == str(report)  # what a cell of a notebook shows


@pytest.mark.parametrize("key", ["se", "cbam", "gc", "bam", "nl", "scse"])
def test_every_plug_learns(key: str) -> None:
    model = timm.create_model("resnet18", num_classes=4).train()
    report = tp.plug(model, key, example=EXAMPLE)
    plugs = [plug for _, _, plug in tp.find_plugs(model)]
    assert len(plugs) == len(report.paths)
    before = copy.deepcopy([plug.state_dict() for plug in plugs])
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for _ in range(3):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(draw((4, 3, 64, 64))), torch.arange(4)).backward()
        optimizer.step()
    for plug, old in zip(plugs, before, strict=True):
        names = [name for name, _ in plug.named_parameters()]
        assert any(not torch.equal(plug.state_dict()[name], old[name]) for name in names)


def test_a_plan_repeats_the_plugs_on_a_fresh_model(plugged: nn.Module) -> None:
    model = torchvision.models.resnet18().eval()
    report = tp.plug(model, "se", example=EXAMPLE, start="paper")
    plan = tp.Plan.from_json(report.plan.to_json())
    assert plan == report.plan

    other = torchvision.models.resnet18().eval()
    assert tp.plug(other, plan, example=EXAMPLE).plan == plan
    other.load_state_dict(model.state_dict())
    assert torch.equal(other(draw()), model(draw()))


def test_base_checkpoints_load_both_ways(plugged: nn.Module) -> None:
    base = torchvision.models.resnet18()
    into_plugged = plugged.load_state_dict(base.state_dict(), strict=False)
    assert not into_plugged.unexpected_keys
    assert all(".torchplug." in name for name in into_plugged.missing_keys)
    into_base = base.load_state_dict(plugged.state_dict(), strict=False)
    assert not into_base.missing_keys
    assert all(".torchplug." in name for name in into_base.unexpected_keys)


def test_module_weights_do_not_depend_on_the_global_generator_nor_move_it() -> None:
    states = []
    for seed in (1, 2):
        model = torchvision.models.resnet18()
        torch.manual_seed(seed)
        before = torch.get_rng_state()
        tp.plug(model, "cbam", example=EXAMPLE, seed=5)
        assert torch.equal(torch.get_rng_state(), before)
        states.append({n: v for n, v in model.state_dict().items() if ".torchplug." in n})
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])


def test_plugs_at_one_place_run_in_the_order_of_the_calls() -> None:
    model = torchvision.models.resnet18().eval()
    plain = model.layer4(torch.ones(1, 256, 4, 4))
    tp.plug(model, lambda _: Affine(2, 0), "layer4", name="twice", example=EXAMPLE, start="paper")
    tp.plug(model, lambda _: Affine(1, 1), "layer4", name="shift", example=EXAMPLE, start="paper")
    assert torch.equal(model.layer4(torch.ones(1, 256, 4, 4)), plain * 2 + 1)
    tp.unplug(model, "shift")
    assert torch.equal(model.layer4(torch.ones(1, 256, 4, 4)), plain * 2)


class Affine(nn.Module):
    """A plug of the user's own."""

    def __init__(self, scale: float, shift: float) -> None:
        super().__init__()
        self.scale, self.shift = scale, shift

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * self.scale + self.shift


def test_stages_and_every_thin_out_the_sites() -> None:
    model = torchvision.models.resnet50()
    assert tp.plug(model, "se", "block", stages=[2, 3], every=2, example=EXAMPLE).paths == (
        "layer2.1",
        "layer2.3",
        "layer3.1",
        "layer3.3",
        "layer3.5",
    )


@pytest.mark.parametrize(
    ("at", "paths"),
    [
        ("layer2.0.conv1", ["layer2.0.conv1"]),
        ("layer?.1.bn1", [f"layer{i}.1.bn1" for i in (1, 2, 3, 4)]),
        ("**.downsample.0", [f"layer{i}.0.downsample.0" for i in (2, 3, 4)]),
        (["layer1.*.bn1", "layer4.0.bn1"], ["layer1.0.bn1", "layer1.1.bn1", "layer4.0.bn1"]),
        (r"re:layer[12]\.0\.bn2", ["layer1.0.bn2", "layer2.0.bn2"]),
        (nn.MaxPool2d, ["maxpool"]),
        (
            lambda path, _: path.startswith("layer3.0.conv"),
            ["layer3.0.conv1", "layer3.0.conv2"],
        ),
    ],
)
def test_places_can_be_named(at: object, paths: list[str]) -> None:
    report = tp.plug(torchvision.models.resnet18(), "se", at, example=EXAMPLE)
    assert list(report.paths) == paths


@pytest.mark.parametrize("key", ["aspp", "ppm", "spp", "rfb", "cc"])
def test_a_context_module_at_the_backbone_end_keeps_the_width(key: str) -> None:
    model = torchvision.models.resnet18()
    report = tp.plug(model, key, example=(2, 3, 64, 64))
    assert report.paths == ("layer4.1",)
    assert report.max_difference == 0


def test_copies_keep_active_plugs(plugged: nn.Module) -> None:
    x = draw()
    expected = plugged(x)
    assert not torch.equal(expected, torchvision.models.resnet18().eval()(x))
    assert torch.equal(copy.deepcopy(plugged)(x), expected)
    assert torch.equal(pickle.loads(pickle.dumps(plugged))(x), expected)


def test_another_process_unpickles_a_plugged_model(plugged: nn.Module, tmp_path: Path) -> None:
    torch.save(plugged, tmp_path / "model.pt")
    torch.save(plugged(draw()), tmp_path / "output.pt")
    torch.save(draw(), tmp_path / "input.pt")
    code = (
        "import sys, torch;"
        "load = lambda name: torch.load(f'{sys.argv[1]}/{name}.pt', weights_only=False);"
        "assert torch.equal(load('model')(load('input')), load('output'))"
    )
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=True)


def test_a_plugged_layer_still_is_what_it_was() -> None:
    model = torchvision.models.resnet18()
    tp.plug(model, "se", "layer1.1.bn2", example=EXAMPLE)
    norm = model.layer1[1].bn2
    assert isinstance(norm, nn.BatchNorm2d)
    assert type(norm).__name__ == "BatchNorm2d"
    assert norm.num_features == 64
    assert type(type(norm)(8)) is nn.BatchNorm2d  # a host's factory builds the plain class


def test_a_plugged_container_counts_iterates_and_slices_as_before() -> None:
    container = nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU())
    children = list(container)
    x = torch.randn(1, 3, 2, 2)
    expected = container(x) * 2
    attach(container, "twice", Affine(2, 0))
    assert torch.equal(container(x), expected)
    assert len(container) == 2
    assert list(container) == children
    assert container[-1] is children[-1]
    assert type(container[:1]) is nn.Sequential
    assert list(container[:1]) == children[:1]


def test_a_host_that_iterates_over_children_runs_a_plug_once() -> None:
    model = timm.create_model("regnety_008").eval()
    report = tp.plug(model, "se", "stage", example=EXAMPLE)
    assert report.max_difference == 0
    assert len(report.paths) == 4


def test_a_host_that_swaps_its_forward_keeps_the_plug() -> None:
    class Fusible(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 4, 1)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.conv(x)

        def forward_fused(self, x: torch.Tensor) -> torch.Tensor:
            return self.conv(x) * 1

    model = nn.Sequential(Fusible(), nn.ReLU())
    tp.plug(model, lambda _: Affine(3, 0), "0", name="triple", example=(1, 3, 4, 4), start="paper")
    x = torch.randn(1, 3, 4, 4)
    expected = model(x)
    model[0].forward = model[0].forward_fused
    assert torch.equal(model(x), expected)
    tp.unplug(model)
    assert torch.equal(model(x), torch.relu(model[0].conv(x)))


def test_compile_and_export_keep_the_plugs(plugged: nn.Module) -> None:
    x = draw()
    torch._dynamo.reset()
    compiled = torch.compile(plugged, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x), plugged(x))
    for strict in (False, True):
        program = torch.export.export(plugged, (x,), strict=strict)
        torch.testing.assert_close(program.module()(x), plugged(x))


@pytest.mark.filterwarnings("ignore")
def test_onnx_keeps_the_plugs(plugged: nn.Module) -> None:
    file = io.BytesIO()
    torch.onnx.export(plugged, (draw(),), file, dynamo=True, verbose=False)
    session = onnxruntime.InferenceSession(file.getvalue(), providers=["CPUExecutionProvider"])
    (output,) = session.run(None, {session.get_inputs()[0].name: draw().numpy()})
    torch.testing.assert_close(torch.from_numpy(output), plugged(draw()), rtol=1e-3, atol=1e-4)


def test_double_precision_and_frozen_hosts_are_plugged_in_kind() -> None:
    model = torchvision.models.resnet18().double().requires_grad_(False)
    tp.plug(model, "se", example=EXAMPLE)
    weights = [p for _, _, plug in tp.find_plugs(model) for p in plug.parameters()]
    assert all(p.dtype == torch.float64 and p.requires_grad for p in weights)
