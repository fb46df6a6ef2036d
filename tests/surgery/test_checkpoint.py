"""Plugs in files of their own: what comes back is what was saved."""

import copy
import json
import pickle
import warnings
from functools import partial
from pathlib import Path

import pytest
import timm
import torch
import torchvision
from safetensors.torch import load_file, safe_open
from torch import nn

import torchplug as tp
from tests.surgery.plug_files import Parts, snapshot
from torchplug.surgery.attach import attach

EXAMPLE = (1, 3, 64, 64)


def draw(shape: tuple[int, ...] = (2, 3, 64, 64)) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(3))


def train(model: nn.Module) -> nn.Module:
    """Give every plug weights and buffers that nobody starts with."""
    generator = torch.Generator().manual_seed(7)
    for _, _, plug in tp.find_plugs(model):
        for tensor in plug.state_dict().values():
            if tensor.is_floating_point():
                noise = torch.rand(tensor.shape, generator=generator)
                tensor.add_(noise.to(tensor.dtype), alpha=0.1)
    return model


def base_of(model: nn.Module) -> dict[str, torch.Tensor]:
    return {n: v.clone() for n, v in model.state_dict().items() if ".torchplug." not in n}


@pytest.fixture(scope="module")
def trained() -> nn.Module:
    """A resnet18 with two kinds of trained plugs, one place having both."""
    model = torchvision.models.resnet18().eval()
    tp.plug(model, "se", example=EXAMPLE)
    tp.plug(model, "cbam", "layer2.1.bn2", example=EXAMPLE, reduction=4, pools=("avg", "max"))
    tp.plug(model, "bam", example=EXAMPLE, start="paper", name="attention")
    return train(model)


