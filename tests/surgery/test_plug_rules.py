"""What the facts say must be clear: each case one error or note that says what to do."""

from collections.abc import Iterator
from typing import Any

import pytest
import segmentation_models_pytorch as smp
import timm
import torch
import torch.distributed as dist
import torchvision
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.nn import functional as F

import torchplug as tp
from torchplug.surgery.trace import tensors_in

EXAMPLE = (1, 3, 64, 64)


def unet() -> nn.Module:
    return smp.Unet("resnet18", encoder_weights=None).eval()


# which module


def test_a_module_that_never_runs_is_named_as_such() -> None:
    model = smp.PSPNet("resnet18", encoder_weights=None)  # two of its four stages do not run
    with pytest.raises(tp.PlugError, match=r"'encoder\.layer4', which did not run on the example"):
        tp.plug(model, "se", "encoder.layer4", example=EXAMPLE)


class Shared(nn.Module):
    """One activation under two names, run once."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 16, 3, padding=1)
        self.act = nn.SiLU()
        self.also = self.act

    def forward(self, x: Tensor) -> Tensor:
        return self.also(self.conv(x))


def test_a_module_with_two_names_is_plugged_by_its_first() -> None:
    model = Shared()
    with pytest.raises(tp.PlugError, match=r"'also', another name of 'act'; name 'act'"):
        tp.plug(model, "se", "also", example=EXAMPLE)
    assert tp.plug(model, "se", "act", example=EXAMPLE).max_difference == 0
    assert [path for path, _, _ in tp.find_plugs(model)] == ["act"]


# which of several maps


def test_a_module_that_returns_several_maps_asks_for_an_index() -> None:
    text = r"'encoder', which returns 6 .*encoder\[2\] \(encoder\.layer1: 64 channels, 16 x 16\)"
    with pytest.raises(tp.PlugError, match=text):
        tp.plug(unet(), "se", "encoder", example=EXAMPLE)


@pytest.mark.parametrize(("index", "why"), [(6, "of 6 maps"), (0, "which is the input")])
def test_an_index_without_a_map_lists_those_that_have_one(index: int, why: str) -> None:
    with pytest.raises(tp.PlugError, match=rf"encoder\[{index}\] .*{why}.*encoder\[1\]"):
        tp.plug(unet(), "se", f"encoder[{index}]", example=EXAMPLE)


@pytest.mark.parametrize("index", [1, 2, 3, 4, 5])
def test_an_index_means_the_map_that_the_module_returns_there(index: int) -> None:
    """A plug there adds to that very map; one elsewhere would not add just so much."""
    torch.manual_seed(0)
    model, x = unet(), torch.randn(EXAMPLE)

    class More(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x + 1

    with torch.no_grad():
        before = model.encoder(x)[index]
        tp.plug(model, lambda _: More(), f"encoder[{index}]", example=EXAMPLE, start="paper")
        assert torch.equal(model.encoder(x)[index], before + 1)


class Pair(nn.Module):
    """A part that makes two maps by bare operations, and a head that joins them."""

    def __init__(self) -> None:
        super().__init__()
        self.body = Halves()
        self.head = nn.Conv2d(16, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.cat(self.body(x), 1))


class Halves(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3, padding=1)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        y = self.conv(x)
        return F.relu(y), F.relu(-y)


def test_an_index_reaches_a_map_that_an_operation_made_and_its_plan_repeats(tmp_path: Any) -> None:
    model, fresh = Pair().eval(), Pair().eval()
    report = tp.plug(model, "se", "body[1]", example=EXAMPLE, reduction=2)
    assert report.paths == ("body!relu#1",)
    assert tp.plug(fresh, report.plan, example=EXAMPLE).paths == report.paths
    tp.save(model, tmp_path / "plugs.safetensors")
    again = Pair().eval()
    assert tp.load(again, tmp_path / "plugs.safetensors", example=EXAMPLE).paths == report.paths


# wrapped hosts


@pytest.fixture
def process_group() -> Iterator[None]:
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@pytest.mark.usefixtures("process_group")
def test_a_distributed_host_is_refused() -> None:
    model = torchvision.models.resnet18()
    with pytest.raises(tp.PlugError, match="plug the inner module first"):
        tp.plug(nn.parallel.DistributedDataParallel(model), "se", example=EXAMPLE)
    fully_shard(model, mesh=init_device_mesh("cpu", (1,)))
    with pytest.raises(tp.PlugError, match="plug the inner module first"):
        tp.plug(model, "se", example=EXAMPLE)
    assert not tp.find_plugs(model)


@pytest.mark.parametrize(
    ("name", "at", "carrier"),
    [("resnet18", "bottleneck", "BatchNorm2d"), ("densenet121", "backbone_end", "DenseNet")],
)
@pytest.mark.filterwarnings("ignore")
def test_scripting_a_plugged_model_is_refused(name: str, at: str, carrier: str) -> None:
    model = torchvision.models.get_model(name)
    tp.plug(model, "se", at, example=EXAMPLE)
    with pytest.raises(tp.PlugError, match=rf"a plugged {carrier}; use torch\.export"):
        torch.jit.script(model)
    tp.unplug(model)
    torch.jit.script(model)


# what does not fit


def test_a_module_of_another_width_is_refused_with_both_widths() -> None:
    model = torchvision.models.resnet18()
    with pytest.raises(tp.PlugError, match=r"shape \(1, 64, 16, 16\): .*128 channels"):
        tp.plug(model, lambda site: tp.SqueezeExcite(2 * site.channels), "layer1", example=EXAMPLE)
    assert not tp.find_plugs(model)


@pytest.mark.parametrize(
    "make", [lambda: timm.create_model("repvgg_a0"), lambda: timm.create_model("mobileone_s0")]
)
def test_a_plug_in_a_sum_that_the_host_folds_is_noted(make: Any) -> None:
    model = make()
    at = next(
        path
        for path, module in model.named_modules()
        if path.startswith("stages.") and isinstance(module, nn.BatchNorm2d)
    )
    (note,) = tp.plug(model, "se", at, example=EXAMPLE).notes
    assert "may fold" in note
    assert at in note
    assert tp.plug(model, "se", "stage", example=EXAMPLE).notes == ()


# a host at rest


def gradients(model: nn.Module) -> list[float]:
    """The largest gradient that each plug gets from a loss on random images."""
    model.train()(torch.randn(4, 3, 64, 64)).square().sum().backward()
    return [
        max(float(p.grad.abs().max()) for p in plug.parameters())
        for _, _, plug in tp.find_plugs(model)
    ]


def test_plugs_behind_a_norm_that_starts_at_zero_are_noted() -> None:
    torch.manual_seed(0)
    model = torchvision.models.resnet18(zero_init_residual=True)
    report = tp.plug(model, "se", example=EXAMPLE)
    assert report.notes == (
        "8 of 8 plugs see only zeros (the host's batch norms before them start at zero): they "
        "learn once the host does; load the base's weights before plugging if it has any",
    )
    assert f"note               {report.notes[0]}" in str(report)
    assert gradients(model) == [0.0] * 8  # it is true


def test_plugs_before_a_norm_that_starts_at_zero_are_noted() -> None:
    torch.manual_seed(0)
    model = timm.create_model("resnet18")  # its last norms start at zero
    (note,) = tp.plug(model, "se", "layer?.?.bn1", example=EXAMPLE).notes
    assert note.startswith("8 of 8 plugs get no gradient at first")
    assert "layer1.0.bn2" in note
    assert gradients(model) == [0.0] * 8


@pytest.mark.parametrize("name", ["resnet18", "mobilenet_v3_small", "convnext_tiny"])
def test_a_host_that_is_awake_has_no_note(name: str) -> None:
    torch.manual_seed(0)
    model = torchvision.models.get_model(name)
    assert tp.plug(model, "se", example=EXAMPLE).notes == ()
    assert min(gradients(model)) > 0


def test_blocks_around_a_norm_at_zero_have_no_note() -> None:
    torch.manual_seed(0)
    model = torchvision.models.resnet18(zero_init_residual=True)
    assert tp.plug(model, "se", "block", example=EXAMPLE).notes == ()
    assert min(gradients(model)) > 0


# operations that are counted


class Busier(nn.Module):
    """In training it calls one operation more, before the one that carries the plug."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        y = self.one(x)
        if self.training:
            y = F.relu(y) + 0 * y
        return F.relu(self.two(y)).mean((2, 3))


def test_an_operation_that_runs_more_often_in_training_is_an_error_with_a_way_out() -> None:
    model = Busier()
    assert tp.plug(model, "se", "backbone_end", example=EXAMPLE, reduction=2).paths == ("!relu#0",)
    model.eval()(torch.randn(EXAMPLE))
    text = r"2 calls of relu in training, 1 at first, and a plug at !relu#0; plug a module instead"
    with pytest.raises(tp.PlugError, match=text):
        model.train()(torch.randn(EXAMPLE))
    model.eval()(torch.randn(EXAMPLE))
    tp.unplug(model)
    model.train()(torch.randn(EXAMPLE))


def test_hosts_that_count_equally_train() -> None:
    model = torchvision.models.densenet121()
    tp.plug(model, "se", "backbone_end", example=EXAMPLE)
    (output,) = tensors_in(model.train()(torch.randn(2, 3, 64, 64)))
    output.sum().backward()
    assert all(p.grad is not None for p in tp.plug_parameters(model))
