"""The blocks of a decoder have the role ``block`` too: scSE goes where its paper puts it."""

from collections.abc import Callable

import pytest
import segmentation_models_pytorch as smp
import torch
import torchvision
from torch import nn
from torch.nn import functional as F

import torchplug as tp

EXAMPLE = (1, 3, 64, 64)


class Double(nn.Sequential):
    """Two convolutions, as in every U-Net."""

    def __init__(self, before: int, after: int) -> None:
        super().__init__(
            nn.Conv2d(before, after, 3, padding=1),
            nn.BatchNorm2d(after),
            nn.ReLU(inplace=True),
            nn.Conv2d(after, after, 3, padding=1),
            nn.ReLU(inplace=True),
        )


class BareUNet(nn.Module):
    """A U-Net written by hand: the model itself enlarges and concatenates."""

    def __init__(self) -> None:
        super().__init__()
        self.down = nn.ModuleList([Double(3, 8), Double(8, 16), Double(16, 32)])
        self.bottom, self.pool = Double(32, 64), nn.MaxPool2d(2)
        pairs = ((64, 32), (32, 16), (16, 8))
        self.up = nn.ModuleList([nn.ConvTranspose2d(a, b, 2, 2) for a, b in pairs])
        self.refine = nn.ModuleList([Double(a, b) for a, b in pairs])
        self.head = nn.Conv2d(8, 2, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        skips = []
        for down in self.down:
            x = down(x)
            skips.append(x)
            x = self.pool(x)
        x = self.bottom(x)
        for up, refine, skip in zip(self.up, self.refine, reversed(skips), strict=True):
            x = refine(torch.cat([skip, up(x)], 1))
        return self.head(x)


class Up(nn.Module):
    """A decoder block that enlarges, concatenates and convolves by itself."""

    def __init__(self, before: int, after: int) -> None:
        super().__init__()
        self.refine = Double(before + after, after)

    def forward(self, skip: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        return self.refine(torch.cat([skip, F.interpolate(x, scale_factor=2.0)], 1))


class UpUNet(nn.Module):
    """The same with blocks, the last of which has no skip."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, 2, 1)
        self.one, self.two, self.pool = Double(8, 16), Double(16, 32), nn.MaxPool2d(2)
        self.up, self.last = Up(32, 16), Double(16, 8)
        self.head = nn.Conv2d(8, 2, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        high = self.one(self.stem(x))
        x = self.up(high, self.two(self.pool(high)))
        return self.head(self.last(F.interpolate(x, scale_factor=2.0)))


class PooledPyramid(nn.Module):
    """A pyramid that pools and comes back to where it was: nothing is decoded."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(Double(3, 8), nn.MaxPool2d(2), Double(8, 16))
        self.reduce, self.mix, self.head = nn.Conv2d(16, 4, 1), Double(20, 16), nn.Conv2d(16, 2, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.body(x)
        pooled = F.interpolate(self.reduce(F.adaptive_avg_pool2d(x, 2)), x.shape[2:])
        return self.head(self.mix(torch.cat([x, pooled], 1)))


def sm(name: str, encoder: str = "resnet18") -> nn.Module:
    return getattr(smp, name)(encoder, encoder_weights=None, classes=2)


def levels(pattern: str, *numbers: int) -> list[str]:
    return [pattern.format(number) for number in numbers]


DENSE = ["0_0", "1_1", "2_2", "3_3", "0_1", "1_2", "2_3", "0_2", "1_3", "0_3", "0_4"]
RESNET18 = [f"encoder.layer{stage}.{block}" for stage in (1, 2, 3, 4) for block in (0, 1)]
EXPECTED: dict[str, tuple[Callable[[], nn.Module], list[str]]] = {
    "by hand": (
        BareUNet,
        [*levels("down.{}", 0, 1, 2), "bottom", *levels("refine.{}", 0, 1, 2)],
    ),
    "by hand, with blocks": (UpUNet, ["one", "two", "up", "last"]),
    "a pooled pyramid": (PooledPyramid, []),
    "Unet": (lambda: sm("Unet"), RESNET18 + levels("decoder.blocks.{}", 0, 1, 2, 3, 4)),
    "UnetPlusPlus": (
        lambda: sm("UnetPlusPlus"),
        RESNET18 + [f"decoder.blocks.x_{name}" for name in DENSE],
    ),
    "Linknet": (lambda: sm("Linknet"), RESNET18 + levels("decoder.blocks.{}", 0, 1, 2, 3, 4)),
    "FPN": (lambda: sm("FPN"), RESNET18 + levels("decoder.p{}", 4, 3, 2)),
    "DeepLabV3": (lambda: sm("DeepLabV3"), RESNET18),
    "PSPNet": (lambda: sm("PSPNet"), RESNET18[:4]),
    "a classifier": (
        torchvision.models.resnet18,
        [path.removeprefix("encoder.") for path in RESNET18],
    ),
    "a network without blocks": (torchvision.models.vgg11, []),
}


@pytest.mark.parametrize("name", sorted(EXPECTED))
def test_the_blocks_of_encoder_and_decoder_are_found(name: str) -> None:
    make, paths = EXPECTED[name]
    sites = tp.sites(make().eval(), (2, 3, 64, 64))
    assert [site.path for site in sites.with_role("block")] == paths


@pytest.mark.parametrize("name", ["by hand", "by hand, with blocks", "Unet", "UnetPlusPlus"])
def test_scse_goes_after_each_block_of_encoder_and_decoder(name: str) -> None:
    torch.manual_seed(0)
    make, paths = EXPECTED[name]
    model = make().eval()
    x = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        expected = model(x)
        report = tp.plug(model, "scse", example=EXAMPLE)
        assert torch.equal(model(x), expected)
    assert report.max_difference == 0
    # a site names the block, its plug hangs on the block's last layer
    assert len(report.paths) == len(paths)
    assert all(
        f"{got}.".startswith(f"{path}.") for got, path in zip(report.paths, paths, strict=True)
    )


def test_scse_in_a_decoder_is_where_smp_puts_its_own() -> None:
    """smp's scSE sits at the end of its decoder's blocks: ours on them must compute the same."""
    torch.manual_seed(0)
    theirs = smp.Unet("resnet18", encoder_weights=None, decoder_attention_type="scse").eval()
    ours = smp.Unet("resnet18", encoder_weights=None).eval()
    state = theirs.state_dict()
    ours.load_state_dict(state, strict=False)
    for number, block in enumerate(theirs.decoder.blocks):
        assert torch.equal(ours.decoder.blocks[number].conv1[0].weight, block.conv1[0].weight)
        block.attention1 = nn.Identity()  # theirs has a second one before the convolutions
    report = tp.plug(
        ours, "scse", "block", example=EXAMPLE, within="decoder", start="paper", reduction=16,
        fusion="add",
    )  # fmt: skip
    for path in report.paths:
        own = {
            key.removeprefix(f"{path}.attention2.attention."): value
            for key, value in state.items()
            if key.startswith(f"{path}.attention2.attention.")
        }
        plug = ours.get_submodule(f"{path}.torchplug.scse")
        plug.load_state_dict(tp.convert_state_dict(own, "scse", source="smp"))
    x = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(ours(x), theirs(x))


def test_a_block_of_a_decoder_is_not_replaced_by_default() -> None:
    """BlazeBlock stands in the place of residual blocks; a U-Net's are none."""
    with pytest.raises(tp.PlugError, match="replaces residual blocks only"):
        tp.plug(BareUNet(), "blazeblock", example=EXAMPLE)
    report = tp.plug(sm("Unet"), "blazeblock", example=EXAMPLE)
    assert all(path.startswith("encoder.") for path in report.paths)


def test_stages_of_a_module_leave_the_decoder_out() -> None:
    report = tp.plug(sm("Unet"), "nl", example=EXAMPLE)
    assert report.paths == ("encoder.layer2.1", "encoder.layer3.1")
