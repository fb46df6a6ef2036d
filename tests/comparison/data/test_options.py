"""An option that a kind of data does not have is named, whoever reads the data."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.data import TensorDataset

from torchplug.comparison.data import load_data
from torchplug.comparison.inputs import read_data
from torchplug.comparison.spec import Comparison, Variant
from torchplug.errors import UsageError

NAMES = ("digits", "{}", "folder/{}", "torch/cifar10:{}", "hfds/{}", "wds/{}", "voc/{}", "yolo/{}",
         "coco/{}")  # fmt: skip


@pytest.mark.parametrize("name", NAMES)
def test_readers_of_files_name_the_nearest_option(name: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"options of data are .*'clases'; did you mean 'classes'"):
        load_data(name.format(tmp_path), options={"clases": 3})


def read(data: Any, **options: Any) -> Any:
    variants = (Variant.parse("se"),)
    return read_data(
        data,
        Comparison(
            model="m", data="d", variants=variants, seeds=(0, 1), data_options=dict(options)
        ),
    )


def test_data_in_memory_name_the_option_that_they_do_not_have() -> None:
    images = torch.zeros(20, 1, 8, 8, dtype=torch.uint8)
    own = TensorDataset(images, torch.arange(20) % 2)
    assert read((own, own), classes=2).classes == ("0", "1")
    for data in ((own, own), (own, own, own)):
        with pytest.raises(UsageError, match=r"but classes: got 'clases'; did you mean 'classes'"):
            read(data, classes=2, clases=3)
    with pytest.raises(UsageError, match=r"TaskData .* got 'group'; leave data_options out"):
        read(load_data("digits"), group="patient")


@pytest.mark.parametrize("classes", [2.5, "cat"])
def test_classes_are_names_or_a_number(classes: Any) -> None:
    with pytest.raises(UsageError, match="classes are a list of names"):
        load_data("digits", options={"classes": classes})
