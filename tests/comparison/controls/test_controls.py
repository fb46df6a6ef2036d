"""Controls of real studies: what they are brought to, what they share, why some do not exist."""

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from torchplug.analysis import Latency, count_parameters, measure_latency
from torchplug.comparison import arms as arms_of
from torchplug.comparison.arms import (
    Study,
    hash_weights,
    make_example,
    module_digests,
    pin_modules,
    prepare_model,
)
from torchplug.comparison.controls import find_controls, matching, resolve_controls
from torchplug.comparison.data import MemoryItems, TaskData
from torchplug.comparison.spec import BASELINE, Comparison, Variant
from torchplug.errors import UsageError
from torchplug.hosts import build_model

OWN = """
import torch
from torch import nn

class Scale(nn.Module):
    def __init__(self, channels, *, value=1.0):
        super().__init__()
        self.scale = nn.Parameter(torch.full((1, channels, 1, 1), value))

    def forward(self, x):
        return x * self.scale
"""


def make_study(*plugs: str, model: Any = None, size: int = 8, **changes: Any) -> Study:
    """A study on no data: controls look at its shape alone."""
    data = TaskData(
        name="none",
        task="classification",
        classes=tuple(map(str, range(10))),
        train=MemoryItems(torch.zeros(2, 1, size, size, dtype=torch.uint8), torch.tensor([0, 1])),
        validation=(),
        test=(),
        digest="",
        shape=(1, 1, size, size),
    )
    comparison = Comparison(
        model="torchplug:resnet8",
        data="none",
        variants=tuple(map(Variant.parse, plugs)),
        seeds=(0, 1),
        **changes,
    )
    return Study(comparison, data, model or make_resnet)


def make_resnet() -> nn.Module:
    return build_model("torchplug:resnet8", in_channels=1)


def find_one(study: Study, kind: Any) -> Variant:
    (found,) = resolve_controls(study, study.comparison.variants, [kind])
    return found


@pytest.mark.parametrize("plug", ["se", "cbam@stage:reduction=4", "nl@stage", "dwconv", "se + gc"])
def test_parameters_are_matched_within_one_percent(plug: str) -> None:
    study = make_study(plug)
    control = find_one(study, "parameters")
    variant, widened = (prepare_model(study, v, 0) for v in (study.comparison.variants[0], control))
    wanted, got = (count_parameters(arm.model) for arm in (variant, widened))
    assert abs(got / wanted - 1) < 0.005
    assert (control.control, control.of, control.plugs) == ("parameters", plug, ())
    assert control.details["parameters"] == got
    assert control.details["target"] == wanted
    assert widened.reports == ()


def test_the_stage_grows_in_which_the_variant_adds() -> None:
    study = make_study("se@stage:reduction=1", "se@layer2.bn2:reduction=1")
    all_stages, second = resolve_controls(study, study.comparison.variants, ["parameters"])
    assert set(second.details["widths"]) == {"layer2.conv1"}
    gains = dict(all_stages.details["widths"].items())
    assert set(gains) == {"layer1.conv1", "layer2.conv1", "layer3.conv1"}
    # se of 16, 32 and 64 channels with a divisor of 1 adds 544, 2112 and 8320 parameters; a channel
    # more adds 290, 434 or 866 (9 inputs + 9 outputs of each neighbor, and a norm's two)
    assert gains["layer1.conv1"] - 16 in {1, 2}
    assert gains["layer2.conv1"] - 32 in {4, 5}
    assert gains["layer3.conv1"] - 64 in {9, 10}


def test_arms_of_a_seed_share_their_base_bit_by_bit() -> None:
    study = make_study("se")
    control = find_one(study, "parameters")
    placebo = find_one(study, "placebo")
    baseline = prepare_model(study, Variant(name=BASELINE), 3)
    for arm in (control, placebo):
        prepared = prepare_model(study, arm, 3)
        assert prepared.base_weights == baseline.base_weights == hash_weights(baseline.model)
        weights = prepared.model.state_dict()
        for name, tensor in baseline.model.state_dict().items():
            assert torch.equal(weights[name][tuple(map(slice, tensor.shape))], tensor), name
    again, other = (hash_weights(prepare_model(study, control, s).model) for s in (3, 4))
    assert again == hash_weights(prepare_model(study, control, 3).model) != other


