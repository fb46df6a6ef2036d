"""Twenty-one networks of five libraries: the places that their authors meant are found and work."""

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import segmentation_models_pytorch as smp
import timm
import torch
import torchvision
from torch import nn
from transformers import (
    ConvNextConfig,
    ConvNextForImageClassification,
    ResNetConfig,
    ResNetForImageClassification,
)
from ultralytics.nn.tasks import DetectionModel

import torchplug as tp
from torchplug.surgery.trace import tensors_in

IMAGE = (1, 3, 64, 64)


@dataclasses.dataclass(frozen=True)
class Case:
    """One host and what must be found in it; numbers of sites, paths of the others."""

    make: Callable[[], nn.Module]
    blocks: int
    stages: list[str]
    backbone_end: str
    conv3x3: int
    decoder: tuple[str, ...] = ()
    upsample: int = 0
    merge: int = 0
    pyramid: int = 0
    example: Any = IMAGE


def tv(name: str) -> Callable[[], nn.Module]:
    return lambda: torchvision.models.get_model(name, weights=None)


def tm(name: str, **options: Any) -> Callable[[], nn.Module]:
    return lambda: timm.create_model(name, **options)


def sm(name: str) -> Callable[[], nn.Module]:
    return lambda: getattr(smp, name)("resnet34", encoder_weights=None, classes=3)


def faster_rcnn() -> nn.Module:
    return torchvision.models.detection.fasterrcnn_resnet50_fpn(
        weights=None,
        weights_backbone=None,
        min_size=64,
        max_size=96,
        rpn_pre_nms_top_n_test=20,
        rpn_post_nms_top_n_test=10,
        box_detections_per_img=5,
    )


def yolo(name: str) -> Callable[[], nn.Module]:
    return lambda: DetectionModel(f"{name}.yaml", ch=3, nc=5, verbose=False)


def hf_convnext() -> nn.Module:
    config = ConvNextConfig(depths=[2, 2, 3, 2], hidden_sizes=[32, 64, 96, 128], drop_path_rate=0.1)
    return ConvNextForImageClassification(config)


def names(pattern: str, *numbers: int) -> list[str]:
    return [pattern.format(number) for number in numbers]


IMAGES = ([torch.rand(3, 64, 64), torch.rand(3, 60, 70)],)
LAYERS = names("layer{}", 1, 2, 3, 4)
ENCODER = names("encoder.layer{}", 1, 2, 3, 4)

ZOO = {
    "tv resnet50": Case(tv("resnet50"), 16, LAYERS, "layer4", 16),
    "tv mobilenet_v3_large": Case(
        tv("mobilenet_v3_large"), 10, names("features.{}", 1, 3, 6, 12, 16), "features.16", 10
    ),
    "tv efficientnet_b0": Case(
        tv("efficientnet_b0"), 9, names("features.{}", 2, 3, 5, 8), "features.8", 8
    ),
    "tv densenet121": Case(
        tv("densenet121"), 0, names("features.denseblock{}", 1, 2, 3, 4), "!relu#120", 58
    ),
    "tv convnext_tiny": Case(
        tv("convnext_tiny"), 18, names("features.{}", 1, 3, 5, 7), "features.7", 0
    ),
    "tv fasterrcnn": Case(
        faster_rcnn,
        16,
        names("backbone.body.layer{}", 1, 2, 3, 4),
        "backbone.body.layer4",
        20,
        upsample=3,
        merge=3,
        pyramid=5,
        example=IMAGES,
    ),
    "tv deeplabv3": Case(
        lambda: torchvision.models.segmentation.deeplabv3_resnet50(weights_backbone=None),
        16,
        names("backbone.layer{}", 1, 2, 3, 4),
        "backbone.layer4",
        20,
        upsample=1,
        merge=1,
    ),
    "timm resnet50": Case(tm("resnet50"), 16, LAYERS, "layer4", 16),
    "timm regnety_008": Case(tm("regnety_008"), 14, names("s{}", 1, 2, 3, 4), "s4", 15),
    "timm convnext_atto": Case(
        tm("convnext_atto", drop_path_rate=0.1), 12, names("stages.{}", 0, 1, 2, 3), "stages.3", 0
    ),
    "timm efficientnet_b0": Case(
        tm("efficientnet_b0"), 9, names("blocks.{}", 1, 2, 4, 6), "bn2", 8
    ),
    "timm mobilenetv4": Case(
        tm("mobilenetv4_conv_small"), 10, names("blocks.{}", 0, 1, 2, 4), "blocks.4", 12
    ),
    "timm hrnet": Case(
        tm("hrnet_w18_small"),
        23,
        names("incre_modules.{}", 0, 1, 2, 3),
        "final_layer",
        65,
        upsample=10,
        merge=10,
        pyramid=4,
    ),
    "smp Unet": Case(
        sm("Unet"),
        16,
        ENCODER,
        "encoder.layer4",
        43,
        tuple(names("decoder.blocks.{}", 0, 1, 2, 3, 4)),
        upsample=5,
        merge=4,
        pyramid=4,
    ),
    "smp FPN": Case(
        sm("FPN"),
        16,
        ENCODER,
        "encoder.layer4",
        39,
        tuple(names("decoder.p{}", 4, 3, 2)),
        upsample=9,
        merge=3,
        pyramid=4,
    ),
    "smp DeepLabV3Plus": Case(
        sm("DeepLabV3Plus"),
        16,
        ENCODER,
        "encoder.layer4",
        37,
        ("decoder.block2",),
        upsample=2,
        merge=2,
        pyramid=2,
    ),
    "smp PSPNet": Case(sm("PSPNet"), 7, ENCODER[:2], "encoder.layer2", 15, upsample=4, merge=1),
    "ultralytics yolov8n": Case(
        yolo("yolov8n"),
        6,
        names("model.{}", 2, 4, 6, 9),
        "model.9",
        39,
        ("model.12", "model.15"),
        upsample=2,
        merge=2,
        pyramid=3,
    ),
    "ultralytics yolov3": Case(
        yolo("yolov3"),
        23,
        names("model.{}", 2, 4, 6, 8, 10),
        "model.10",
        79,
        ("model.19", "model.26"),
        upsample=2,
        merge=2,
        pyramid=3,
    ),
    "transformers ResNet": Case(
        lambda: ResNetForImageClassification(ResNetConfig()),
        16,
        names("resnet.encoder.stages.{}", 0, 1, 2, 3),
        "resnet.encoder.stages.3",
        16,
    ),
    "transformers ConvNext": Case(
        hf_convnext,
        9,
        names("convnext.encoder.stages.{}", 0, 1, 2, 3),
        "convnext.encoder.stages.3",
        0,
    ),
}


