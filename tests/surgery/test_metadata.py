"""What libraries and models say of their own places is heard, and named as the source."""

from typing import Any

import pytest
import segmentation_models_pytorch as smp
import timm
import torch
import torchvision
from torch import nn

import torchplug as tp
from torchplug.hosts import build_model
from torchplug.surgery import metadata

EXAMPLE = (1, 3, 64, 64)
SMALL = (1, 1, 8, 8)

# stage ends that a trace alone does not see: dilated, parallel, dense, or inside the next block
STAGES: dict[str, tuple[Any, list[str]]] = {
    "dilated deeplabv3": (
        lambda: torchvision.models.segmentation.deeplabv3_resnet50(weights_backbone=None),
        [f"backbone.layer{n}" for n in (1, 2, 3, 4)],
    ),
    "parallel hrnet": (
        lambda: timm.create_model("hrnet_w18_small"),
        [f"incre_modules.{n}" for n in (0, 1, 2, 3)],
    ),
    "timm densenet": (
        lambda: timm.create_model("densenet121"),
        [*(f"features.denseblock{n}" for n in (1, 2, 3)), "features.norm5"],
    ),
    "torchvision densenet": (
        torchvision.models.densenet121,
        [f"features.denseblock{n}" for n in (1, 2, 3, 4)],
    ),
    "ghostnet": (
        lambda: timm.create_model("ghostnet_100"),
        [f"blocks.{n}" for n in (1, 3, 5, 7)],
    ),
    "features only": (
        lambda: timm.create_model("ghostnet_100", features_only=True),
        [f"blocks_{n}" for n in (1, 3, 5, 7)],
    ),
    "encoder by indices": (
        lambda: smp.Unet("efficientnet-b0", encoder_weights=None),
        [f"encoder._blocks.{n}" for n in (2, 4, 8, 15)],
    ),
    "timm encoder inside smp": (
        lambda: smp.Unet("tu-resnet18", encoder_weights=None),
        [f"encoder.model.layer{n}" for n in (1, 2, 3, 4)],
    ),
}


@pytest.mark.parametrize("case", sorted(STAGES))
def test_stage_ends_come_from_the_library_where_it_knows_them(case: str) -> None:
    make, expected = STAGES[case]
    sites = tp.sites(make().eval(), EXAMPLE).with_role("stage")
    assert [(site.path, site.stage, site.source) for site in sites] == [
        (path, number, "metadata") for number, path in enumerate(expected, start=1)
    ]


def test_the_stages_of_dilated_blocks_are_counted_by_the_names() -> None:
    model = torchvision.models.segmentation.deeplabv3_resnet50(weights_backbone=None)
    blocks = tp.sites(model.eval(), EXAMPLE).with_role("block")
    assert [site.stage for site in blocks] == [1] * 3 + [2] * 4 + [3] * 6 + [4] * 3
    assert {site.source for site in blocks} == {"trace"}


def test_yolo_ends_its_backbone_where_its_yaml_says() -> None:
    from ultralytics.nn.tasks import DetectionModel

    model = DetectionModel("yolov8n.yaml", verbose=False)
    ends = [(site.path, site.source) for site in tp.sites(model, EXAMPLE).with_role("backbone_end")]
    assert ends == [("model.9", "metadata")]


def small() -> nn.Module:
    return build_model("torchplug:resnet8", in_channels=1)


def test_what_the_user_says_goes_before_everything() -> None:
    model = small()
    assert {site.source for site in tp.sites(model, SMALL)} == {"trace"}
    model.torchplug_roles = {"stage": ["layer2"], "merge": ["layer1.bn1"]}  # type: ignore[assignment]
    sites = tp.sites(model, SMALL)
    said = [(site.id, site.stage) for site in sites if site.source == "user"]
    assert said == [("stage:layer2", 1), ("merge:layer1.bn1", 1)]
    assert tp.plug(model, "se", "merge", example=SMALL).paths == ("layer1.bn1",)