@pytest.fixture(scope="module")
def saved(trained: nn.Module, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tp.save(trained, tmp_path_factory.mktemp("files") / "plugs.safetensors")


@pytest.mark.parametrize("example", [None, EXAMPLE])
def test_a_loaded_model_computes_what_the_saved_one_did(
    trained: nn.Module, saved: Path, example: tuple[int, ...] | None
) -> None:
    fresh = torchvision.models.resnet18().eval()
    fresh.load_state_dict(base_of(trained))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        report = tp.load(fresh, saved, example=example)
    assert torch.equal(fresh(draw()), trained(draw()))
    assert list(fresh.state_dict()) == list(trained.state_dict())
    assert report.same_base
    assert report.parameters == sum(p.numel() for p in fresh.parameters())
    assert (report.max_difference is None) == (example is None)
    assert "every plug runs" in str(report) or example is None
    assert "the same as when saved" in str(report)
    assert repr(report) == str(report)


def test_the_file_holds_the_plugs_and_nothing_of_the_base(trained: nn.Module, saved: Path) -> None:
    plugs = {n: v for n, v in trained.state_dict().items() if ".torchplug." in n}
    found = load_file(saved)
    assert found.keys() == plugs.keys()
    assert all(torch.equal(found[name], plugs[name]) for name in plugs)
    assert saved.stat().st_size < 1_000_000
    with safe_open(saved, "pt") as opened:
        assert json.loads(opened.metadata()["torchplug"])["versions"]["torch"] == torch.__version__


def test_equal_models_give_equal_files_and_no_leftovers(trained: nn.Module, saved: Path) -> None:
    again = tp.save(trained, saved.with_name("again.safetensors"))
    assert again.read_bytes() == saved.read_bytes()
    assert {path.name for path in saved.parent.iterdir()} == {saved.name, again.name}
    again.unlink()
    content = Parts(saved.read_bytes()).content
    paths = [plug["path"] for plug in content["plan"]["plugs"]]
    assert list(content["base"]["classes"]) == list(dict.fromkeys(paths))  # not a set's order


def test_saving_changes_nothing(trained: nn.Module, tmp_path: Path) -> None:
    before = snapshot(trained)
    tp.save(trained, tmp_path / "x.safetensors")
    assert snapshot(trained) == before


def test_loading_does_not_move_the_global_generator(saved: Path) -> None:
    fresh = torchvision.models.resnet18()
    before = torch.get_rng_state()
    tp.load(fresh, saved, example=EXAMPLE)
    assert torch.equal(torch.get_rng_state(), before)


def test_other_base_weights_are_allowed_and_reported(saved: Path) -> None:
    fresh = torchvision.models.resnet18()
    with pytest.warns(UserWarning, match="got a base with others; load the base's own state_dict"):
        report = tp.load(fresh, saved)
    assert not report.same_base
    assert "other than when saved" in str(report)
    assert "not run" in str(report)


def test_copies_and_pickles_of_a_model_can_be_saved(
    trained: nn.Module, saved: Path, tmp_path: Path
) -> None:
    torch.save(trained, tmp_path / "model.pt")
    copies = {
        "deepcopy": copy.deepcopy(trained),
        "pickle": pickle.loads(pickle.dumps(trained)),
        "torch": torch.load(tmp_path / "model.pt", weights_only=False),
    }
    for name, model in copies.items():
        assert tp.save(model, tmp_path / name).read_bytes() == saved.read_bytes()


def test_a_loaded_model_can_be_saved_again(saved: Path, trained: nn.Module, tmp_path: Path) -> None:
    fresh = torchvision.models.resnet18()
    fresh.load_state_dict(base_of(trained))
    tp.load(fresh, saved)
    assert tp.save(fresh, tmp_path / "again").read_bytes() == saved.read_bytes()


def test_what_was_unplugged_is_not_saved(tmp_path: Path) -> None:
    model = torchvision.models.resnet18()
    tp.plug(model, "se", example=EXAMPLE)
    tp.plug(model, "cbam", example=EXAMPLE)
    tp.unplug(model, "se")
    path = tp.save(model, tmp_path / "x.safetensors")
    assert all(".torchplug.cbam." in name for name in load_file(path))


@pytest.mark.parametrize(
    ("key", "host"),
    [
        ("gc", "resnet50"),
        ("nl", "regnety_008"),
        ("aspp", "mobilenetv3_small_050"),
        ("se", "convnext_atto"),
    ],
)
def test_other_hosts_and_modules_come_back(key: str, host: str, tmp_path: Path) -> None:
    model = timm.create_model(host, num_classes=3).eval()
    at = "backbone_end" if key == "aspp" else "bottleneck"
    tp.plug(model, key, at, example=EXAMPLE)
    path = tp.save(train(model), tmp_path / "x.safetensors")
    fresh = timm.create_model(host, num_classes=3).eval()
    fresh.load_state_dict(base_of(model))
    assert tp.load(fresh, path, example=EXAMPLE).same_base
    assert torch.equal(fresh(draw()), model(draw()))


def test_the_type_of_the_host_is_kept(tmp_path: Path) -> None:
    model = torchvision.models.resnet18().double()
    tp.plug(model, "se", example=EXAMPLE)
    path = tp.save(train(model), tmp_path / "x.safetensors")
    tp.load(torchvision.models.resnet18().double(), path, example=EXAMPLE)
    single = torchvision.models.resnet18()
    before = snapshot(single)
    with pytest.raises(tp.PlugError, match=r"torch\.float32 of shape .* got torch\.float64"):
        tp.load(single, path)
    assert snapshot(single) == before


def test_synchronized_batch_norm_is_no_other_model(tmp_path: Path) -> None:
    model = torchvision.models.resnet18()
    tp.plug(model, "se", "layer1.0.bn2", example=EXAMPLE)
    path = tp.save(model, tmp_path / "x.safetensors")
    nn.SyncBatchNorm.convert_sync_batchnorm(synchronized := torchvision.models.resnet18())
    assert tp.load(synchronized, path).paths == ("layer1.0.bn2",)


class Gate(nn.Module):
    """A module of the user's own, with an option."""

    def __init__(self, channels: int, *, gain: float = 1.0) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.full((channels, 1, 1), gain))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * self.scale


def make_gate(site: tp.surgery.Site) -> nn.Module:
    return Gate(site.channels, gain=3.0)


@pytest.mark.parametrize("what", [Gate, make_gate])
def test_modules_of_ones_own_load_when_they_are_given(what: object, tmp_path: Path) -> None:
    model = torchvision.models.resnet18().eval()
    options = {"gain": 2.0} if what is Gate else {}
    tp.plug(model, what, "stage", example=EXAMPLE, start="paper", **options)
    path = tp.save(train(model), tmp_path / "own.safetensors")
    name = f"{what.__module__}:{what.__qualname__}"

    fresh = torchvision.models.resnet18().eval()
    before = snapshot(fresh)
    with pytest.raises(tp.UsageError, match=rf"got '{name}'; pass factories="):
        tp.load(fresh, path)
    assert snapshot(fresh) == before

    fresh.load_state_dict(base_of(model))
    tp.load(fresh, path, factories={name: what})
    assert torch.equal(fresh(draw()), model(draw()))


