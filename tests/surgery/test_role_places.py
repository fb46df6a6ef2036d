"""Roles on networks whose form misled the detector once: each place is what its authors call so."""

from collections.abc import Callable

import pytest
import segmentation_models_pytorch as smp
import torch
import torchvision
import transformers
from torch import nn
from torch.nn import functional as F
from ultralytics.nn.tasks import RTDETRDetectionModel, SegmentationModel

import torchplug as tp
from torchplug.hosts import build_model

IMAGE = (1, 3, 64, 64)


def swin(version: int) -> nn.Module:
    kind = torchvision.models.swin_transformer
    block, merging = kind.SwinTransformerBlock, kind.PatchMerging
    if version == 2:
        block, merging = kind.SwinTransformerBlockV2, kind.PatchMergingV2
    return torchvision.models.SwinTransformer(
        patch_size=[4, 4], embed_dim=24, depths=[1, 1, 2, 1], num_heads=[1, 2, 3, 4],
        window_size=[7, 7], block=block, downsample_layer=merging,
    )  # fmt: skip


def segformer() -> nn.Module:
    config = transformers.SegformerConfig(
        hidden_sizes=[16, 32, 48, 64], depths=[1, 1, 1, 1], decoder_hidden_size=32
    )
    return transformers.SegformerForSemanticSegmentation(config)


def mobilenet_v2() -> nn.Module:
    config = transformers.MobileNetV2Config(depth_multiplier=0.35)
    return transformers.MobileNetV2ForImageClassification(config)


def sm(name: str, depth: int = 5) -> nn.Module:
    return getattr(smp, name)("resnet18", encoder_depth=depth, encoder_weights=None)


def lraspp() -> nn.Module:
    make = torchvision.models.segmentation.lraspp_mobilenet_v3_large
    return make(weights=None, weights_backbone=None, num_classes=2)


def double(before: int, after: int, padding: int = 1) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(before, after, 3, padding=padding),
        nn.ReLU(inplace=True),
        nn.Conv2d(after, after, 3, padding=padding),
        nn.ReLU(inplace=True),
    )


