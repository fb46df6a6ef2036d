"""Where no module carries a place, the plug sits at the operation, and nothing goes past it."""

import copy
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import segmentation_models_pytorch as smp
import torch
import torchvision
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

import torchplug as tp

EXAMPLE = (1, 3, 16, 16)


class Block(nn.Module):
    """A residual block whose branch ends in plain arithmetic."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)
        self.norm = nn.BatchNorm2d(channels)

    def forward(self, x: Tensor) -> Tensor:
        return x + F.relu(self.norm(self.conv(x))) * 0.5


class Host(nn.Module):
    """Functional activations, residual adds, an upsampling and a merge that no module carries."""

    def __init__(self, checkpointed: bool | None = None) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 3, 2, 1)
        self.one, self.down, self.two = Block(16), nn.Conv2d(16, 16, 3, 2, 1), Block(16)
        self.head = nn.Conv2d(32, 4, 3, padding=1)
        self.checkpointed = checkpointed

    def forward(self, x: Tensor) -> Tensor:
        high = self.one(F.relu(self.stem(x)))
        low = self.two(F.relu(self.down(high)))
        return self.head(self.join(high, low))

    def join(self, high: Tensor, low: Tensor) -> Tensor:
        if self.checkpointed is not None and torch.is_grad_enabled():
            return checkpoint(self._join, high, low, use_reentrant=self.checkpointed)
        return self._join(high, low)

    def _join(self, high: Tensor, low: Tensor) -> Tensor:
        return torch.cat([F.interpolate(low, scale_factor=2.0), high], 1)


class Scale(nn.Module):
    """Multiplies each channel by two: a plug whose effect can be computed by hand."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.full((channels, 1, 1), 2.0))

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(x * self.scale) - torch.relu(-x * self.scale)


def make(**options: Any) -> nn.Module:
    torch.manual_seed(0)
    return Host(**options).eval()


def draw() -> Tensor:
    return torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(1))


OPS = {
    "bottleneck": ["one!add#0.1", "two!add#0.1"],
    "upsample": ["!interpolate#0"],
    "merge": ["!cat#0"],
}


def plugged(*roles: str, **options: Any) -> nn.Module:
    model = make(**options)
    for role in roles or OPS:
        tp.plug(model, Scale, role, example=EXAMPLE, start="paper")
    return model


def by_hand(model: nn.Module, x: Tensor) -> Tensor:
    """What the host computes with every place doubled."""

    def block(block: nn.Module, x: Tensor) -> Tensor:
        return x + 2 * F.relu(block.norm(block.conv(x))) * 0.5

    high = block(model.one, F.relu(model.stem(x)))
    low = block(model.two, F.relu(model.down(high)))
    return model.head(2 * torch.cat([2 * F.interpolate(low, scale_factor=2.0), high], 1))


def test_places_at_operations_are_listed() -> None:
    sites = tp.sites(make(), EXAMPLE)
    for role, anchors in OPS.items():
        found = [(site.path, site.anchor, site.kind) for site in sites.with_role(role)]
        assert found == [(anchor, anchor, "op") for anchor in anchors]
    assert "!interpolate#0" in str(sites)


def test_a_plug_at_an_operation_changes_that_operation_alone() -> None:
    model = plugged()
    assert torch.equal(model(draw()), by_hand(model, draw()))


def test_identity_start_keeps_the_output_and_unplug_restores_the_classes() -> None:
    model = make()
    expected = model(draw())
    before = [(name, type(module)) for name, module in model.named_modules()]
    state = {name: value.clone() for name, value in model.state_dict().items()}
    for role in OPS:
        assert tp.plug(model, "cbam", role, example=EXAMPLE).max_difference == 0
    assert torch.equal(model(draw()), expected)
    assert isinstance(model, Host)
    assert isinstance(model.one, Block)
    keys = set(model.state_dict()) - set(state)
    assert {key.split(".torchplug.")[-1].split(".")[0] for key in keys if "one." in key} == {
        "cbam_add_0_1"
    }
    assert tp.unplug(model, "cbam") == 4
    assert [(name, type(module)) for name, module in model.named_modules()] == before
    assert torch.equal(model(draw()), expected)
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())


def test_sites_of_a_plugged_model_are_those_of_the_base() -> None:
    ids = [site.id for site in tp.sites(make(), EXAMPLE)]
    assert [site.id for site in tp.sites(plugged(), EXAMPLE)] == ids


