"""The commands, run as a user runs them."""

import contextlib
import io
import os
import subprocess
import sys
from pathlib import Path
from unittest import mock

import pytest

from torchplug.cli import main
from torchplug.cli.console import console

TORCHPLUG = Path(sys.executable).with_name("torchplug")
WIDTH = 160


def run(*words: str, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    """Run the command's own entry here: a process for each would import torch each time."""
    out, err = io.StringIO(), io.StringIO()
    status = 0
    console.width = WIDTH
    with (
        mock.patch.object(sys, "argv", ["torchplug", *words]),
        mock.patch.dict(os.environ, {"COLUMNS": str(WIDTH)}),
        contextlib.chdir(cwd or Path.cwd()),
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
    ):
        try:
            main()
        except SystemExit as end:
            status = int(end.code or 0)
    return subprocess.CompletedProcess(words, status, out.getvalue(), err.getvalue())


def test_the_installed_command_is_this_one(tmp_path: Path) -> None:
    """A real process, with little of an environment."""
    clean = {
        "PATH": "/usr/bin:/bin",
        "HOME": "/nonexistent",
        "PYTHONPATH": os.environ.get("PYTHONPATH", ""),  # the code that is tested, not another
        "COLUMNS": str(WIDTH),
    }
    script, module = [str(TORCHPLUG)], [sys.executable, "-m", "torchplug"]
    for start, words in (
        (script, ["show", "se"]),
        (script, ["sites", "torchvision:resnet19"]),
        (module, ["show", "se"]),
    ):
        done = subprocess.run(
            [*start, *words],
            capture_output=True,
            text=True,
            cwd=tmp_path,
            check=False,
            env=clean,
        )
        here = run(*words, cwd=tmp_path)
        assert (done.returncode, done.stdout, done.stderr) == (
            here.returncode,
            here.stdout,
            here.stderr,
        )


@pytest.mark.parametrize(
    "command", ["list", "show", "sites", "plug", "check", "compare", "report", "repeat"]
)
def test_every_command_explains_itself_with_an_example(command: str) -> None:
    done = run(command, "--help")
    assert done.returncode == 0
    assert f"Example: torchplug {command}" in done.stdout


def test_list_names_every_module() -> None:
    lines = run("list").stdout.splitlines()
    assert {line.split()[0] for line in lines[1:]} >= {"se", "cbam", "gc", "bam", "nl", "scse"}


def test_show_tells_paper_place_and_cost() -> None:
    shown = run("show", "cbam").stdout
    assert "https://arxiv.org/abs/1807.06521" in shown
    assert "bottleneck" in shown
    assert [line.split()[:2] for line in shown.splitlines()[-3:]] == [
        ["64", "680"],
        ["256", "8,564"],
        ["512", "33,412"],
    ]


def test_sites_is_a_table_of_places() -> None:
    lines = run("sites", "torchvision:resnet18", "--shape", "1,3,64,64").stdout.splitlines()
    assert lines[1].split()[:2] == ["bottleneck", "layer1.0.bn2"]
    assert len(lines) == 1 + 8 + 8 + 4 + 1 + 16


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (("show", "cbma"), "did you mean 'cbam'"),
        (("show", "CBAM"), "did you mean 'cbam'"),
        (("sites", "torchvision:resnet19"), "did you mean 'resnet18'"),
        (("sites", "torchvision:resnet18", "--shape", "big"), "write it like 1,3,224,224"),
        (("sites", "torchvision:vgg11", "--role", "bottleneck"), "choose from stage"),
        (("report", "nowhere"), "a report needs the directory of a run"),
    ],
)
def test_bad_input_is_one_line_and_status_2(
    words: tuple[str, ...], text: str, tmp_path: Path
) -> None:
    done = run(*words, cwd=tmp_path)
    assert done.returncode == 2
    assert text in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert not list(tmp_path.iterdir())


def test_the_version_is_the_packages() -> None:
    from torchplug import __version__

    assert run("--version").stdout.strip() == __version__