def test_from_scratch_new_channels_speak_and_from_weights_they_are_silent() -> None:
    study = make_study("se")
    control = find_one(study, "parameters")
    x = torch.randn(2, 1, 8, 8)

    def differs(study: Study) -> float:
        models = [prepare_model(study, v, 0).model.eval() for v in (Variant(name="b"), control)]
        return float((models[0](x) - models[1](x)).detach().abs().max())

    assert differs(study) > 1e-3
    weights = make_resnet().state_dict()
    assert differs(dataclasses.replace(study, start=weights)) < 1e-5


def test_the_placebo_has_the_variant_s_weights_and_not_its_information() -> None:
    study = make_study("se")
    variant, placebo = study.comparison.variants[0], find_one(study, "placebo")
    models = [prepare_model(study, v, 0).model for v in (variant, placebo)]
    states = [model.state_dict() for model in models]
    assert list(states[0]) == list(states[1])
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])
    assert "gate is computed from ones" in placebo.details["told"]
    kinds = {type(m).__name__ for m in models[1].modules()}
    assert "SqueezeExcitePlacebo" in kinds
    assert "SqueezeExcite" not in kinds


class Normed(nn.Module):
    """Every channel meets every other in a norm: nothing can grow."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm, self.end = nn.Conv2d(1, 16, 3), nn.GroupNorm(1, 16), nn.Linear(16, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.end(self.norm(self.conv(x)).mean((2, 3)))


@pytest.mark.parametrize(
    ("kind", "study", "reason"),
    [
        ("placebo", make_study("acnet"), "through which the map itself passes"),
        ("placebo", make_study("se + dwconv"), "through which the map itself passes"),
        ("parameters", make_study("se@conv", model=Normed), "group_norm takes them together"),
        ("latency", make_study("se@conv", model=Normed), "group_norm takes them together"),
        ("latency", make_study("se", command="x {seed} {out}"), "would be another one each time"),
    ],
)
def test_a_control_that_does_not_exist_says_why(kind: Any, study: Study, reason: str) -> None:
    (found,) = find_controls(study, study.comparison.variants, [kind])
    assert found.arm is None
    assert reason in found.reason
    assert "; " in found.reason
    assert resolve_controls(study, study.comparison.variants, [kind]) == ()


def test_a_variant_with_fewer_parameters_is_not_matched() -> None:
    study = make_study("dwconv")
    variant = study.comparison.variants[0]
    request = dataclasses.replace(variant.plugs[0], start="paper")
    smaller = dataclasses.replace(variant, plugs=(request,))
    (found,) = find_controls(study, [smaller], ["parameters"])
    assert found.arm is None
    assert "widens the base to the variant's parameters" in found.reason


def fake_latency(models: Mapping[str, nn.Module], *_: Any, **__: Any) -> dict[str, Latency]:
    """Time is what parameters are, with a step down in between: wider is not always slower."""
    counts = {name: count_parameters(model) for name, model in models.items()}
    first = next(iter(counts.values()))
    ratios = {name: 1 + 4 * (count / first - 1) for name, count in counts.items()}
    ratios = {name: r - 0.3 if 1.7 < r < 2 else r for name, r in ratios.items()}
    return {name: Latency(1.0, ratio, ratio, ratio) for name, ratio in ratios.items()}


def test_latency_is_matched_by_the_nearest_of_what_was_measured(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(matching, "measure_latency", fake_latency)
    study = make_study("se:reduction=1")
    control = find_one(study, "latency")
    base, variant, wide = (
        prepare_model(study, v, 0).model
        for v in (Variant(name="b"), study.comparison.variants[0], control)
    )
    ratios = fake_latency({"b": base, "v": variant, "w": wide})
    assert abs(ratios["w"].ratio - ratios["v"].ratio) < 0.15
    widths = control.details["widths"]
    assert set(widths) == {"layer1.conv1", "layer2.conv1", "layer3.conv1"}
    assert widths["layer3.conv1"] / 64 == pytest.approx(widths["layer1.conv1"] / 16, abs=0.07)
    assert "times the baseline's latency" in control.details["told"]


def test_a_variant_that_is_not_slower_has_no_latency_control(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    same = {name: Latency(1.0, 1.0, 1.0, 1.0) for name in ("base", "variant")}
    monkeypatch.setattr(matching, "measure_latency", lambda *_, **__: same)
    study = make_study("se")
    (found,) = find_controls(study, study.comparison.variants, ["latency"])
    assert found.arm is None
    assert "se, 1.00 times as slow" in found.reason


def test_latency_is_really_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    quick = functools.partial(measure_latency, seconds=0.0)
    monkeypatch.setattr(matching, "measure_latency", quick)
    study = make_study("se:reduction=1", size=16)
    control = find_one(study, "latency")
    assert all(width > 16 for width in control.details["widths"].values())
    prepare_model(study, control, 1).model(torch.randn(2, 1, 16, 16))


@pytest.mark.parametrize(
    ("shape", "batch"), [((1, 1, 8, 8), 32), ((1, 3, 48, 48), 14), ((1, 3, 512, 512), 1)]
)
def test_the_batch_that_is_timed(shape: tuple[int, ...], batch: int) -> None:
    assert matching.choose_batch(shape) == (batch, *shape[1:])


@pytest.fixture
def own_file(tmp_path: Path) -> Path:
    path = tmp_path / "own.py"
    path.write_text(OWN)
    return path


def test_a_module_of_ones_own_is_plugged_and_controlled(own_file: Path) -> None:
    study = make_study(f"{own_file}:Scale@stage:value=2.0")
    (variant,) = study.comparison.variants
    arm = prepare_model(study, variant, 0)
    assert describe(arm) == [("scale", "layer1"), ("scale", "layer2"), ("scale", "layer3")]
    found = resolve_controls(study, [variant], ["parameters", "placebo"])
    assert [control.control for control in found] == ["parameters", "placebo"]
    scales = [m for m in arm.model.modules() if type(m).__name__ == "Scale"]
    assert all(float(m.scale.detach().mean()) == 2 for m in scales)  # type: ignore[union-attr, operator, arg-type]


def describe(arm: arms_of.Arm) -> list[tuple[str, str]]:
    return [(p.name, p.path) for report in arm.reports for p in report.plan.plugs]


def test_its_source_decides_its_trials_and_no_others(own_file: Path) -> None:
    study = make_study("se", f"{own_file}:Scale@stage")
    before = pin_modules(study.comparison)
    assert pin_modules(before) == before  # reading again changes nothing
    own_file.write_text(OWN + "# changed\n")
    after = pin_modules(study.comparison)
    digests = [[c.digest(v, 0) for v in c.variants] for c in (before, after)]
    assert digests[0][0] == digests[1][0]
    assert digests[0][1] != digests[1][1]
    assert list(module_digests(after.variants[1])) == [f"{own_file}:Scale"]
    assert module_digests(after.variants[0]) == {}


def test_a_module_that_cannot_be_loaded_is_named(own_file: Path) -> None:
    study = make_study(f"{own_file}:Scaled@stage")
    with pytest.raises(UsageError, match=r"must define the maker: got 'Scaled'.*Scale"):
        pin_modules(study.comparison)


@pytest.mark.parametrize("option", ["seed", "start", "name"])
def test_an_option_that_plug_has_itself_is_refused(own_file: Path, option: str) -> None:
    with pytest.raises(UsageError, match=f"got {option}; rename it"):
        Variant.parse(f"{own_file}:Scale@stage:{option}=1")


def test_the_example_of_a_study() -> None:
    assert make_example(make_resnet(), make_study("se").data) == (1, 1, 8, 8)


def names(found: Sequence[Variant]) -> list[str]:
    return [variant.name for variant in found]


def test_names_and_order_of_the_controls() -> None:
    study = make_study("se", "cbam")
    found = resolve_controls(study, study.comparison.variants, ["again", "parameters", "placebo"])
    assert names(found) == [
        "parameters control of se",
        "placebo control of se",
        "parameters control of cbam",
        "placebo control of cbam",
    ]
    assert Variant.from_dict(dataclasses.asdict(found[0])) == found[0]