def test_plugs_are_found_by_anchor_and_taken_out_by_name() -> None:
    model = plugged("merge")
    tp.plug(model, "se", ["merge:!cat#0", "!interpolate#0"], example=EXAMPLE)
    assert [(path, name) for path, name, _ in tp.find_plugs(model)] == [
        ("!cat#0", "scale"),
        ("!cat#0", "se"),
        ("!interpolate#0", "se"),
    ]
    with pytest.raises(tp.PlugError, match="name of its own"):
        tp.plug(model, "se", "merge", example=EXAMPLE)
    tp.unplug(model, "se")
    assert [(path, name) for path, name, _ in tp.find_plugs(model)] == [("!cat#0", "scale")]


def test_plugs_on_the_output_and_inside_do_not_shift_the_count() -> None:
    model = plugged()
    tp.plug(model, "se", ["one", "two", "down"], example=EXAMPLE)  # these use relu too
    torch.testing.assert_close(model(draw()), by_hand(model, draw()))
    fresh = make()
    tp.plug(fresh, "se", ["one", "stem"], example=EXAMPLE)
    tp.plug(fresh, Scale, "one!add#0.1", example=EXAMPLE, start="paper")
    tp.unplug(fresh, "scale")
    assert [(path, name) for path, name, _ in tp.find_plugs(fresh)] == [
        ("stem", "se"),
        ("one", "se"),
    ]
    torch.testing.assert_close(fresh(draw()), make()(draw()))


def test_a_failing_plug_at_an_operation_leaves_the_other_plugs_as_they_were() -> None:
    model = make()
    tp.plug(model, "se", "one", example=EXAMPLE)
    before = [(name, type(module)) for name, module in model.named_modules()]
    with pytest.raises(tp.PlugError, match="bit for bit"):
        tp.plug(model, Liar, "bottleneck", example=EXAMPLE)
    assert [(name, type(module)) for name, module in model.named_modules()] == before


class Liar(Scale):
    identity_at_start = True


def test_a_plan_with_operations_repeats_on_a_fresh_model() -> None:
    model = make()
    plan = tp.plug(model, "se", ["bottleneck", "merge"], example=EXAMPLE, start="paper").plan
    other = make()
    assert tp.plug(other, tp.Plan.from_json(plan.to_json()), example=EXAMPLE).plan == plan
    assert torch.equal(other(draw()), model(draw()))


def test_copies_are_independent_and_pickles_run_in_another_process(tmp_path: Path) -> None:
    model = tp_model()
    expected = model(torch.ones(1, 3, 64, 64))
    twin = copy.deepcopy(model)
    for _, _, plug in tp.find_plugs(twin):
        nn.init.zeros_(plug.scale)
    assert torch.equal(model(torch.ones(1, 3, 64, 64)), expected)
    assert not torch.equal(twin(torch.ones(1, 3, 64, 64)), expected)
    torch.save(expected, tmp_path / "expected.pt")
    (tmp_path / "model.pkl").write_bytes(pickle.dumps(model))
    code = (
        "import pickle, sys, torch; from pathlib import Path; folder = Path(sys.argv[1]);"
        "model = pickle.loads((folder / 'model.pkl').read_bytes());"
        "expected = torch.load(folder / 'expected.pt');"
        "assert torch.allclose(model(torch.ones(1, 3, 64, 64)), expected, atol=1e-6)"
    )
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=True)


def tp_model() -> nn.Module:
    """A library's host with a library's layer as plug: another process can unpickle both."""
    torch.manual_seed(0)
    model = smp.Unet("resnet18", encoder_weights=None, decoder_channels=(32, 16, 16, 8, 8)).eval()
    tp.plug(
        model,
        lambda site: Gain(site.channels),
        "upsample",
        example=(1, 3, 64, 64),
        name="g",
        start="paper",
    )
    return model


class Gain(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.full((channels, 1, 1), 1.5))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.scale


@pytest.mark.filterwarnings("ignore")
def test_compile_keeps_the_plugs_forward_and_backward() -> None:
    model, x = plugged(), draw()
    torch._dynamo.reset()
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x), by_hand(model, x))
    compiled(x).sum().backward()
    grads = [plug.scale.grad for _, _, plug in tp.find_plugs(model)]
    model.zero_grad()
    model(x).sum().backward()
    for grad, (_, _, plug) in zip(grads, tp.find_plugs(model), strict=True):
        torch.testing.assert_close(grad, plug.scale.grad)


@pytest.mark.filterwarnings("ignore")
def test_export_keeps_the_plugs_and_strict_export_is_refused() -> None:
    model, x = plugged(), draw()
    exported = torch.export.export(model, (x,), strict=False)
    torch.testing.assert_close(exported.module()(x), by_hand(model, x))
    with pytest.raises(Exception, match="lost in this kind of capture"):
        torch.export.export(model, (x,), strict=True)


def test_symbolic_tracing_is_refused() -> None:
    with pytest.raises(tp.PlugError, match=r"torch\.fx and plugs at !"):
        torch.fx.symbolic_trace(plugged("merge"))
    with pytest.raises(tp.PlugError, match=r"torch\.fx and plugs at !add#0\.1"):
        torch.fx.symbolic_trace(plugged("bottleneck"))


