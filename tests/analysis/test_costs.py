"""Latency, memory and costs: by hand where they can be, and nothing left behind."""

import copy
import time
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import sdpa_flop_count

from torchplug.analysis import (
    count_flops,
    count_parameters,
    latency,
    measure_costs,
    measure_latency,
    measure_memory,
)
from torchplug.errors import UsageError
from torchplug.hosts import build_model
from torchplug.surgery import measure

EXAMPLE = (2, 1, 8, 8)


class Sleeper(nn.Module):
    """Takes a known time and notes when it ran."""

    def __init__(self, seconds: float, diary: list[str], name: str) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(1))
        self.seconds, self.diary, self.name = seconds, diary, name

    def forward(self, x: Tensor) -> Tensor:
        self.diary.append(self.name)
        time.sleep(self.seconds)
        return x * self.weight


def test_ratios_of_known_times() -> None:
    diary: list[str] = []
    models = {name: Sleeper(time, diary, name) for name, time in (("a", 0.01), ("b", 0.03))}
    found = measure_latency(models, (1, 1), repeats=5, seconds=0.0)
    assert found["a"].ratio == found["a"].low == found["a"].high == 1
    assert 1.3 < found["b"].low <= found["b"].ratio <= found["b"].high < 5
    assert found["a"].milliseconds >= 10
    # two calls each to warm up, then in turn, forwards and backwards
    assert diary == [*"aabb", *"abbaabbaab"]


def test_median_and_quartiles_of_paired_ratios() -> None:
    own, reference = [2.0, 3.0, 10.0, 4.0, 5.0], [1.0, 1.0, 5.0, 1.0, 1.0]
    found = latency._summarize(own, reference)  # ratios 2 3 2 4 5
    assert (found.milliseconds, found.ratio, found.low, found.high) == (4000, 3, 2, 4)
    assert latency._quantile([1.0, 2.0], 0.25) == 1.25


def test_too_little_to_measure() -> None:
    with pytest.raises(UsageError, match="a measurement needs a model"):
        measure_latency({}, EXAMPLE)
    with pytest.raises(UsageError, match="needs 5 rounds: got repeats=3"):
        measure_latency({"a": nn.Identity()}, EXAMPLE, repeats=3)


def describe(model: nn.Module) -> Any:
    return (
        {key: value.clone() for key, value in model.state_dict().items()},
        [module.training for module in model.modules()],
        [None if p.grad is None else p.grad.clone() for p in model.parameters()],
        torch.get_num_threads(),
        torch.get_rng_state().tolist(),
    )


@pytest.mark.parametrize("backward", [False, True])
def test_models_are_left_as_they_were(backward: bool) -> None:
    model = build_model("torchplug:resnet8", in_channels=1)
    model.layer1.eval()  # type: ignore[operator, union-attr]
    model(torch.randn(EXAMPLE)).sum().backward()
    before = describe(model)
    measure_latency({"a": model}, EXAMPLE, repeats=5, seconds=0.0, backward=backward)
    measure_memory(model, EXAMPLE)
    for old, new in zip(before, describe(model), strict=True):
        torch.testing.assert_close(old, new, rtol=0, atol=0)


def test_a_step_of_training_takes_longer_than_a_forward() -> None:
    model = nn.Sequential(*(nn.Conv2d(8, 8, 3) for _ in range(4)))
    shape = (8, 8, 32, 32)
    forward, step = (
        measure_latency({"a": model}, shape, repeats=5, backward=backward)["a"].milliseconds
        for backward in (False, True)
    )
    assert step > 1.3 * forward


class Twice(nn.Module):
    """Keeps one map for two operations."""

    def forward(self, x: Tensor) -> Tensor:
        return x.sin() + x.cos()


def test_memory_by_hand() -> None:
    # a convolution keeps its input of 2 * 1 * 8 * 8 values, a sigmoid its output of 4 channels
    model = nn.Sequential(nn.Conv2d(1, 4, 1), nn.Sigmoid())
    assert measure_memory(model, EXAMPLE) == 4 * (128 + 4 * 128)
    # in place over two channels at once, a map that two operations keep counts once
    model = nn.Sequential(nn.Conv2d(1, 4, 1), Twice())
    assert measure_memory(model, EXAMPLE) == 4 * (128 + 4 * 128)
    assert measure_memory(nn.Sequential(nn.Conv2d(1, 4, 1)).double(), EXAMPLE) == 8 * 128
    assert measure_memory(nn.ReLU(), EXAMPLE) == 0  # nothing learns


def test_memory_grows_with_the_batch_and_needs_none_on_the_meta_device() -> None:
    model = build_model("torchplug:resnet8", in_channels=1)
    one, two = (measure_memory(model, (n, 1, 8, 8)) for n in (2, 4))
    assert 1.9 < two / one <= 2
    empty = copy.deepcopy(model).to("meta")
    assert measure_memory(empty, (2, 1, 8, 8)) == one
    assert measure_memory(empty, (64, 1, 1024, 1024)) > 2**34  # no test has that much


def test_memory_where_training_mode_does_not_run() -> None:
    class NeedsTargets(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(1, 4, 1)

        def forward(self, x: Tensor, targets: Any = None) -> Tensor:
            if self.training and targets is None:
                raise ValueError("targets should not be none")
            return self.conv(x)

    assert measure_memory(NeedsTargets(), EXAMPLE) == 4 * 128


def test_costs_of_arms_side_by_side() -> None:
    small = build_model("torchplug:resnet8", in_channels=1)
    wide = nn.Sequential(nn.Conv2d(1, 32, 3), nn.ReLU(), nn.Conv2d(32, 32, 3))
    costs = measure_costs({"small": small, "wide": wide}, EXAMPLE, repeats=5, seconds=0.0)
    assert list(costs) == ["small", "wide"]
    assert costs["wide"]["parameters"] == count_parameters(wide)
    assert costs["small"]["flops"] == count_flops(small, EXAMPLE)
    assert costs["small"]["memory"] == measure_memory(small, EXAMPLE)
    assert set(costs["wide"]["latency"]) == {"milliseconds", "ratio", "low", "high"}
    assert costs["small"]["latency"]["ratio"] == 1


def test_fused_attention_is_counted_as_torch_counts_it() -> None:
    shapes = torch.Size((2, 3, 5, 4)), torch.Size((2, 3, 7, 4)), torch.Size((2, 3, 7, 6))
    assert measure._count_attention(*shapes) == sdpa_flop_count(*shapes)
