"""The places that modules take by themselves are those of their papers, and make their networks."""

import pytest
import timm
from torch import nn

import torchplug as tp

EXAMPLE = (2, 3, 33, 33)
STEM = ("conv1.0", "conv1.3", "conv1.6")


def count_learning(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters() if p.requires_grad)


def test_split_attention_by_itself_makes_resnest50() -> None:
    model = timm.create_model("resnet50d", zero_init_last=False)
    report = tp.plug(model, "splat", example=EXAMPLE, start="paper", downsample="pool_after")
    assert len(report.paths) == 16
    assert all(path.startswith("layer") for path in report.paths)
    assert dict(report.skipped) == dict.fromkeys(STEM, "its paper keeps the stem")

    behind = ["layer?.*.bn2", "layer?.*.act2"]
    tp.plug(model, nn.Identity, behind, mode="replace", start="paper", example=EXAMPLE)
    wanted = timm.create_model("resnest50d")
    assert count_learning(model) == count_learning(wanted) == 27_483_240


# sk and splat rewrite blocks, dwconv keeps what sees the image, acnet takes every square kernel
@pytest.mark.parametrize(
    ("key", "kept"), [("sk", STEM), ("splat", STEM), ("dwconv", STEM[:1]), ("acnet", ())]
)
def test_a_deep_stem_is_rewritten_only_by_papers_that_do(key: str, kept: tuple[str, ...]) -> None:
    report = tp.plug(timm.create_model("resnet26d"), key, example=EXAMPLE)
    assert tuple(path for path, _ in report.skipped) == kept
    assert report.paths[: 3 - len(kept)] == STEM[len(kept) :]
    assert len(report.paths) == 8 + 3 - len(kept)


def test_without_blocks_the_stem_is_the_first_convolution() -> None:
    model = nn.Sequential(nn.Conv2d(4, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 8, 3, padding=1))
    report = tp.plug(model, "splat", example=(2, 4, 9, 9))
    assert report.skipped == (("0", "its paper keeps the stem"),)
    assert report.paths == ("2",)


def test_a_stem_can_be_named() -> None:
    model = timm.create_model("resnet26d")
    assert tp.plug(model, "sk", list(STEM), example=EXAMPLE).paths == STEM
