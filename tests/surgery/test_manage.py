"""A plugged model can be switched off, frozen and listed, and copies keep it so."""

import copy
import pickle
import threading

import pytest
import torch
import torchvision
from torch import Tensor, nn
from torch.nn.utils import parameters_to_vector

import torchplug as tp
from torchplug.hosts import build_model

EXAMPLE = (2, 3, 32, 32)


class Small(nn.Module):
    """A host with one convolution under two names, after the norm that is plugged."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(3)
        self.left = nn.Conv2d(3, 3, 3, padding=1)
        self.right = self.left

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.left(x))


class Borrows(nn.Module):
    """A plug that uses a convolution of the host, next to a weight of its own."""

    def __init__(self, conv: nn.Module) -> None:
        super().__init__()
        self.conv = conv
        self.scale = nn.Parameter(torch.ones(1))

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x) * self.scale


def draw() -> Tensor:
    return torch.randn(EXAMPLE, generator=torch.Generator().manual_seed(3))


@pytest.fixture
def base() -> nn.Module:
    torch.manual_seed(0)
    return torchvision.models.resnet18(num_classes=4).eval()


@pytest.fixture
def plugged(base: nn.Module) -> nn.Module:
    model = copy.deepcopy(base)
    tp.plug(model, "bam", example=EXAMPLE, start="paper")
    tp.plug(model, "se", example=EXAMPLE, start="paper")
    return model


def test_disabled_is_the_base_also_nested_and_after_an_error(
    base: nn.Module, plugged: nn.Module
) -> None:
    x = draw()
    active = plugged(x)
    assert not torch.equal(active, base(x))
    with tp.disabled(plugged):
        with tp.disabled(plugged):
            assert torch.equal(plugged(x), base(x))
        assert torch.equal(plugged(x), base(x))
    assert torch.equal(plugged(x), active)
    with pytest.raises(KeyError), tp.disabled(plugged):
        raise KeyError
    assert torch.equal(plugged(x), active)


def test_disabled_runs_backward_as_the_base(base: nn.Module, plugged: nn.Module) -> None:
    with tp.disabled(plugged):
        plugged(draw()).sum().backward()
    base(draw()).sum().backward()
    assert all(p.grad is None for p in tp.plug_parameters(plugged))
    assert torch.equal(plugged.conv1.weight.grad, base.conv1.weight.grad)


def test_disabled_leaves_no_trace_and_copies_made_inside_are_on(plugged: nn.Module) -> None:
    x, active = draw(), plugged(draw())
    before = [dict(vars(module)) for module in plugged.modules()]
    with tp.disabled(plugged):
        copies = [copy.deepcopy(plugged), pickle.loads(pickle.dumps(plugged))]
        base = plugged(x)
    assert [dict(vars(module)) for module in plugged.modules()] == before
    assert all(torch.equal(other(x), active) for other in copies)
    assert not torch.equal(base, active)


def test_disabled_survives_unplugging_inside(base: nn.Module, plugged: nn.Module) -> None:
    with tp.disabled(plugged):
        tp.unplug(plugged)
    assert torch.equal(plugged(draw()), base(draw()))


def test_overlapping_contexts_of_two_threads_close_the_last_one(plugged: nn.Module) -> None:
    x, active = draw(), plugged(draw())
    entered, leave = threading.Event(), threading.Event()

    def other() -> None:
        with tp.disabled(plugged):
            entered.set()
            leave.wait(10)

    with tp.disabled(plugged):
        thread = threading.Thread(target=other)
        thread.start()
        entered.wait(10)
    still_off = plugged(x)
    leave.set()
    thread.join()
    assert not torch.equal(still_off, active)
    assert torch.equal(plugged(x), active)


def test_disabled_works_on_a_compiled_model() -> None:
    model, x = build_model("torchplug:resnet8").eval(), torch.randn(1, 3, 8, 8)
    expected = model(x)
    tp.plug(model, "se", example=(1, 3, 8, 8), start="paper")
    active = model(x)
    torch._dynamo.reset()
    compiled = torch.compile(model, fullgraph=True, backend="eager")
    assert torch.equal(compiled(x), active)
    with tp.disabled(compiled):
        assert torch.equal(compiled(x), expected)
        with tp.disabled(model):
            assert torch.equal(compiled(x), expected)
    assert torch.equal(compiled(x), active)


def test_the_base_is_frozen_and_its_statistics_stay(plugged: nn.Module) -> None:
    frozen = tp.freeze_base(plugged)
    assert (frozen.tensors, frozen.batch_norms) == (62, 20)
    assert str(frozen).startswith("froze 11,178,564 parameters in 62 tensors")
    plugged.train()
    before = copy.deepcopy(plugged.state_dict())
    optimizer = torch.optim.SGD([p for p in plugged.parameters() if p.requires_grad], lr=0.1)
    plugged(draw()).square().sum().backward()
    optimizer.step()
    changed = {n for n, value in plugged.state_dict().items() if not torch.equal(value, before[n])}
    assert changed
    assert all(".torchplug." in name for name in changed)
    assert any("running_mean" in name for name in changed)  # BAM's own norms follow the mode


def test_batch_norms_follow_the_mode_on_request(plugged: nn.Module) -> None:
    tp.freeze_base(plugged)
    assert tp.freeze_base(plugged, bn="train").batch_norms == 0
    before = plugged.bn1.running_mean.clone()
    plugged.train()(draw())
    assert not torch.equal(plugged.bn1.running_mean, before)
    assert not plugged.conv1.weight.requires_grad


def through_pickle(model: nn.Module) -> nn.Module:
    return pickle.loads(pickle.dumps(model))


@pytest.mark.parametrize("clone", [copy.deepcopy, through_pickle])
def test_a_copy_stays_frozen_by_itself(plugged: nn.Module, clone: object) -> None:
    plugged.conv1.weight.requires_grad_(False)  # was frozen before: stays so
    tp.freeze_base(plugged)
    other = clone(plugged)
    tp.unfreeze_base(plugged)
    plugged.train()
    other.eval()
    other.train()
    assert not other.bn1.training
    assert not other.layer1[0].bn2.training  # it carries a plug
    assert other.layer1[0].bn2.torchplug.training
    assert plugged.bn1.training
    freed = tp.unfreeze_base(other)
    assert (freed.tensors, freed.batch_norms) == (61, 20)
    assert other.bn1.training
    assert {n for n, p in other.named_parameters() if not p.requires_grad} == {"conv1.weight"}
    assert "train" not in vars(other.bn1)


def test_unfreeze_works_through_a_wrapper_and_refuses_what_was_not_frozen(
    plugged: nn.Module,
) -> None:
    with pytest.raises(tp.UsageError, match="was not called on"):
        tp.unfreeze_base(plugged)
    tp.freeze_base(plugged)
    assert tp.unfreeze_base(nn.DataParallel(plugged)).tensors == 62


def test_freeze_refuses_a_model_without_plugs_and_an_unknown_word(
    base: nn.Module, plugged: nn.Module
) -> None:
    with pytest.raises(tp.PlugError, match="a model without plugs"):
        tp.freeze_base(base)
    with pytest.raises(tp.UsageError, match="'eval' or 'train'"):
        tp.freeze_base(plugged, bn="frozen")
    assert all(p.requires_grad for p in plugged.parameters())


def test_plug_parameters_are_those_that_plugging_added(base: nn.Module) -> None:
    report = tp.plug(base, "cbam", example=EXAMPLE)
    own = tp.plug_parameters(base)
    assert sum(p.numel() for p in own) == report.module_parameters + report.gate_parameters
    names = [name for name, _ in tp.named_plug_parameters(base)]
    assert all(".torchplug.cbam." in name for name in names)
    assert [dict(base.named_parameters())[name] for name in names] == own
    assert parameters_to_vector(own).numel() == sum(p.numel() for p in own)


def test_a_shared_weight_belongs_to_the_base_and_is_listed_once() -> None:
    model = Small()
    tp.plug(model, lambda _: Borrows(model.left), "norm", name="borrows", example=(1, 3, 4, 4))
    names = [name for name, _ in tp.named_plug_parameters(model)]
    prefix = "norm.torchplug.borrows."
    assert sorted(names) == [prefix + "gain", prefix + "module.scale"]
    assert tp.freeze_base(model).tensors == 4
    trains = {name for name, p in model.named_parameters() if p.requires_grad}
    assert trains == set(names)


def test_a_weight_that_plugs_share_is_listed_once() -> None:
    model = torchvision.models.resnet18()
    conv = nn.Conv2d(64, 64, 1)
    tp.plug(model, lambda _: Borrows(conv), "layer1.?", start="paper", example=EXAMPLE, name="twin")
    assert len(tp.plug_parameters(model)) == 4  # two scales, one weight, one bias


def test_a_child_that_only_is_called_torchplug_is_base() -> None:
    model = nn.Sequential()
    model.add_module("torchplug", nn.Conv2d(3, 4, 1))
    model.add_module("norm", nn.BatchNorm2d(4))
    tp.plug(model, "se", "norm", reduction=2, example=(1, 3, 4, 4))
    assert tp.freeze_base(model).tensors == 4
    assert all("norm.torchplug" in name for name, _ in tp.named_plug_parameters(model))
