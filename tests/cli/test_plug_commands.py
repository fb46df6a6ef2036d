"""Plug and check, run as a user runs them."""

import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

import torchplug as tp
from tests.cli.test_commands import run
from torchplug.cli import plug as commands
from torchplug.cli.app import app
from torchplug.hosts import build_model

MODEL = "torchplug:resnet8"
SHAPE = ("--shape", "1,3,32,32")


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    """The base's weights, as a training script leaves them."""
    torch.save(build_model(MODEL).state_dict(), tmp_path / "base.pt")
    return tmp_path / "base.pt"


def test_plug_writes_what_check_finds(weights: Path, tmp_path: Path) -> None:
    words = ("plug", MODEL, *SHAPE, "--plug", "se:reduction=4", "--plug", "cbam@stage")
    words += ("--stages", "2,3", "--start", "identity", "--weights", str(weights))
    done = run(*words, "--save", "plugs.safetensors", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "plugged se into ResNet8 at 2 places" in done.stdout
    assert "plugged cbam into ResNet8 at 2 places" in done.stdout
    assert done.stdout.count("identical to the base") == 2
    size = (tmp_path / "plugs.safetensors").stat().st_size
    assert f"saved plugs.safetensors ({size:,} bytes)" in done.stdout

    words = ("check", MODEL, "plugs.safetensors", *SHAPE, "--weights", str(weights))
    done = run(*words, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "loaded cbam, se into ResNet8 at 4 places" in done.stdout
    assert "the same as when saved" in done.stdout
    assert "every plug runs" in done.stdout
    rows = [line.split() for line in done.stdout.splitlines()[-4:]]
    assert ["layer2.bn2", "se", "se", "32", "identity", "reduction=4"] in rows

    assert "random weights" not in done.stdout
    done = run("check", MODEL, "plugs.safetensors", *SHAPE, cwd=tmp_path)
    assert "other than when saved" in done.stdout  # as the base was built anew, which is said
    assert "has random weights, so other ones are expected; pass --weights" in done.stdout
    assert not done.stderr

    model = build_model(MODEL)
    tp.load(model, tmp_path / "plugs.safetensors", example=(1, 3, 32, 32))
    assert {name for _, name, _ in tp.find_plugs(model)} == {"se", "cbam"}


def test_a_place_of_its_own_comes_before_the_common_one(tmp_path: Path) -> None:
    words = ("plug", MODEL, *SHAPE, "--plug", "se", "--plug", "cbam@layer1", "--at", "layer2")
    done = run(*words, "--save", "x.safetensors", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    places = {name.partition(".torchplug.")[0] for name in load_file(tmp_path / "x.safetensors")}
    assert places == {"layer1", "layer2"}


def test_base_weights_of_safetensors_are_read(tmp_path: Path) -> None:
    save_file(build_model(MODEL).state_dict(), tmp_path / "base.safetensors")
    done = run(
        *("plug", MODEL, *SHAPE, "--plug", "se", "--weights", "base.safetensors"), cwd=tmp_path
    )
    assert done.returncode == 0, done.stderr


def test_plug_draws_the_plugged_model(tmp_path: Path) -> None:
    done = run("plug", MODEL, *SHAPE, "--plug", "se", "--draw", "model.svg", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    text = (tmp_path / "model.svg").read_text()
    assert text.lstrip().startswith(("<svg", "<?xml"))
    assert "+ shortcut" in text  # the shape is known, so the model is drawn as it runs


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (("--plug", "se@"), "write cbam or cbam@stage"),
        (("--plug", "se", "--stages", "two"), "stages is a list of numbers"),
        (("--plug", "se", "--start", "zero"), "'identity' or 'paper'"),
        (("--plug", "se", "--weights", "nothing.pt"), "the weights nothing.pt must be readable"),
        (("--plug", "se", "--weights", "other.pt"), "other.pt must fit torchplug:resnet8"),
        (("--plug", "se", "--plug", "gc@layer9"), "got 'layer9', which matches none"),
        (("--plug", "se", "--save", "missing/x.safetensors"), "must be writable: got no folder"),
        (("--plug", "se", "--save", "."), "must be writable: got a folder"),
        (("--plug", "se", "--draw", "missing/x.svg"), "must be writable: got no folder"),
        (("--plug", "se", "--draw", "other.pt/x.svg"), "must be writable: got no folder"),
        (("--plug", "se", "--draw", "x.safetensors"), "write a file each"),
        (("--plug", "se", "--draw", "x.png"), "a drawing is an SVG file"),
    ],
)
def test_bad_requests_are_one_line_and_write_nothing(
    words: tuple[str, ...], text: str, tmp_path: Path
) -> None:
    torch.save({"conv.weight": torch.zeros(1)}, tmp_path / "other.pt")
    save = () if "--save" in words else ("--save", "x.safetensors")
    shape = () if "--shape" in words else SHAPE
    done = run("plug", MODEL, *shape, *words, *save, cwd=tmp_path)
    assert done.returncode == 2
    assert text in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert not done.stdout  # nothing was plugged for nothing
    assert [path.name for path in tmp_path.iterdir()] == ["other.pt"]


@pytest.mark.parametrize(
    "late", [["--save", "x.safetensors"], ["--draw", "missing/x.svg"], ["--draw", "x.png"]]
)
def test_what_cannot_be_written_is_said_before_a_model_is_built(
    late: list[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def build(*_: object, **__: object) -> None:
        pytest.fail("a model was built")

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(commands, "build_model", build)
    monkeypatch.setitem(sys.modules, "safetensors.torch", None)  # as if it were not installed
    result = CliRunner().invoke(app, ["plug", MODEL, *SHAPE, "--plug", "se", *late])
    wanted = tp.MissingExtra if "--save" in late else tp.UsageError
    assert isinstance(result.exception, wanted)
    assert "pip install '.[files]'" in str(result.exception) or "--draw" in late
    assert not list(tmp_path.iterdir())


def test_check_of_a_wrong_file_is_one_line_and_status_1(tmp_path: Path) -> None:
    model = build_model(MODEL)
    tp.plug(model, "se", example=(1, 3, 32, 32))
    good = tp.save(model, tmp_path / "good.safetensors")
    (tmp_path / "half.safetensors").write_bytes(good.read_bytes()[:-4])
    cases = {
        (MODEL, "half.safetensors"): "the tensors need",
        (MODEL, "nothing.safetensors"): "must be readable",
        ("torchvision:resnet18", "good.safetensors"): "the file is for a ResNet8",
    }
    for (name, file), text in cases.items():
        done = run("check", name, file, *SHAPE, cwd=tmp_path)
        assert done.returncode == 1
        assert text in done.stderr
        assert len(done.stderr.splitlines()) == 1
        assert not done.stdout
    done = run("check", MODEL, "good.safetensors", "--shape", "1,5,32,32", cwd=tmp_path)
    assert done.returncode == 1
    assert "the model must run on the example" in done.stderr
    assert run("check", "torchplug:resnet9", "good.safetensors", cwd=tmp_path).returncode == 2
