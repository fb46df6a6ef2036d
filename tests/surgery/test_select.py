"""Places are chosen by role, id, path, glob, expression, type, predicate, scope and limits."""

import sys
from typing import Any

import pandas
import pytest
import torchvision
from torch import nn

import torchplug as tp
from torchplug.surgery.find import find_sites
from torchplug.surgery.select import select_sites

EXAMPLE = (1, 3, 64, 64)


@pytest.fixture(scope="module")
def host() -> nn.Module:
    return torchvision.models.resnet18().eval()


@pytest.fixture(scope="module")
def sites(host: nn.Module) -> tp.surgery.Sites:
    return find_sites(host, EXAMPLE)


def takes_default(site: Any, stride: int = 8) -> bool:
    return site.stride == stride and site.role == "block"


CHOICES: dict[str, tuple[Any, dict[str, Any], list[str]]] = {
    "id": ("stage:layer2", {}, ["layer2"]),
    "globs in a list": (["layer1.?.bn1", "layer4"], {}, ["layer1.0.bn1", "layer1.1.bn1", "layer4"]),
    "expression": (r"re:layer[34]\.0", {}, ["layer3.0", "layer4.0"]),
    "type": (nn.MaxPool2d, {}, ["maxpool"]),
    "path and module": (lambda path, module: path == "layer3", {}, ["layer3"]),
    "site": (lambda site: site.role == "stage" and site.stage > 2, {}, ["layer3", "layer4"]),
    "site with an option": (takes_default, {}, ["layer2.0", "layer2.1"]),
    "role in a scope": ("block", {"within": "layer3"}, ["layer3.0", "layer3.1"]),
    "role in a glob": (
        "block",
        {"within": "layer?"},
        [f"layer{stage}.{block}" for stage in (1, 2, 3, 4) for block in (0, 1)],
    ),
    "role and a limit": (
        "bottleneck",
        {"where": lambda site: site.channels > 256},
        ["layer4.0.bn2", "layer4.1.bn2"],
    ),
    "both limits": (
        "conv3x3",
        {"within": "layer2.*", "where": lambda site: site.path.endswith("conv1")},
        ["layer2.0.conv1", "layer2.1.conv1"],
    ),
}


@pytest.mark.parametrize("case", sorted(CHOICES))
def test_a_choice_names_exactly_its_sites(
    case: str, host: nn.Module, sites: tp.surgery.Sites
) -> None:
    at, limits, expected = CHOICES[case]
    assert [site.path for site in select_sites(host, sites, at, **limits)] == expected


def test_a_scope_is_a_whole_name() -> None:
    host = nn.Sequential()
    host.add_module("back", nn.Conv2d(3, 4, 3))
    host.add_module("backbone", nn.Conv2d(4, 4, 3))
    sites = find_sites(host, EXAMPLE)
    chosen = select_sites(host, sites, "conv3x3", within="back")
    assert [site.path for site in chosen] == ["back"]


ERRORS: dict[str, tuple[Any, dict[str, Any], str]] = {
    "half of a list": (["layer1", "layre2"], {}, "did you mean 'layer2'"),
    "half of a list of globs": (["layer?.0", "stage?.0"], {}, r"'stage\?\.0'"),
    "scope without a site": ("block", {"within": "head"}, "within='head' must leave"),
    "limit without a site": ("block", {"where": lambda site: False}, "where must leave"),
    "predicate without a site": (lambda site: False, {}, "which matches none"),
    "broken expression": ("re:layer(", {}, "is a regular expression"),
    "number": (3, {}, "a place is a role"),
}


@pytest.mark.parametrize("case", sorted(ERRORS))
def test_a_choice_of_nothing_says_so(case: str, host: nn.Module, sites: tp.surgery.Sites) -> None:
    at, limits, text = ERRORS[case]
    with pytest.raises(tp.PlugError, match=text):
        select_sites(host, sites, at, **limits)


def test_plug_takes_scope_and_limit() -> None:
    model = torchvision.models.resnet18()
    report = tp.plug(
        model, "se", "block", within="layer?", where=lambda site: site.stage == 3, example=EXAMPLE
    )
    assert report.paths == ("layer3.0", "layer3.1")
    with pytest.raises(tp.UsageError, match="within"):
        tp.plug(torchvision.models.resnet18(), report.plan, within="layer3", example=EXAMPLE)


def test_the_table_becomes_a_data_frame(sites: tp.surgery.Sites) -> None:
    frame = sites.to_pandas()
    assert isinstance(frame, pandas.DataFrame)
    assert len(frame) == len(sites)
    assert frame.loc["stage:layer2", ["channels", "stride", "source"]].tolist() == [
        128,
        8,
        "metadata",
    ]
    assert frame.loc["conv3x3:layer1.0.conv1", "kernel"] == "3x3"


def test_without_pandas_the_error_names_it(
    sites: tp.surgery.Sites, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(tp.MissingExtra, match="pip install pandas"):
        sites.to_pandas()
