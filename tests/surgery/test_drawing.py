"""A drawing shows every block and every plug at its place, and is valid whatever the names."""

import copy
import itertools
from pathlib import Path
from xml.etree import ElementTree

import pytest
import timm
import torch
import torchvision
from torch import Tensor, nn
from ultralytics import YOLO

import torchplug as tp

EXAMPLE = (1, 3, 64, 64)
SVG = "{http://www.w3.org/2000/svg}"
Texts = list[tuple[float, float, str]]


def read(svg: str) -> Texts:
    """Every text of a drawing with its place, tooltips left out."""
    root = ElementTree.fromstring(svg)
    found = []
    for element in root.iter(f"{SVG}text"):
        words = "".join(element.itertext())
        for hint in element.findall(f"{SVG}title"):
            words = words.removeprefix(hint.text)
        found.append((float(element.get("x")), float(element.get("y")), words))
    return found


def boxes(svg: str) -> list[tuple[float, float, float, float]]:
    """Left, top, right and bottom of every box of a block."""
    found = []
    for element in ElementTree.fromstring(svg).iter(f"{SVG}rect"):
        if element.get("rx") == "6":
            x, y = float(element.get("x")), float(element.get("y"))
            width, height = float(element.get("width")), float(element.get("height"))
            found.append((x, y, x + width, y + height))
    return found


def block(svg: str, path: str) -> list[str]:
    """The texts of one block from top to bottom."""
    (x, y), *_ = [(x, y) for x, y, text in read(svg) if text == path]
    (box,) = [box for box in boxes(svg) if box[0] < x < box[2] and box[1] < y < box[3]]
    inside = [
        (texty, textx, text)
        for textx, texty, text in read(svg)
        if box[0] <= textx <= box[2] and box[1] <= texty <= box[3]
    ]
    return [text for _, _, text in sorted(inside)]


@pytest.fixture(scope="module")
def resnet() -> nn.Module:
    model = torchvision.models.resnet50()
    tp.plug(model, "se", example=EXAMPLE)
    tp.plug(model, "cbam", "stage", example=EXAMPLE)
    tp.plug(model, "nl", "layer3.4", example=EXAMPLE)
    return model


def test_plugs_stand_where_they_sit(resnet: nn.Module) -> None:
    svg = tp.draw(resnet, EXAMPLE)
    texts = [text for _, _, text in read(svg)]
    assert texts.count("se · before the add") == 16
    assert [text for text in texts if text.startswith("cbam · end")] == [
        f"cbam · end of stage {number}" for number in (1, 2, 3, 4)
    ]
    assert block(svg, "layer3.4") == [
        "layer3.4",
        "Bottleneck",
        *["conv1", "1×1 1024→256", "bn1", "BatchNorm2d", "relu ×3", "ReLU"],
        *["conv2", "3×3 256→256", "bn2", "BatchNorm2d", "conv3", "1×1 256→1024"],
        *["bn3", "BatchNorm2d", "se · before the add", "+ shortcut", "add"],
        "nl · after layer3.4",
        "1024 × 4 × 4",
    ]
    assert (
        block(svg, "layer2.0")[-9:]
        == [
            *["se · before the add", "downsample", "Sequential, on the shortcut"],
            *["0", "1×1 256→512 /2"],
            *["1", "BatchNorm2d", "+ shortcut", "add", "512 × 8 × 8"],
        ][-9:]
    )
    assert "se · 16 places · 2,531,008 parameters" in texts


def shortcuts(svg: str) -> list[list[tuple[float, float]]]:
    """The corners of every line that goes around a branch."""
    lines = ElementTree.fromstring(svg).iter(f"{SVG}polyline")
    corners = [
        [tuple(map(float, pair.split(","))) for pair in line.get("points").split()]
        for line in lines
    ]
    return [line for line in corners if len(line) == 4]


def test_shortcuts_go_around_the_branch_to_their_add(resnet: nn.Module) -> None:
    svg = tp.draw(resnet, EXAMPLE)
    texts = read(svg)
    adds = [y for _, y, text in texts if text == "+ shortcut"]
    drawn = shortcuts(svg)
    assert len(drawn) == len(adds) == 16
    for line in drawn:
        (x, top), *_, (_, bottom) = line
        assert any(abs(y - bottom) < 6 for y in adds)
        box = next(box for box in boxes(svg) if box[0] == x and box[1] < top < bottom < box[3])
        names = [y for textx, y, text in texts if text == "conv1" and box[0] < textx < box[2]]
        assert any(top < y < bottom for y in names)
    told = [text for _, _, text in texts if text.endswith("on the shortcut")]
    assert len(told) == 4  # the projections of four stages, each named once

    plain = tp.draw(resnet)
    assert not shortcuts(plain)  # what was not run is not known
    hint = "layers as they were registered; with an example: as they ran, with every add"
    assert hint in [text for _, _, text in read(plain)]
    assert hint not in [text for _, _, text in texts]


def test_a_notebook_shows_the_picture() -> None:
    svg = tp.draw(Idle())
    assert svg._repr_svg_() == svg
    assert type(svg._repr_svg_()) is str
    assert repr(svg) == f"<SVG of {len(svg):,} characters>"