class PaperUNet(nn.Module):
    """U-Net as in its paper: convolutions without padding, skips cut to size."""

    def __init__(self) -> None:
        super().__init__()
        self.down1, self.down2 = double(3, 4, 0), double(4, 8, 0)
        self.bottom = double(8, 16, 0)
        self.up2, self.up1 = nn.ConvTranspose2d(16, 8, 2, 2), nn.ConvTranspose2d(8, 4, 2, 2)
        self.refine2, self.refine1 = double(16, 8, 0), double(8, 4, 0)
        self.head = nn.Conv2d(4, 2, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        high = self.down1(x)
        low = self.down2(F.max_pool2d(high, 2))
        x = self.up2(self.bottom(F.max_pool2d(low, 2)))
        x = self.up1(self.refine2(torch.cat([self.cut(low, x), x], 1)))
        return self.head(self.refine1(torch.cat([self.cut(high, x), x], 1)))

    @staticmethod
    def cut(skip: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        margin = (skip.shape[2] - x.shape[2]) // 2
        return skip[:, :, margin : margin + x.shape[2], margin : margin + x.shape[3]]


class Residual(nn.Module):
    """A block with a projection."""

    def __init__(self, before: int, after: int, stride: int) -> None:
        super().__init__()
        self.branch = double(before, after)
        self.branch[0].stride = (stride, stride)
        self.shortcut = nn.Conv2d(before, after, 1, stride)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.branch(x) + self.shortcut(x)


class BridgedUNet(nn.Module):
    """Residual blocks going down, a plain bridge at the bottom."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two, self.three = Residual(3, 4, 1), Residual(4, 8, 2), Residual(8, 16, 2)
        self.bridge, self.refine = double(16, 16), double(24, 8)
        self.head = nn.Conv2d(8, 2, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        high = self.two(self.one(x))
        low = F.interpolate(self.bridge(self.three(high)), scale_factor=2.0)
        return self.head(self.refine(torch.cat([high, low], 1)))


class Scores(nn.Module):
    """A fully convolutional head behind blocks: its scores are only resized."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = Residual(3, 4, 2), Residual(4, 8, 2)
        self.head = nn.Sequential(nn.Conv2d(8, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 2, 1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.interpolate(self.head(self.two(self.one(x))), scale_factor=4.0)


class Pyramid(nn.Module):
    """A feature pyramid by hand, without residual blocks: the projections are the neck's own."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two, self.three = double(3, 4), double(4, 8), double(8, 16)
        self.side2, self.side3 = nn.Conv2d(8, 6, 1), nn.Conv2d(16, 6, 1)
        self.smooth = nn.Conv2d(6, 6, 3, padding=1)

    def forward(self, x: torch.Tensor) -> list[torch.Tensor]:
        middle = self.two(F.max_pool2d(self.one(x), 2))
        top = self.side3(self.three(F.max_pool2d(middle, 2)))
        return [self.smooth(self.side2(middle) + F.interpolate(top, scale_factor=2.0)), top]


def numbered(pattern: str, *numbers: int) -> list[str]:
    return [pattern.format(number) for number in numbers]


Expected = dict[str, list[str]]
CASES: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...], Expected]] = {
    "swin": (
        lambda: swin(1),
        IMAGE,
        {"stage": ["features.1", "features.3", "features.5", "permute"]},
    ),
    "swin v2": (
        lambda: swin(2),
        IMAGE,
        {"stage": ["features.1", "features.3", "features.5", "permute"]},
    ),
    "segformer": (
        segformer,
        IMAGE,
        {
            "stage": numbered("segformer.stages.{}", 0, 1, 2, 3),
            "backbone_end": ["segformer.stages.3"],
            "pyramid": [],
        },
    ),
    "mobilenet that pads by itself": (
        mobilenet_v2,
        IMAGE,
        {
            "stage": [*numbered("mobilenet_v2.layer.{}", 1, 4, 11), "mobilenet_v2.conv_1x1"],
            "backbone_end": ["mobilenet_v2.conv_1x1"],
        },
    ),
    "lraspp": (
        lraspp,
        (1, 3, 96, 96),
        {"backbone_end": ["backbone.16"], "merge": ["classifier"], "pyramid": []},
    ),
    "manet": (
        lambda: sm("MAnet"),
        IMAGE,
        {
            "backbone_end": ["encoder.layer4"],
            "merge": numbered("decoder.blocks.{}!cat#0", 0, 1, 2, 3),
            "pyramid": ["decoder.blocks.0.hl_conv", *numbered("decoder.blocks.{}", 0, 1, 2, 3)],
        },
    ),
    "pan": (
        lambda: sm("PAN"),
        (1, 3, 128, 128),
        {"pyramid": ["decoder.fpa", "decoder.gau2", "decoder.gau1"]},
    ),
    "upernet": (
        lambda: sm("UPerNet"),
        IMAGE,
        {"pyramid": ["decoder.psp", *numbered("decoder.fpn_lateral_blocks.{}", 0, 1, 2)]},
    ),
    "unet++": (
        lambda: sm("UnetPlusPlus"),
        IMAGE,
        {"pyramid": numbered("decoder.blocks.x_0_{}", 0, 1, 2, 3)},
    ),
    "yolo that segments": (
        lambda: SegmentationModel("yolov8n-seg.yaml", nc=2, verbose=False),
        IMAGE,
        {"pyramid": numbered("model.{}", 15, 18, 21)},
    ),
    "rtdetr": (
        lambda: RTDETRDetectionModel("rtdetr-resnet50.yaml", nc=2, verbose=False),
        (1, 3, 96, 96),
        {
            "upsample": ["model.8", "model.13"],
            "merge": ["model.10", "model.15"],
            "pyramid": numbered("model.{}", 16, 19, 22),
        },
    ),
    "our unet": (
        lambda: build_model("torchplug:unet8", num_classes=2, in_channels=3),
        (1, 3, 32, 32),
        {
            "backbone_end": ["layer3"],
            "upsample": numbered("up{}.upsample", 1, 2, 3),
            "merge": numbered("up{}!cat#0", 1, 2),
            "block": [*numbered("layer{}", 1, 2, 3), *numbered("up{}", 1, 2, 3)],
        },
    ),
    "unet of the paper": (
        PaperUNet,
        (1, 3, 92, 92),
        {
            "block": ["down1", "down2", "bottom", "refine2", "refine1"],
            "stage": ["down1", "down2", "bottom"],
            "backbone_end": ["bottom"],
            "upsample": ["up2", "up1"],
            "merge": ["!cat#0", "!cat#1"],
            "pyramid": ["refine2", "refine1"],
        },
    ),
    "unet with a bridge": (BridgedUNet, IMAGE, {"backbone_end": ["bridge"]}),
    "scores only": (Scores, IMAGE, {"backbone_end": ["two"], "upsample": []}),
    "scores without blocks": (
        lambda: nn.Sequential(
            double(3, 4),
            nn.MaxPool2d(2),
            double(4, 8),
            nn.Conv2d(8, 2, 1),
            nn.Upsample(scale_factor=2),
        ),
        IMAGE,
        {"backbone_end": [], "upsample": []},
    ),
    "pyramid by hand": (
        Pyramid,
        IMAGE,
        {"backbone_end": ["three"], "stage": ["one", "two", "three"]},
    ),
}


@pytest.mark.parametrize("name", sorted(CASES))
def test_each_role_is_where_a_reader_of_the_network_would_put_it(name: str) -> None:
    torch.manual_seed(0)
    make, example, expected = CASES[name]
    sites = tp.sites(make().eval(), example)
    found = {role: [site.path for site in sites.with_role(role)] for role in expected}
    assert found == expected


@pytest.mark.parametrize("name", ["unet of the paper", "swin"])
def test_a_context_module_goes_to_the_deepest_map_and_keeps_the_output(name: str) -> None:
    torch.manual_seed(0)
    make, example, _ = CASES[name]
    model = make().eval()
    x = torch.rand(example)
    with torch.no_grad():
        expected = model(x)
        report = tp.plug(model, "aspp", example=example)
        assert report.paths == tuple(
            site.anchor for site in tp.sites(make(), example).with_role("backbone_end")
        )
        assert torch.equal(model(x), expected)


@pytest.mark.parametrize("make", [PaperUNet, BridgedUNet])
def test_a_plugged_unet_shows_the_same_places_for_the_next_plug(
    make: Callable[[], nn.Module],
) -> None:
    torch.manual_seed(0)
    model, example = make().eval(), (1, 3, 92, 92)
    bare = [site.id for site in tp.sites(model, example)]
    wanted = (("acnet", None, {}), ("scse", "block", {"reduction": 2}), ("aspp", None, {}))
    for key, at, options in wanted:
        assert tp.plug(model, key, at, example=example, **options).paths
        assert [site.id for site in tp.sites(model, example)] == bare, key