def test_whole_checkpoints_load_both_ways(trained: nn.Module) -> None:
    base = torchvision.models.resnet18()
    plugged = copy.deepcopy(trained)
    into_plugged = plugged.load_state_dict(base.state_dict(), strict=False)
    assert not into_plugged.unexpected_keys
    assert into_plugged.missing_keys
    assert all(".torchplug." in name for name in into_plugged.missing_keys)
    into_base = base.load_state_dict(trained.state_dict(), strict=False)
    assert not into_base.missing_keys
    assert all(".torchplug." in name for name in into_base.unexpected_keys)
    plugged.load_state_dict(trained.state_dict())
    assert torch.equal(plugged(draw()), trained(draw()))


def test_apply_plan_repeats_a_plan_from_any_file(saved: Path, tmp_path: Path) -> None:
    model = torchvision.models.resnet18()
    report = tp.plug(model, "se", example=EXAMPLE, seed=4)
    json_file = tmp_path / "plan.json"
    json_file.write_text(report.plan.to_json())
    for source in (report.plan, json_file, str(json_file), tp.save(model, tmp_path / "se.plugs")):
        again = torchvision.models.resnet18()
        assert tp.apply_plan(again, source, EXAMPLE).plan == report.plan
        for name, value in model.state_dict().items():
            if ".torchplug." in name:
                assert torch.equal(again.state_dict()[name], value)


def test_apply_plan_says_when_there_is_no_plan(tmp_path: Path) -> None:
    with pytest.raises(tp.UsageError, match=r"write it with Plan\.to_json"):
        tp.apply_plan(nn.Identity(), tmp_path / "nothing.json", EXAMPLE)


def test_a_model_without_plugs_cannot_be_saved(tmp_path: Path) -> None:
    with pytest.raises(tp.PlugError, match="a bare ResNet; plug something first"):
        tp.save(torchvision.models.resnet18(), tmp_path / "x")
    assert not list(tmp_path.iterdir())


def test_a_plug_without_a_plan_cannot_be_saved(tmp_path: Path) -> None:
    model = torchvision.models.resnet18()
    attach(model.layer1, "mine", nn.Identity())
    with pytest.raises(tp.PlugError, match="'mine' at layer1, which was attached by hand"):
        tp.save(model, tmp_path / "x")


@pytest.mark.parametrize("options", [{"act_layer": partial(nn.LeakyReLU, 0.1)}, {"device": "cpu"}])
def test_options_that_are_no_json_cannot_be_saved(
    options: dict[str, object], tmp_path: Path
) -> None:
    model = torchvision.models.resnet18()
    tp.plug(model, "gc", example=EXAMPLE, **options)
    with pytest.raises(tp.UsageError, match="plan"):
        tp.save(model, tmp_path / "x")
    assert not list(tmp_path.iterdir())


class WithExtraState(Gate):
    def get_extra_state(self) -> object:
        return {"secret": 1}

    def set_extra_state(self, state: object) -> None:
        pass


def test_state_that_is_no_tensor_cannot_be_saved(tmp_path: Path) -> None:
    model = torchvision.models.resnet18()
    tp.plug(model, WithExtraState, "layer1", example=EXAMPLE)
    with pytest.raises(tp.UsageError, match="_extra_state of 'withextrastate' at layer1"):
        tp.save(model, tmp_path / "x")


def test_a_model_without_values_is_refused(saved: Path, tmp_path: Path) -> None:
    model = torchvision.models.resnet18()
    tp.plug(model, "se", example=EXAMPLE)
    with pytest.raises(tp.UsageError, match="a meta tensor"):
        tp.save(model.to("meta"), tmp_path / "x")
    with torch.device("meta"):
        fresh = torchvision.models.resnet18()
    with pytest.raises(tp.UsageError, match="a meta tensor"):
        tp.load(fresh, saved)


def test_a_file_that_cannot_be_written_leaves_nothing(trained: nn.Module, tmp_path: Path) -> None:
    with pytest.raises(tp.UsageError, match="must be writable"):
        tp.save(trained, tmp_path / "missing" / "x.safetensors")
    folder = tmp_path / "taken"
    folder.mkdir()
    with pytest.raises(tp.UsageError, match="must be writable"):
        tp.save(trained, folder)
    assert [path.name for path in tmp_path.iterdir()] == ["taken"]
    assert not list(folder.iterdir())
