"""Models are built by name, with random weights."""

from pathlib import Path

import pytest
import torch
import torchvision

import torchplug as tp
from torchplug.hosts import build_model


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        ("torchplug:resnet8", (1, 3, 8, 8)),
        ("torchvision:resnet18", (1, 3, 32, 32)),
        ("timm:resnet10t", (1, 3, 32, 32)),
    ],
)
def test_classifiers_take_the_number_of_classes(name: str, shape: tuple[int, ...]) -> None:
    model = build_model(name, num_classes=7, in_channels=3).eval()
    assert model(torch.rand(shape)).shape == (1, 7)


def test_segmentation_models_need_no_download() -> None:
    model = build_model("smp:Unet", num_classes=2, in_channels=1)
    assert model.eval()(torch.rand(1, 1, 64, 64)).shape == (1, 2, 64, 64)
    assert len(tp.sites(build_model("smp:Unet"), (1, 3, 64, 64)).with_role("bottleneck")) == 16


def test_torchvision_detectors_and_segmenters_need_no_download() -> None:
    assert type(build_model("torchvision:fcn_resnet50")).__name__ == "FCN"


def test_functions_of_modules_and_files_are_called(tmp_path: Path) -> None:
    assert isinstance(build_model("torchvision.models:alexnet"), torchvision.models.AlexNet)
    file = tmp_path / "net.py"
    file.write_text(
        "from torch import nn\ndef make(num_classes):\n    return nn.Linear(2, num_classes)"
    )
    assert build_model(f"{file}:make", num_classes=5, in_channels=1).out_features == 5


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("torchvision:resnet", "did you mean 'resnet"),
        ("timm:zzzzzz", "none of a similar name"),
        ("smp:UNet", "did you mean 'Unet'"),
        ("torchvison:resnet18", "did you mean 'torchvision'"),
        ("resnet18", "named by its source"),
        ("net.txt:make", "must be importable"),
        ("torchvision.models:nothing_here", "must define the maker"),
    ],
)
def test_unknown_models_are_refused(name: str, text: str) -> None:
    with pytest.raises(tp.UsageError, match=text):
        build_model(name)


def test_a_maker_that_fails_is_named_with_its_arguments() -> None:
    with pytest.raises(tp.UsageError, match=r"TypeError: .*wings.*wings=2"):
        build_model("torchplug:resnet8", options={"wings": 2})