def test_what_the_user_says_of_a_part_goes_before_the_library() -> None:
    model = timm.create_model("resnet18")
    model.layer2.torchplug_roles = {"stage": ["0"]}
    stages = tp.sites(model, EXAMPLE).with_role("stage")
    assert [(site.path, site.source) for site in stages] == [("layer2.0", "user")]


def test_a_library_of_the_users_own_can_be_registered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metadata, "_READERS", dict(metadata._READERS))
    metadata.register_reader(
        "torchplug", lambda module: {"stage": ["layer3"]} if hasattr(module, "layer3") else {}
    )
    stages = tp.sites(small(), SMALL).with_role("stage")
    assert [(site.path, site.source) for site in stages] == [("layer3", "metadata")]


@pytest.mark.parametrize(
    ("said", "text"),
    [
        ({"stages": ["layer1"]}, "did you mean 'stage'"),
        ({"stage": ["layre1"]}, "did you mean 'layer1'"),
        ({"stage": ["fc"]}, "runs and returns one map"),
    ],
)
def test_a_wrong_table_of_the_user_is_an_error(said: dict[str, list[str]], text: str) -> None:
    model = small()
    model.torchplug_roles = said  # type: ignore[assignment]
    with pytest.raises(tp.PlugError, match=text):
        tp.sites(model, SMALL)


def test_a_module_that_does_not_run_is_left_out_of_metadata() -> None:
    model = smp.PSPNet("resnet18", encoder_weights=None)
    stages = tp.sites(model.eval(), EXAMPLE).with_role("stage")
    assert [site.path for site in stages] == ["encoder.layer1", "encoder.layer2"]


# ---------------------------------------------------------------------- examples of every form


class Detector(nn.Module):
    """Takes a list of images and a mapping, returns a list of dicts, as detectors do."""

    def __init__(self) -> None:
        super().__init__()
        self.body = small()

    def forward(self, images: list[torch.Tensor], *, scale: float = 1.0) -> list[dict[str, Any]]:
        scores = self.body(torch.stack(images)) * scale
        return [{"scores": row, "label": int(row.argmax())} for row in scores]


def test_a_list_of_images_and_keyword_arguments_are_an_example() -> None:
    images = [torch.rand(1, 8, 8), torch.rand(1, 8, 8)]
    model = Detector()
    expected = [site.id.replace(":", ":body.") for site in tp.sites(small(), SMALL)]
    examples: list[Any] = [
        (images,),
        {"images": images},
        ((images,), {"scale": 2.0}),
        ((), {"images": images}),
    ]
    for example in examples:
        assert [site.id for site in tp.sites(model, example)] == expected
    report = tp.plug(model, "se", example=((images,), {"scale": 2.0}))
    assert report.max_difference == 0
    assert len(report.paths) == 3


def test_outputs_that_are_dataclasses_are_compared() -> None:
    from transformers import ResNetConfig, ResNetForImageClassification

    config = ResNetConfig(depths=[1, 1, 1, 1], hidden_sizes=[16, 16, 32, 32], embedding_size=16)
    model = ResNetForImageClassification(config).eval()
    example = {"pixel_values": torch.rand(1, 3, 64, 64)}
    assert tp.plug(model, "se", example=example).max_difference == 0
    tp.unplug(model)
    with pytest.raises(tp.PlugError, match="must equal the base's"):
        tp.plug(model, Liar, "bottleneck", example=example)


class Liar(nn.Module):
    identity_at_start = True

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.full((channels, 1, 1), 1.5))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * self.scale


def test_tensors_in_a_plain_dataclass_are_found() -> None:
    import dataclasses

    from torchplug.surgery.trace import tensors_in

    @dataclasses.dataclass
    class Output:
        scores: torch.Tensor
        boxes: list[torch.Tensor]
        name: str = ""

    one, two = torch.zeros(1), torch.ones(1)
    assert [t.item() for t in tensors_in((Output(one, [two]),))] == [0.0, 1.0]