def make(name: str) -> tuple[nn.Module, Case]:
    """A host whose batch norms have seen something: plain ones hide a wrong scale."""
    torch.manual_seed(0)
    case = ZOO[name]
    model = case.make().eval()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d) and module.running_mean is not None:
            module.running_mean.normal_(0, 0.05)
    return model, case


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Small maps: several threads only wait for each other."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.mark.parametrize("name", sorted(ZOO))
def test_every_place_is_found_and_takes_a_plug(name: str) -> None:
    model, case = make(name)
    sites = tp.sites(model, case.example)
    assert [site.path for site in sites.with_role("stage")] == case.stages
    assert [site.path for site in sites.with_role("backbone_end")] == [case.backbone_end]
    counts = {
        "bottleneck": case.blocks,
        "block": case.blocks + len(case.decoder),
        "conv3x3": case.conv3x3,
    }
    counts |= {"upsample": case.upsample, "merge": case.merge, "pyramid": case.pyramid}
    assert {role: sites.roles[role] for role in counts} == counts
    blocks = [site.path for site in sites.with_role("block")]
    assert tuple(path for path in blocks if path in case.decoder) == case.decoder
    for role in sites.roles:
        check_plug(model, case, role, {site.anchor for site in sites.with_role(role)})


def check_plug(model: nn.Module, case: Case, role: str, anchors: set[str]) -> None:
    """SE at every place of a role changes nothing and can be taken out again."""
    classes = [(path, type(module)) for path, module in model.named_modules()]
    before = {key: (id(value), value.clone()) for key, value in state_of(model).items()}
    report = tp.plug(model, "se", role, example=case.example, hidden_channels=2)
    assert report.max_difference == 0  # proven bit for bit by plug itself, on this example
    assert {path for path, _, _ in tp.find_plugs(model)} == anchors
    assert tp.unplug(model) == len(anchors)
    assert [(path, type(module)) for path, module in model.named_modules()] == classes
    after = state_of(model)
    assert list(after) == list(before)
    for key, (identity, value) in before.items():
        assert id(after[key]) == identity
        assert torch.equal(after[key], value)


def state_of(model: nn.Module) -> dict[str, torch.Tensor]:
    return model.state_dict(keep_vars=True)


@pytest.mark.parametrize("name", ["tv fasterrcnn", "ultralytics yolov8n", "transformers ConvNext"])
def test_the_output_is_bit_equal_on_another_input(name: str) -> None:
    model, case = make(name)
    x: Any = torch.rand(2, 3, 96, 64)
    x = list(x) if case.example is IMAGES else x
    with torch.no_grad():
        expected = tensors_in(model(x))
        tp.plug(model, "se", "bottleneck", example=case.example, hidden_channels=2)
        got = tensors_in(model(x))
    assert len(got) == len(expected) > 0
    assert all(torch.equal(one, two) for one, two in zip(got, expected, strict=True))
