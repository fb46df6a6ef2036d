"""What conversions, fusions and replacements take away is found, named and repaired if possible."""

import copy
import pickle
from collections.abc import Callable
from types import MethodType

import pytest
import timm.layers
import torch
import torchvision
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval
from ultralytics import YOLO

import torchplug as tp

EXAMPLE = (2, 3, 32, 32)
OPTIONS = {"example": EXAMPLE, "start": "paper"}


def draw(shape: tuple[int, ...] = EXAMPLE) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(3))


@pytest.fixture
def plugged() -> nn.Module:
    """A resnet18 with an SE on the last norm of each of its eight blocks."""
    torch.manual_seed(0)
    model = torchvision.models.resnet18(num_classes=4).eval()
    tp.plug(model, "se", **OPTIONS)
    return model


def yolo(at: str) -> nn.Module:
    torch.manual_seed(0)
    model = YOLO("yolov8n.yaml").model.eval()
    tp.plug(model, "se", at, example=(1, 3, 64, 64), start="paper")
    return model


def kinds(checkup: object) -> list[tuple[str, int]]:
    return [(problem.kind, len(problem.paths)) for problem in checkup.problems]


def test_a_healthy_model_passes_and_is_left_as_it_was(plugged: nn.Module) -> None:
    plugged.train()
    before = copy.deepcopy(plugged.state_dict())
    found = tp.check(plugged, EXAMPLE)
    assert found.ok
    assert (found.planned, found.alive) == (8, 8)
    assert found.difference > 0
    assert not found.notes
    assert str(found).startswith("8 of 8 plugs are attached and ran once")
    assert all(module.training for module in plugged.modules())
    assert all(p.grad is None for p in plugged.parameters())
    assert all(torch.equal(value, before[n]) for n, value in plugged.state_dict().items())


def test_difference_is_zero_at_an_identity_start() -> None:
    model = torchvision.models.resnet18()
    tp.plug(model, "cbam", example=EXAMPLE)
    assert tp.check(model, EXAMPLE).difference == 0


def test_synchronized_norms_leave_plugs_asleep_and_repair_wakes_them(plugged: nn.Module) -> None:
    expected = plugged(draw())
    model = nn.SyncBatchNorm.convert_sync_batchnorm(plugged)
    assert not torch.equal(model(draw()), expected)  # the loss is silent
    found = tp.check(model, EXAMPLE)
    assert kinds(found) == [("asleep", 8)]
    assert "layer1.0.bn2" in str(found)
    assert "became SyncBatchNorm (was BatchNorm2d)" in str(found)
    assert (found.alive, found.planned) == (0, 8)

    done = tp.repair(model)
    assert done.ok
    assert len(done.repaired) == 8
    assert torch.equal(model(draw()), expected)
    found = tp.check(model, EXAMPLE)
    assert found.ok
    assert "20 modules of the base have changed" in str(found)
    assert isinstance(model.layer1[0].bn2, nn.SyncBatchNorm)
    assert tp.repair(model).repaired == ()  # nothing left to do
    assert tp.unplug(model) == 8
    assert type(model.layer1[0].bn2) is nn.SyncBatchNorm


def test_a_conversion_that_frees_a_frozen_base_is_found_and_repaired(plugged: nn.Module) -> None:
    tp.freeze_base(plugged)
    model = nn.SyncBatchNorm.convert_sync_batchnorm(plugged)
    assert kinds(tp.check(model, EXAMPLE)) == [("asleep", 8), ("loose", 0)]
    assert tp.repair(model).held == 20
    assert not model.train().bn1.training
    assert tp.check(model, EXAMPLE).ok


def freeze_norms(model: nn.Module) -> None:
    timm.layers.freeze_batch_norm_2d(model)


def fold(model: nn.Module) -> None:
    for block in [*model.layer1, *model.layer2, *model.layer3, *model.layer4]:
        block.conv2 = fuse_conv_bn_eval(block.conv2, block.bn2)
        block.bn2 = nn.Identity()


def drop_a_block(model: nn.Module) -> None:
    model.layer3[1] = nn.Identity()


def remove_from_the_holder(model: nn.Module) -> None:
    del model.layer1[0].bn2.torchplug.se


def swap_the_plug(model: nn.Module) -> None:
    model.layer1[0].bn2.torchplug.se = nn.Identity()


def go_around_a_norm(model: nn.Module) -> None:
    block = model.layer2[1]
    block.forward = MethodType(lambda self, x: self.relu(self.conv1(x) + x), block)


def replace_a_forward(model: nn.Module) -> None:
    norm = model.layer2[0].bn2
    norm.forward = lambda x: x


def run_a_block_twice(model: nn.Module) -> None:
    model.layer1.append(model.layer1[1])