def test_without_an_example_nothing_runs_and_the_plugs_are_there(resnet: nn.Module) -> None:
    model = copy.deepcopy(resnet)
    model.forward = None
    texts = [text for _, _, text in read(tp.draw(model))]
    assert texts.count("se · before the add") == 16
    assert "256 × 16 × 16" not in texts


HOSTS = {
    "resnet50": torchvision.models.resnet50,
    "efficientnet_b0": lambda: timm.create_model("efficientnet_b0"),
    "vgg11": torchvision.models.vgg11,
    "yolov8n": lambda: YOLO("yolov8n.yaml").model,
    "unet": lambda: __import__("segmentation_models_pytorch").Unet(
        "mobilenet_v2", encoder_weights=None
    ),
}


@pytest.mark.parametrize("host", sorted(HOSTS))
def test_every_layer_is_in_one_box_and_no_box_is_over_another(host: str) -> None:
    model = HOSTS[host]().eval()
    at = "stage" if host == "vgg11" else "block"
    report = tp.plug(model, "se", at, example=EXAMPLE)
    before = repr(model)
    for example in (None, EXAMPLE):
        svg = tp.draw(model, example)
        root = ElementTree.fromstring(svg)
        width, height = float(root.get("width")), float(root.get("height"))
        rectangles = boxes(svg)
        for one, two in itertools.combinations(rectangles, 2):
            apart = one[2] <= two[0] or two[2] <= one[0] or one[3] <= two[1] or two[3] <= one[1]
            assert apart, (one, two)
        assert all(x >= 0 and right <= width for x, _, right, _ in rectangles)
        assert max(bottom for *_, bottom in rectangles) <= height
        tags = [place for place in read(svg) if place[2].startswith("se · ")][1:]
        assert len(tags) == len(report.paths)
        for x, y, _ in tags:
            assert any(b[0] <= x <= b[2] and b[1] <= y <= b[3] for b in rectangles)
    assert repr(model) == before


def test_a_layer_with_many_names_ran_under_each() -> None:
    model = YOLO("yolov8n.yaml").model
    svg = tp.draw(model, EXAMPLE)
    assert "not run" not in svg
    assert block(svg, "model.3")[-3:-1] == ["act", "SiLU shared"]


class Idle(nn.Module):
    """A host with a block that never runs."""

    def __init__(self) -> None:
        super().__init__()
        self.used = nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU())
        self.idle = nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU())

    def forward(self, x: Tensor) -> Tensor:
        return self.used(x)


def test_what_never_ran_is_told() -> None:
    svg = tp.draw(Idle(), (1, 3, 4, 4))
    assert block(svg, "idle")[1] == "Sequential not run"
    assert block(svg, "used")[1] == "Sequential"
    assert "not run" not in tp.draw(Idle())


HOSTILE = ["<script>alert(1)</script>", "\"&'", "a\x00b\x1b[31m", "\u202egpj", "层" * 90]


@pytest.mark.parametrize("name", HOSTILE, ids=range(len(HOSTILE)))
def test_hostile_names_are_harmless(name: str, tmp_path: Path) -> None:
    kind = type(name.replace("\x00", ""), (nn.Sequential,), {})
    model = nn.Sequential()
    model.add_module(name, kind(nn.Conv2d(3, 8, 1), nn.ReLU()))
    tp.plug(model, lambda _: nn.Conv2d(8, 8, 1), type(model[0]), name="own", example=(1, 3, 4, 4))
    svg = tp.draw(model, (1, 3, 4, 4), path=tmp_path / "model.svg")
    root = ElementTree.fromstring((tmp_path / "model.svg").read_bytes())
    kinds = {element.tag.removeprefix(SVG) for element in root.iter()}
    assert kinds <= {"svg", "title", "style", "defs", "marker", "path", "rect", "text", "polyline"}
    assert all(mark not in svg for mark in ("\x00", "\x1b", "\u202e", "<script"))
    assert len(svg.encode()) < 10_000
    (tag,) = [text for _, _, text in read(svg) if text.startswith("own · after")]
    assert len(tag) < 60


def test_half_a_character_in_a_name_is_harmless() -> None:
    model = nn.Sequential()
    model.add_module("\ud800", nn.Conv2d(3, 8, 1))
    tp.draw(model).encode()


def test_the_file_holds_what_is_returned_and_bad_input_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "model.svg"
    model = Idle()
    assert file.write_text(tp.draw(model, path=file)) == len(file.read_text())
    assert file.read_text(encoding="utf-8") == tp.draw(model)
    with pytest.raises(tp.UsageError, match="folder that exists"):
        tp.draw(model, path=tmp_path / "none" / "model.svg")
    with pytest.raises(tp.UsageError, match="folder that exists"):
        tp.draw(model, path=tmp_path)
    with pytest.raises(tp.UsageError, match=r"is an SVG file.*x\.png'; name it x\.svg"):
        tp.draw("resnet18", path=tmp_path / "x.png")  # said before anything else is looked at
    assert [path.name for path in tmp_path.iterdir()] == ["model.svg"]
    with pytest.raises(tp.UsageError, match="nn.Module".replace(".", r"\.")):
        tp.draw("resnet18")
    with pytest.raises(tp.UsageError, match="pass the shape"):
        tp.draw(model, "image")


def test_a_wrapped_model_is_drawn_by_its_own_names() -> None:
    model = torch.compile(Idle())
    assert tp.draw(model) == tp.draw(Idle())