@pytest.mark.filterwarnings("ignore")
def test_tracing_and_onnx_keep_the_plugs(tmp_path: Path) -> None:
    import onnxruntime

    model, x = plugged(), draw()
    torch.testing.assert_close(torch.jit.trace(model, x)(x), model(x))
    torch.onnx.export(model, (x,), tmp_path / "model.onnx", dynamo=True, verbose=False)
    session = onnxruntime.InferenceSession(tmp_path / "model.onnx")
    (got,) = session.run(None, {session.get_inputs()[0].name: x.numpy()})
    torch.testing.assert_close(torch.from_numpy(got), model(x), rtol=1e-4, atol=1e-5)


def test_a_host_that_replaces_its_forward_keeps_the_plugs() -> None:
    model = plugged("bottleneck")

    def forward_fused(self: Any, x: Tensor) -> Tensor:
        return x + F.relu(self.norm(self.conv(x))) * 0.5 * 1.0

    Block.forward_fused = forward_fused  # type: ignore[attr-defined]
    try:
        for block in (model.one, model.two):
            block.forward = block.forward_fused
            assert [name for _, name, _ in tp.find_plugs(block)] == ["scale"]
        fused = model(draw())
    finally:
        del Block.forward_fused  # type: ignore[attr-defined]
    torch.testing.assert_close(fused, plugged("bottleneck")(draw()))


def test_training_mode_runs_the_plugs_and_trains_them() -> None:
    model = plugged().train()
    model(draw()).square().sum().backward()
    assert all(plug.scale.grad.abs().sum() > 0 for _, _, plug in tp.find_plugs(model))


def test_a_replica_of_data_parallel_owns_its_plugs() -> None:
    model = plugged("merge")
    replica = model._replicate_for_data_parallel()
    replica._modules = dict(model._modules)
    assert type(replica) is type(model)
    assert torch.equal(replica(draw()), model(draw()))
    assert type(model)(None).checkpointed is None  # the host's own class is what it makes


def test_a_forward_that_takes_another_way_is_an_error() -> None:
    model = plugged("upsample")
    model._join = lambda high, low: torch.cat([high, high], 1)
    with pytest.raises(tp.PlugError, match=r"must run once in a forward: got none .*interpolate#0"):
        model(draw())


@pytest.mark.filterwarnings("ignore")
def test_a_part_that_the_host_checkpoints_is_refused_loudly() -> None:
    model = make(checkpointed=True)
    with pytest.raises(tp.PlugError, match="that the host checkpoints"):
        tp.plug(model, Scale, "merge", example=EXAMPLE, start="paper")
    assert not tp.find_plugs(model)
    model = plugged("merge")
    model.checkpointed = True
    with pytest.raises(tp.PlugError, match="that the host checkpoints"):
        model(draw().requires_grad_())


def test_batch_norm_conversion_does_not_lose_a_plug_at_an_operation() -> None:
    model = plugged("bottleneck")
    converted = nn.SyncBatchNorm.convert_sync_batchnorm(model)
    assert len(tp.find_plugs(converted)) == 2


class InPlace(Host):
    """Adds in place and goes on with the tensor it had: what a plug returns there is dropped."""

    def _join(self, high: Tensor, low: Tensor) -> Tensor:
        up = F.interpolate(low, scale_factor=2.0)
        up.add_(high)
        return torch.cat([up, high], 1)


def test_a_result_that_the_host_drops_is_refused() -> None:
    model = InPlace().eval()
    with pytest.raises(tp.PlugError, match=r"the host drops, among !add#2"):
        tp.plug(model, "se", "merge", example=EXAMPLE)
    assert not tp.find_plugs(model)


LIBRARY = {
    "densenet": (torchvision.models.densenet121, "backbone_end", 1),
    "unet": (lambda: smp.Unet("resnet18", encoder_weights=None), "upsample", 5),
    "fpn": (lambda: smp.FPN("resnet18", encoder_weights=None), "upsample", 9),
}


@pytest.mark.parametrize("case", sorted(LIBRARY))
def test_functional_places_of_libraries_work(case: str) -> None:
    make_host, role, count = LIBRARY[case]
    model = make_host().eval()
    x = torch.rand(1, 3, 64, 64)
    with torch.no_grad():
        expected = model(x)
        report = tp.plug(model, "se", role, example=(1, 3, 64, 64))
        assert torch.equal(model(x), expected)
        assert len(report.paths) == count
        assert "op" in {site.kind for site in tp.sites(model, x).with_role(role)}
        tp.unplug(model)
        assert torch.equal(model(x), expected)