def break_a_weight(model: nn.Module) -> None:
    with torch.no_grad():
        next(iter(tp.plug_parameters(model))).fill_(float("nan"))


def prune_channels(model: nn.Module) -> None:
    model.layer1[0].conv2 = nn.Conv2d(64, 60, 3, padding=1)


def prune_a_plug(model: nn.Module) -> None:
    model.layer4[1].bn2.torchplug.se.forward = MethodType(
        lambda self, x: x.detach(), model.layer4[1].bn2.torchplug.se
    )


@pytest.mark.parametrize(
    ("damage", "wanted", "words"),
    [
        (freeze_norms, [("lost", 8)], "FrozenBatchNorm2d (was BatchNorm2d)"),
        (fold, [("lost", 8)], "replaced by Identity (was BatchNorm2d)"),
        (drop_a_block, [("lost", 1)], "layer3.1.bn2: is not in the model any more"),
        (remove_from_the_holder, [("lost", 1)], "layer1.0.bn2: has lost the plug 'se'"),
        (swap_the_plug, [("changed", 1), ("deaf", 0)], "carries Identity as 'se'"),
        (go_around_a_norm, [("silent", 1), ("deaf", 1)], "layer2.1.bn2: was not called"),
        (replace_a_forward, [("silent", 1), ("deaf", 1)], "layer2.0.bn2: ran without its plug"),
        (run_a_block_twice, [("repeated", 1)], "layer1.1.bn2: ran its plug 2 times"),
        (break_a_weight, [("broken", 1)], "layer1.0.bn2: holds NaN"),
        (prune_channels, [("failed", 0)], "does not run on the example: RuntimeError"),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_damage_is_found_and_named(
    plugged: nn.Module, damage: Callable[[nn.Module], None], wanted: list, words: str
) -> None:
    damage(plugged)
    found = tp.check(plugged, EXAMPLE)
    assert kinds(found) == [entry for entry in wanted if entry != ("deaf", 0)]
    assert words in str(found)
    assert not found.ok


@pytest.mark.parametrize("damage", [freeze_norms, fold, drop_a_block, remove_from_the_holder])
def test_repair_says_what_it_cannot_bring_back(
    plugged: nn.Module, damage: Callable[[nn.Module], None]
) -> None:
    damage(plugged)
    done = tp.repair(plugged)
    assert not done.ok
    assert done.repaired == ()
    assert "cannot repair  lost at layer" in str(done)


def test_a_plug_without_gradient_is_found(plugged: nn.Module) -> None:
    prune_a_plug(plugged)
    assert kinds(tp.check(plugged, EXAMPLE)) == [("deaf", 1)]


def test_a_host_fuses_around_a_plug_on_its_own_layer() -> None:
    model = yolo("model.2.m.0.cv2")
    expected = model(draw((1, 3, 64, 64)))[0]
    model.fuse(verbose=False)
    found = tp.check(model, (1, 3, 64, 64))
    assert found.ok
    assert "57 modules of the base are gone" in str(found)
    torch.testing.assert_close(model(draw((1, 3, 64, 64)))[0], expected, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize(("at", "kind"), [("bn", "lost"), ("conv", "reordered")])
def test_a_host_that_fuses_takes_a_plug_inside_a_layer_away(at: str, kind: str) -> None:
    model = yolo(f"model.2.cv1.{at}")
    assert tp.check(model, (1, 3, 64, 64)).ok
    model.fuse(verbose=False)
    found = tp.check(model, (1, 3, 64, 64))
    assert kinds(found) == [(kind, 1)]
    assert f"model.2.cv1.{at}: " in str(found)


def test_an_optimizer_made_before_plugging_lacks_the_plugs() -> None:
    model = torchvision.models.resnet18()
    early = torch.optim.SGD(model.parameters(), lr=0.1)
    tp.plug(model, "se", example=EXAMPLE)
    found = tp.check(model, EXAMPLE, optimizer=early)
    assert kinds(found) == [("optimizer", 8)]
    assert "lacks 40 parameters of plugs" in str(found)
    early.add_param_group({"params": tp.plug_parameters(model)})
    assert tp.check(model, EXAMPLE, optimizer=early).ok
    model.fc = nn.Linear(512, 2)
    assert "holds 2 parameters that the model does not have" in str(
        tp.check(model, EXAMPLE, optimizer=early)
    )


def test_switched_off_plugs_are_named_so(plugged: nn.Module) -> None:
    with tp.disabled(plugged):
        assert kinds(tp.check(plugged, EXAMPLE)) == [("off", 8), ("deaf", 8)]
    assert tp.check(plugged, EXAMPLE).ok


def test_a_model_without_plugs_is_no_success() -> None:
    found = tp.check(torchvision.models.resnet18(), EXAMPLE)
    assert kinds(found) == [("none", 0)]
    assert str(found).splitlines() == [
        "no plugs to check",
        "  problem  the model has no plugs and remembers none; plug it first",
    ]
    with pytest.raises(tp.UsageError, match="an nn"):
        tp.check("resnet18", EXAMPLE)
    with pytest.raises(tp.UsageError, match="an nn"):
        tp.repair(None)


def through_pickle(model: nn.Module) -> nn.Module:
    return pickle.loads(pickle.dumps(model))


@pytest.mark.parametrize("clone", [copy.deepcopy, through_pickle, nn.DataParallel, torch.compile])
def test_copies_and_wrappers_remember_what_was_plugged(
    plugged: nn.Module, clone: Callable[[nn.Module], nn.Module]
) -> None:
    model = clone(plugged)
    assert tp.check(model, EXAMPLE).ok
    freeze_norms(model)
    (problem,) = tp.check(model, EXAMPLE).problems
    assert (problem.kind, len(problem.paths)) == ("lost", 8)
    assert problem.paths[0] == "layer1.0.bn2"  # as seen from the model, not from a wrapper


def test_the_memory_adds_no_key_and_ends_with_the_plugs(plugged: nn.Module) -> None:
    fresh = torchvision.models.resnet18(num_classes=4)
    assert {n for n in plugged.state_dict() if ".torchplug." not in n} == set(fresh.state_dict())
    bam = tp.plug(plugged, "bam", **OPTIONS)
    tp.unplug(plugged, "se")
    assert tp.check(plugged, EXAMPLE).planned == len(bam.paths)
    freeze_norms(plugged)
    tp.unplug(plugged)
    assert set(vars(plugged)) == set(vars(fresh))


def test_a_plugged_part_is_checked_from_the_whole(plugged: nn.Module) -> None:
    tp.unplug(plugged)
    tp.plug(plugged.layer1, "se", "0.bn2", example=(1, 64, 8, 8), start="paper")
    assert tp.check(plugged, EXAMPLE).planned == 1
    freeze_norms(plugged)
    assert "layer1.0.bn2: was replaced" in str(tp.check(plugged, EXAMPLE))
    tp.unplug(plugged)
    assert kinds(tp.check(plugged, EXAMPLE)) == [("none", 0)]


@pytest.fixture
def merged(plugged: nn.Module) -> nn.Module:
    """The same resnet18 with ACNet merged into the convolutions of its last stage."""
    tp.plug(plugged, "acnet", "conv3x3", example=EXAMPLE, stages=[4])
    tp.merge_plugs(plugged)
    return plugged


def test_what_was_merged_on_purpose_is_no_loss(merged: nn.Module) -> None:
    found = tp.check(merged, EXAMPLE)
    assert found.ok
    assert (found.planned, found.alive, found.merged) == (8, 8, 4)
    assert not found.notes  # nor has the base changed without being asked
    assert str(found).splitlines()[-1] == "  4 plugs merged into the model's own convolutions"
    assert tp.repair(merged).ok

    assert tp.unplug(merged) == 8  # a merge cannot be undone, so it is still known
    found = tp.check(pickle.loads(pickle.dumps(copy.deepcopy(merged))), EXAMPLE)
    assert found.ok
    assert (found.planned, found.merged) == (0, 4)
    assert str(found) == "4 plugs merged into the model's own convolutions; no other is plugged"


def test_beside_merged_plugs_a_loss_is_still_found(merged: nn.Module) -> None:
    freeze_norms(merged)
    assert kinds(tp.check(merged, EXAMPLE)) == [("lost", 8)]


def test_a_merge_is_known_where_a_part_was_plugged(plugged: nn.Module) -> None:
    tp.unplug(plugged)
    tp.plug(plugged.layer4, "acnet", "*.conv1", example=(1, 256, 8, 8))
    tp.merge_plugs(plugged)
    found = tp.check(plugged, EXAMPLE)
    assert found.ok
    assert (found.planned, found.merged) == (0, 2)
    tp.plug(plugged, "acnet", "layer4.0.conv1", example=EXAMPLE)
    assert tp.check(plugged, EXAMPLE).planned == 1  # a new plug where one was merged


def test_a_lost_plug_can_be_plugged_again(plugged: nn.Module) -> None:
    freeze_norms(plugged)
    tp.plug(plugged, "se", "layer?.?.bn2", **OPTIONS)
    found = tp.check(plugged, EXAMPLE)
    assert found.ok
    assert found.planned == 8


def test_a_failed_plug_leaves_no_memory() -> None:
    model = torchvision.models.resnet18()
    before = set(vars(model))
    with pytest.raises(tp.PlugError):
        tp.plug(model, lambda site: nn.Conv2d(site.channels, 3, 1), "layer1", example=EXAMPLE)
    assert set(vars(model)) == before
