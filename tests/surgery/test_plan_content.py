"""What a plan carries so that a file loads by itself: classes as options, shapes of an example."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import segmentation_models_pytorch as smp
import torch
import torchvision
from torch import nn

import torchplug as tp
from torchplug.surgery.specimen import LARGEST, describe, is_specimen, rebuild

EXAMPLE = (1, 3, 64, 64)


def resnet() -> nn.Module:
    return torchvision.models.resnet18().eval()


def unet() -> nn.Module:
    return smp.Unet("resnet18", encoder_weights=None).eval()


def wake(model: nn.Module) -> None:
    for parameter in tp.plug_parameters(model):
        nn.init.normal_(parameter, std=0.3)


# examples


@pytest.mark.parametrize(
    ("make", "key", "dtype"),
    [
        (resnet, "blazeblock", torch.float32),
        (unet, "seb", torch.float32),
        (unet, "seb", torch.double),
    ],
)
def test_a_file_whose_places_need_a_run_loads_by_itself(
    make: Callable[[], nn.Module], key: str, dtype: torch.dtype, tmp_path: Path
) -> None:
    torch.manual_seed(0)
    model = make().to(dtype)
    fresh = make().to(dtype)
    fresh.load_state_dict(model.state_dict())
    tp.plug(model, key, example=EXAMPLE)
    wake(model)
    tp.save(model, tmp_path / "x.safetensors")
    report = tp.load(fresh, tmp_path / "x.safetensors")
    assert report.max_difference is not None  # the model ran, and every plug in it
    x = torch.randn(2, 3, 64, 64, dtype=dtype)
    with torch.no_grad():
        assert torch.equal(model(x), fresh(x))


def test_a_file_whose_layers_tell_is_loaded_without_a_run(tmp_path: Path) -> None:
    model = resnet()
    report = tp.plug(model, "acnet", example=EXAMPLE, stages=[4])
    assert report.plan.example is None
    assert "example" not in json.loads(report.plan.to_json())
    tp.save(model, tmp_path / "x.safetensors")
    assert tp.load(resnet(), tmp_path / "x.safetensors").max_difference is None


def test_plugs_of_several_calls_keep_the_example_of_the_one_that_needs_it(tmp_path: Path) -> None:
    model = unet()
    tp.plug(model, "se", example=EXAMPLE)
    tp.plug(model, "seb", example=(2, 3, 96, 64))
    plan = tp.surgery.checkpoint.read_plan_of(model)
    tensor = {"shape": [2, 3, 96, 64], "dtype": "float32"}
    assert plan.example == {"args": {"list": [tensor]}, "kwargs": {"dict": {}}}
    tp.save(model, tmp_path / "x.safetensors")
    assert len(tp.load(unet(), tmp_path / "x.safetensors").paths) == len(plan.plugs)


def test_arguments_come_back_in_shape_type_and_nest() -> None:
    arguments = (
        ([torch.rand(3, 8, 9), torch.rand(3, 4, 4)], (torch.ones(2, dtype=torch.int64), None, "a")),
        {"flag": True, "more": {"scale": 0.5}},
    )
    specimen = describe(arguments)
    assert specimen is not None
    assert is_specimen(json.loads(json.dumps(specimen)))
    args, kwargs = rebuild(specimen, nn.Conv2d(1, 1, 1).double())
    assert [tuple(x.shape) for x in args[0]] == [(3, 8, 9), (3, 4, 4)]
    assert args[0][0].dtype == torch.float64  # the model's own
    assert args[1][0].dtype == torch.int64
    assert args[1][1:] == (None, "a")
    assert kwargs == {"flag": True, "more": {"scale": 0.5}}
    again, _ = rebuild(specimen, nn.Conv2d(1, 1, 1).double())
    assert torch.equal(again[0][1], args[0][1])


@pytest.mark.parametrize("strange", [object(), {1, 2}, torch.zeros(1, dtype=torch.complex64)])
def test_arguments_that_are_no_data_are_not_described(strange: Any) -> None:
    assert describe(((strange,), {})) is None


HUGE = {"shape": [LARGEST, 2], "dtype": "float32"}
HOSTILE: list[Any] = [
    [],
    {"args": {"list": []}},
    {"args": {"list": [HUGE]}, "kwargs": {"dict": {}}},
    {"args": {"list": [{"shape": [LARGEST], "dtype": "float32"}] * 2}, "kwargs": {"dict": {}}},
    {"args": {"list": [{"shape": [-1], "dtype": "float32"}]}, "kwargs": {"dict": {}}},
    {"args": {"list": [{"shape": [True], "dtype": "float32"}]}, "kwargs": {"dict": {}}},
    {"args": {"list": [{"shape": [1], "dtype": "load"}]}, "kwargs": {"dict": {}}},
    {"args": {"list": [{"value": 0}] * 2000}, "kwargs": {"dict": {}}},
    {"args": {"list": [{"call": "os.system"}]}, "kwargs": {"dict": {}}},
    {"args": {"list": [{"value": [1]}]}, "kwargs": {"dict": {}}},
    {"args": {"list": {}}, "kwargs": {"dict": {}}},
    {"args": {"tuple": []}, "kwargs": {"dict": {}}},
]


@pytest.mark.parametrize("specimen", HOSTILE, ids=range(len(HOSTILE)))
def test_a_strange_example_is_refused(specimen: Any) -> None:
    plan = json.loads(tp.plug(unet(), "se", "decoder.blocks.0", example=EXAMPLE).plan.to_json())
    plan["example"] = specimen
    with pytest.raises(tp.UsageError, match="example of the plan must be shapes and types"):
        tp.Plan.from_json(json.dumps(plan))


# classes


def test_options_that_are_classes_are_saved_and_loaded(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model, fresh = resnet(), resnet()
    fresh.load_state_dict(model.state_dict())
    report = tp.plug(model, "scse", example=EXAMPLE, act_layer=nn.SiLU, gate_layer=nn.Hardsigmoid)
    wake(model)
    assert tp.Plan.from_json(report.plan.to_json()) == report.plan
    tp.save(model, tmp_path / "x.safetensors")
    tp.load(fresh, tmp_path / "x.safetensors")
    kinds = {type(module) for _, _, plug in tp.find_plugs(fresh) for module in plug.modules()}
    assert {nn.SiLU, nn.Hardsigmoid} <= kinds
    assert nn.Sigmoid not in kinds
    x = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        assert torch.equal(model(x), fresh(x))


class Own(nn.Module):
    """A class that no file may name."""


def test_a_class_of_ones_own_is_not_saved_and_says_so(tmp_path: Path) -> None:
    model = resnet()

    class Gate(nn.Sigmoid):
        pass

    tp.plug(model, "se", example=EXAMPLE, gate_layer=Gate)
    with pytest.raises(tp.UsageError, match=r"Gate is a class of neither torch\.nn nor torchplug"):
        tp.save(model, tmp_path / "x.safetensors")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "value",
    [
        {"class": "tests.surgery.test_plan_content.Own"},
        {"class": "torch.nn.functional.relu"},
        {"class": "torch.nn.Parameter"},
        {"class": "torch.nn.init"},
        {"class": "os.system"},
        {"class": ["torch.nn.SiLU"]},
        {"class": "torch.nn.SiLU", "more": 1},
        {"call": "torch.nn.SiLU"},
        {},
    ],
)
def test_a_file_names_known_classes_only(value: Any) -> None:
    plan = json.loads(tp.plug(resnet(), "se", "layer1", example=EXAMPLE).plan.to_json())
    for strange in (value, [value]):
        plan["plugs"][0]["options"] = {"gate_layer": strange}
        with pytest.raises(tp.UsageError, match="must be numbers, texts, booleans, known classes"):
            tp.Plan.from_json(json.dumps(plan))
