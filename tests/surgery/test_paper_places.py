"""The places that modules take by themselves are those of their papers, and make their networks."""

from typing import Any

import pytest
import timm
import torch
import torchvision
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


def test_norms_left_behind_are_named_with_the_way_to_rest_them() -> None:
    model = torchvision.models.resnet18().eval()
    report = tp.plug(model, "acnet", example=EXAMPLE, start="paper")
    [note] = report.notes
    assert note.startswith("16 of 16 modules bring a norm of their own, and the host's still runs")
    call = "plug(model, nn.Identity, 'layer1.0.bn1', mode='replace', start='paper', example=…)"
    assert note in str(report)
    assert note.endswith(call)
    assert count_learning(model) == 19_028_520 + 7_680

    norms = ["layer?.*.bn1", "layer?.*.bn2"]
    second = tp.plug(model, nn.Identity, norms, mode="replace", start="paper", example=EXAMPLE)
    assert (len(second.paths), second.idle_parameters) == (16, 7_680)
    assert count_learning(model) == 19_028_520  # the published count
    x = torch.randn(EXAMPLE)
    expected = model(x)
    tp.merge_plugs(model)
    torch.testing.assert_close(model(x), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("key", "options"),
    [
        ("acnet", {"start": "identity"}),  # the host's kernel and norm are the square ones
        ("acnet", {"start": "paper", "norm_layer": nn.Identity}),
        ("dwconv", {"start": "paper"}),  # built without the last norm
    ],
)
def test_nothing_is_said_of_a_norm_that_the_module_does_not_bring(key: str, options: Any) -> None:
    report = tp.plug(torchvision.models.resnet18(), key, example=EXAMPLE, **options)
    assert report.notes == ()


@pytest.mark.parametrize("key", ["sk", "splat"])
def test_norms_behind_modules_with_norm_and_activation_are_named(key: str) -> None:
    model = timm.create_model("resnet26d", zero_init_last=False)
    report = tp.plug(model, key, example=EXAMPLE, start="paper")
    assert "8 of 8 modules" in report.notes[0]
    assert "such as layer1.0.bn2" in report.notes[0]
    behind = ["layer?.*.bn2", "layer?.*.act2"]
    tp.plug(model, nn.Identity, behind, mode="replace", start="paper", example=EXAMPLE)
    again = tp.plug(model, "se", example=EXAMPLE, start="paper")
    assert again.notes == ()
