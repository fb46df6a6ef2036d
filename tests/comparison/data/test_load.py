"""A name finds its reader, or an error that says what is near."""

import pytest

import torchplug as tp
from torchplug.comparison.data import load_data


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("digit", "did you mean 'digits'"),
        ("hdfs/somewhere", "did you mean 'hfds'"),
        ("hfds/nowhere", "hfds/PATH is on this machine: got 'nowhere'"),
        ("tfds/mnist", "one of folder/…, torch/….*; did you mean 'hfds' or 'wds'"),
        ("cifar11:root", "did you mean 'cifar10:ROOT'"),
        ("torch/cifar11:root", "did you mean 'cifar10'"),
        ("torch/cifar10", "after a colon: torch/cifar10:path/to/root"),
        ("cifar10:/nowhere", "must lie under its root as torchvision unpacks it"),
        ("src/nowhere", "which is no folder; give a path that exists"),
    ],
)
def test_an_unknown_name_is_told_what_is_near(name: str, words: str) -> None:
    with pytest.raises(tp.UsageError, match=words):
        load_data(name)


def test_wrong_settings_are_refused() -> None:
    with pytest.raises(tp.UsageError, match="did you mean 'segmentation'"):
        load_data("digits", task="segmentaton")  # type: ignore[arg-type]
    with pytest.raises(tp.UsageError, match="image_size is above 0: got 0"):
        load_data("digits", image_size=0)
