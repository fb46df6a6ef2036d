"""Small networks for small images: the default hosts of a comparison, one for each task."""

from typing import Any

import torch
from torch import Tensor, nn

from torchplug.errors import import_extra


class BasicBlock(nn.Module):
    """Two 3x3 convolutions around a shortcut (He et al., arXiv 1512.03385, figure 2)."""

    def __init__(self, in_channels: int, out_channels: int, *, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(out_channels)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(out_channels)
        self.relu = nn.ReLU(inplace=True)
        self.downsample: nn.Module = nn.Identity()
        if stride != 1 or in_channels != out_channels:
            projection = nn.Conv2d(in_channels, out_channels, 1, stride, bias=False)
            self.downsample = nn.Sequential(projection, nn.BatchNorm2d(out_channels))

    def forward(self, x: Tensor) -> Tensor:
        """Return ``relu(branch(x) + shortcut(x))``."""
        out = self.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        return self.relu(out + self.downsample(x))


class ResNet8(nn.Module):
    """The CIFAR layout of He et al. (section 4.2) with one block a stage: 16, 32, 64 channels.

    Args:
        num_classes: scores.
        in_channels: of images.
        stem_stride: 1 as in the paper; 2 halves all maps.

    Shape:
        ``(N, in_channels, H, W) -> (N, num_classes)``.

    >>> import torch
    >>> ResNet8(num_classes=10, in_channels=1)(torch.randn(2, 1, 8, 8)).shape
    torch.Size([2, 10])
    """

    def __init__(
        self, *, num_classes: int = 10, in_channels: int = 3, stem_stride: int = 1
    ) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, 16, 3, stem_stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        self.relu = nn.ReLU(inplace=True)
        self.layer1 = BasicBlock(16, 16, stride=1)
        self.layer2 = BasicBlock(16, 32, stride=2)
        self.layer3 = BasicBlock(32, 64, stride=2)
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(64, num_classes)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw convolutions as He et al. (arXiv 1502.01852) for ReLU networks."""
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, x: Tensor) -> Tensor:
        """Return the class scores."""
        x = self.relu(self.bn1(self.conv1(x)))
        x = self.layer3(self.layer2(self.layer1(x)))
        return self.fc(self.avgpool(x).flatten(1))


class DecoderBlock(nn.Module):
    """Enlarge twice, join the encoder's map if there is one, and convolve twice."""

    def __init__(self, in_channels: int, skip_channels: int, out_channels: int) -> None:
        super().__init__()
        self.upsample = nn.Upsample(scale_factor=2, mode="nearest")
        joined = in_channels + skip_channels
        self.conv1 = nn.Conv2d(joined, out_channels, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(out_channels)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(out_channels)
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x: Tensor, skip: Tensor | None = None) -> Tensor:
        """Return a map of twice the size."""
        x = self.upsample(x)
        if skip is not None:
            x = torch.cat([x, skip], dim=1)
        x = self.relu(self.bn1(self.conv1(x)))
        return self.relu(self.bn2(self.conv2(x)))


class UNet8(nn.Module):
    """A U-Net (Ronneberger et al., arXiv 1505.04597) on the stages of :class:`ResNet8`.

    The stem halves the image; the last block of the decoder, without a map to join, doubles it.

    Shape:
        ``(N, in_channels, H, W) -> (N, num_classes, H, W)``; H and W are multiples of 8.

    >>> import torch
    >>> UNet8(num_classes=11, in_channels=1)(torch.randn(2, 1, 48, 48)).shape
    torch.Size([2, 11, 48, 48])
    """

    def __init__(self, *, num_classes: int = 11, in_channels: int = 3) -> None:
        super().__init__()
        trunk = ResNet8(in_channels=in_channels, stem_stride=2)
        self.conv1, self.bn1, self.relu = trunk.conv1, trunk.bn1, trunk.relu
        self.layer1, self.layer2, self.layer3 = trunk.layer1, trunk.layer2, trunk.layer3
        self.up1 = DecoderBlock(64, 32, 32)
        self.up2 = DecoderBlock(32, 16, 16)
        self.up3 = DecoderBlock(16, 0, 16)
        self.head = nn.Conv2d(16, num_classes, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Return the scores of each pixel."""
        first = self.layer1(self.relu(self.bn1(self.conv1(x))))
        second = self.layer2(first)
        x = self.up1(self.layer3(second), second)
        return self.head(self.up3(self.up2(x, first)))


def make_fcos8(*, num_classes: int = 11, in_channels: int = 3, **options: Any) -> nn.Module:
    """Return torchvision's FCOS (Tian et al., arXiv 1904.01355) on :class:`ResNet8` with an FPN.

    Two levels of strides 4 and 8 and 32 channels, with two convolutions in each head. Images are
    taken at the size they have.

    Args:
        num_classes: with the background, which is label 0.
        in_channels: of images in [0, 1].
        options: of ``torchvision.models.detection.FCOS``.

    >>> model = make_fcos8(num_classes=11, in_channels=1).eval()
    >>> sorted(model(torch.rand(1, 1, 48, 48))[0])
    ['boxes', 'labels', 'scores']
    """
    detection = import_extra(
        "torchvision.models.detection", extra="models", purpose="torchplug:fcos8"
    )
    fcos = import_extra("torchvision.models.detection.fcos", extra="models", purpose="fcos8")
    pyramid = detection.backbone_utils.BackboneWithFPN(
        ResNet8(in_channels=in_channels, stem_stride=2),
        return_layers={"layer2": "0", "layer3": "1"},
        in_channels_list=[32, 64],
        out_channels=32,
    )
    pyramid.fpn.extra_blocks = None  # torchvision adds a level of its own
    anchors = detection.anchor_utils.AnchorGenerator(
        sizes=((2,), (4,)), aspect_ratios=((1.0,),) * 2
    )
    settings = {
        "anchor_generator": anchors,
        "head": fcos.FCOSHead(32, 1, num_classes, num_convs=2),
        "image_mean": [0.5] * in_channels,
        "image_std": [0.25] * in_channels,
        "score_thresh": 0.05,
        "detections_per_img": 50,
        "topk_candidates": 200,
        "size_divisible": 8,
    }
    model: nn.Module = detection.FCOS(pyramid, num_classes, **settings | options)
    model.transform.resize = _keep_size  # type: ignore[method-assign]
    return model


def _keep_size(image: Tensor, target: Any = None) -> tuple[Tensor, Any]:
    """Stands in for torchvision's, which enlarges images to 800 pixels."""
    return image, target


MODELS: dict[str, Any] = {"resnet8": ResNet8, "unet8": UNet8, "fcos8": make_fcos8}
