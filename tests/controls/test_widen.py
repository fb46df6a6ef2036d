"""A widened network against one that was built so, and against its own past."""

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.contract.cases import randomize
from torchplug.controls.widening.widen import Sizes, list_growing, widen
from torchplug.errors import UsageError
from torchplug.hosts import build_model
from torchplug.surgery.trace import read_example

EXAMPLE = (2, 3, 12, 12)


class Small(nn.Module):
    """An inverted bottleneck with a gate, a residual add and a grouped convolution, by widths."""

    def __init__(self, trunk: int = 6, wide: int = 8, grouped: int = 4) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, trunk, 3, padding=1)
        self.up, self.up_norm = nn.Conv2d(trunk, wide, 1, bias=False), nn.BatchNorm2d(wide)
        self.depthwise = nn.Conv2d(wide, wide, 3, padding=1, groups=wide)
        self.reduce, self.expand = nn.Conv2d(wide, 3, 1), nn.Conv2d(3, wide, 1)
        self.down, self.down_norm = nn.Conv2d(wide, trunk, 1), nn.BatchNorm2d(trunk)
        self.point = nn.Conv2d(trunk, grouped, 1)
        self.groups = nn.Conv2d(grouped, grouped, 3, groups=grouped // 2)
        self.fc = nn.Linear(grouped, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x).relu()
        y = self.depthwise(self.up_norm(self.up(x)).relu())
        y = y * self.expand(self.reduce(y.mean((2, 3), keepdim=True)).relu()).sigmoid()
        x = x + self.down_norm(self.down(y))
        return self.fc(self.groups(self.point(x)).amax((2, 3)))


def generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def grow(model: nn.Module, widths: dict[str, int], *, silent: bool = False) -> nn.Module:
    grown = copy.deepcopy(model)
    widen(grown, widths, example=EXAMPLE, generator=generator(), silent=silent)
    return grown


def count_by_hand(trunk: int, wide: int, grouped: int) -> int:
    stem, up = 27 * trunk + trunk, trunk * wide + 2 * wide
    depthwise = 9 * wide + wide
    gate = (3 * wide + 3) + (3 * wide + wide)
    down = wide * trunk + trunk + 2 * trunk
    end = (trunk * grouped + grouped) + (2 * 9 * grouped + grouped) + (5 * grouped + 5)
    return stem + up + depthwise + gate + down + end


@pytest.mark.parametrize("widths", [(6, 11, 4), (9, 8, 4), (6, 8, 10), (7, 9, 6)])
def test_a_widened_network_is_the_one_that_is_built_wider(widths: tuple[int, int, int]) -> None:
    """Independent of the surgery: the constructor with other numbers takes its weights."""
    model = Small()
    randomize(model, 0)
    names = dict(zip(("stem", "up", "point"), widths, strict=True))
    grown = grow(model, names)
    built = Small(*widths)
    built.load_state_dict(grown.state_dict())  # strict: names and shapes are those of the class
    x = torch.randn(3, 3, 12, 12)
    torch.testing.assert_close(grown.eval()(x), built.eval()(x), rtol=0, atol=0)
    torch.testing.assert_close(grown.train()(x), built.train()(x), rtol=0, atol=0)
    assert sum(p.numel() for p in grown.parameters()) == count_by_hand(*widths)
    assert repr(grown) == repr(built)  # the layers' own numbers too


def test_old_weights_stay_and_new_ones_are_drawn_from_their_layer() -> None:
    model = Small()
    randomize(model, 0)
    grown, again = grow(model, {"up": 20}), grow(model, {"up": 20})
    old, new = model.state_dict(), grown.state_dict()
    for name, tensor in old.items():
        kept = new[name][tuple(slice(side) for side in tensor.shape)]
        assert torch.equal(kept, tensor), name
        assert torch.equal(new[name], again.state_dict()[name])  # the generator alone decides
        assert set(new[name].flatten().tolist()) == set(tensor.flatten().tolist()) or (
            new[name].numel() - tensor.numel() < 3 * tensor.numel()
        )
        assert set(new[name].flatten().tolist()) <= set(tensor.flatten().tolist())
    assert 0.5 < float(new["up.weight"][8:].std() / old["up.weight"].std()) < 2


def test_a_constant_stays_one_in_new_channels() -> None:
    grown: Any = grow(Small(), {"up": 10})
    assert grown.up_norm.weight.unique().tolist() == [1]
    assert grown.up_norm.running_mean.unique().tolist() == [0]


@pytest.mark.parametrize("name", ["stem", "up", "point"])
def test_silent_channels_change_nothing_and_learn(name: str) -> None:
    model = Small().eval()
    randomize(model, 0)
    grown: Any = grow(model, {name: 12}, silent=True)
    x = torch.randn(4, 3, 12, 12)
    torch.testing.assert_close(grown(x), model(x), rtol=1e-5, atol=1e-5)
    grown(x).square().sum().backward()
    reads = {"stem": "up", "up": "down", "point": "fc"}[name]
    gradient = grown.get_submodule(reads).weight.grad
    assert bool(gradient[:, 12 - 1].any())
    # and without silence the output moves: the test above could fail
    assert not torch.allclose(grow(model, {name: 12})(x), model(x), atol=1e-3)


@pytest.mark.parametrize(
    ("widths", "text"),
    [
        ({"nothing": 9}, "nothing; choose from stem, up"),
        ({"fc": 9}, "the model returns them"),
        ({"point": 5}, "grows by 2: got 5; pass 6"),
        ({"up": 7}, "has 8 channels"),
    ],
)
def test_refused_widths(widths: dict[str, int], text: str) -> None:
    with pytest.raises(UsageError, match=text):
        grow(Small(), widths)


def test_frozen_weights_stay_frozen() -> None:
    model = Small()
    model.up.weight.requires_grad_(False)
    assert not grow(model, {"up": 9}).up.weight.requires_grad  # type: ignore[union-attr]


LIBRARIES = {
    "torchvision:mobilenet_v3_small": "features.11.block.0.0",
    "timm:test_efficientnet": "",
    "timm:test_resnet": "",
    "timm:test_convnext": "",
    "smp:Unet": "decoder.blocks.4.conv1.0",
}


@pytest.mark.parametrize("name", LIBRARIES)
def test_models_of_libraries_reach_a_number_of_parameters(name: str) -> None:
    options = {"encoder_name": "resnet18"} if name == "smp:Unet" else {}
    model = build_model(name, options=options)
    example = (2, 3, 32, 32)
    arguments = read_example(example, model)
    sizes = Sizes(model, arguments)
    base = sum(p.numel() for p in model.parameters())
    assert sizes.count({}) == base
    growing = list_growing(sizes.groups)
    assert LIBRARIES[name] in {"", *(group.name for group in growing)}
    target = int(1.03 * base)
    fit = sizes.finish(sizes.fit(growing[-2:], target, {}), growing[-2:], target)
    assert abs(fit.parameters / target - 1) < 0.001
    before = {key: value.clone() for key, value in model.state_dict().items()}
    wanted = model.eval()(*arguments[0])
    widen(model, fit.widths, example=example, generator=generator(), silent=True)
    assert sum(p.numel() for p in model.parameters()) == fit.parameters
    torch.testing.assert_close(model(*arguments[0]), wanted, rtol=1e-4, atol=1e-5)
    for key, value in model.state_dict().items():
        assert torch.equal(value[tuple(slice(n) for n in before[key].shape)], before[key])


def test_the_trunk_grows_where_nothing_else_can() -> None:
    class Trunk(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.body, self.end = (nn.Conv2d(*w, 1) for w in ((3, 5), (5, 5), (5, 2)))

        def forward(self, x: Tensor) -> Tensor:
            x = self.stem(x)
            return self.end(x + self.body(x))

    model = Trunk()
    sizes = Sizes(model, read_example(EXAMPLE, model))
    assert [group.name for group in list_growing(sizes.groups)] == ["stem"]


def test_hidden_layers_of_gates_come_last() -> None:
    sizes = Sizes(Small(), read_example(EXAMPLE, Small()))
    assert [group.name for group in list_growing(sizes.groups)] == ["up", "point"]
    assert {group.name for group in sizes.groups if group.can_grow} >= {"reduce", "stem"}
