"""Which weights must grow together, by hand."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from torchplug.controls.widening.flow import find_groups
from torchplug.controls.widening.groups import Group
from torchplug.hosts import build_model
from torchplug.surgery.trace import read_example

EXAMPLE = (1, 3, 8, 8)


def groups_of(model: nn.Module, example: Any = EXAMPLE) -> dict[str, Group]:
    return {group.name: group for group in find_groups(model, read_example(example, model))}


def members(group: Group) -> set[str]:
    return {f"{slot.path}.{slot.name}:{slot.dim}" for slot in group.slots.values()}


class Simple(nn.Module):
    """Two convolutions around whatever a test puts between them."""

    def __init__(self, between: Any, *, width: int = 6, reads: int | None = None) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, width, 3), nn.Conv2d(reads or width, 2, 1)
        self.between = between

    def forward(self, x: Tensor) -> Tensor:
        return self.second(self.between(self.first(x)))


def test_groups_of_a_residual_network() -> None:
    groups = groups_of(build_model("torchplug:resnet8"))
    assert members(groups["layer3.conv1"]) == {
        "layer3.conv1.weight:0",
        *(f"layer3.bn1.{name}:0" for name in ("weight", "bias", "running_mean", "running_var")),
        "layer3.conv2.weight:1",
    }
    trunk = groups["layer3.conv2"]
    assert {"layer3.downsample.0.weight:0", "fc.weight:1"} <= members(trunk)
    assert trunk.joined
    assert trunk.can_grow
    assert not groups["layer3.conv1"].joined
    assert groups["fc"].obstacle == "the model returns them"
    assert [group.width for group in groups.values() if group.name][:3] == [16, 16, 32]


def test_channels_pass_through_what_leaves_them_apart() -> None:
    between = nn.Sequential(
        nn.BatchNorm2d(6, affine=False),
        nn.Hardswish(),
        nn.MaxPool2d(2),
        nn.ZeroPad2d(1),
        nn.Upsample(scale_factor=2),
        nn.Dropout(),
        nn.Conv2d(6, 6, 3, groups=3),
    )
    group = groups_of(Simple(between))["first"]
    assert group.can_grow
    assert group.step == 2
    assert "between.0.running_var:0" in members(group)
    assert "second.weight:1" in members(group)


def test_channels_are_followed_as_the_last_axis_and_as_a_vector() -> None:
    class Mixer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.up, self.down = nn.Conv2d(3, 4, 1), nn.Linear(4, 9), nn.Linear(9, 5)
            self.head = nn.Linear(5, 2)

        def forward(self, x: Tensor) -> Tensor:
            x = self.stem(x).permute(0, 2, 3, 1)
            x = self.down(nn.functional.gelu(self.up(x))).permute(0, 3, 1, 2)
            return self.head(x.mean((2, 3)).flatten(1))

    groups = groups_of(Mixer())
    assert [groups[name].can_grow for name in ("stem", "up", "down")] == [True] * 3
    assert "head.weight:1" in members(groups["down"])


class Norm(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(2, 6)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(x)


class Call(nn.Module):
    def __init__(self, call: Any) -> None:
        super().__init__()
        self.call = call

    def forward(self, x: Tensor) -> Tensor:
        return self.call(x)


def overwrite(x: Tensor) -> Tensor:
    x = x.clone()
    x[:, 0] = 0
    return x


@pytest.mark.parametrize(
    ("between", "reads", "reason"),
    [
        (Norm(), 6, "group_norm"),
        (nn.Conv2d(6, 12, 3, groups=6), 12, "two widths"),
        (nn.PixelShuffle(1), 6, "pixel_shuffle"),
        (Call(lambda x: torch.cat([x, x], 1)), 12, "cat takes them together"),
        (Call(lambda x: x - x.mean(1, keepdim=True)), 6, "mean takes them together"),
        (Call(lambda x: x * torch.ones(6, 1, 1)), 6, "unknown channels"),
        (Call(lambda x: x.reshape(x.shape)), 6, "reshape"),
        (Call(overwrite), 6, "overwritten"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_what_takes_channels_together_stops_them(between: Any, reads: int, reason: str) -> None:
    group = groups_of(Simple(between, reads=reads))["first"]
    assert not group.can_grow
    assert reason in group.obstacle


def test_one_gate_for_all_channels_does_not_grow_with_them() -> None:
    class Gated(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.score = nn.Conv2d(6, 1, 1)

        def forward(self, x: Tensor) -> Tensor:
            return x * self.score(x).sigmoid()

    groups = groups_of(Simple(Gated()))
    assert groups["first"].can_grow
    assert "between.score.weight:1" in members(groups["first"])
    assert not groups["between.score"].can_grow


def test_a_classifier_that_runs_in_training_only_is_seen() -> None:
    class Auxiliary(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Conv2d(3, 6, 1), nn.Conv2d(6, 2, 1)
            self.head = nn.Conv2d(6, 2, 1)

        def forward(self, x: Tensor) -> Any:
            x = self.first(x)
            return (self.second(x), self.head(x)) if self.training else self.second(x)

    model = Auxiliary()
    assert "head.weight:1" in members(groups_of(model)["first"])
    assert model.training  # it was left as it was


def test_weights_that_are_used_otherwise_are_kept() -> None:
    model = Simple(nn.Identity())
    nn.utils.parametrizations.weight_norm(model.first)
    assert "first" not in groups_of(model)

    class Tied(Simple):
        def forward(self, x: Tensor) -> Tensor:
            y = self.second(self.first(x))
            return y * self.first.weight.sum()

    assert not groups_of(Tied(nn.Identity()))["first"].can_grow


def test_a_layer_that_runs_twice_keeps_its_groups_together() -> None:
    class Shared(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.body, self.end = (nn.Conv2d(*w, 1) for w in ((3, 5), (5, 5), (5, 2)))

        def forward(self, x: Tensor) -> Tensor:
            return self.end(self.body(self.body(self.stem(x)).relu()))

    group = groups_of(Shared())["stem"]
    assert {"body.weight:0", "body.weight:1", "end.weight:1"} <= members(group)
    assert group.can_grow
