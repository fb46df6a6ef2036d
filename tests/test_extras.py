"""A missing optional package gives one error that names the extra."""

import subprocess
import sys
from pathlib import Path

import pytest

CASES = {
    "typer": ("from torchplug.cli import main; main()", ".[cli]"),
    "scipy": ("import torchplug; torchplug.compare", ".[compare]"),
    "filelock": ("import torchplug.comparison", ".[compare]"),
    "matplotlib": ("import torchplug.reporting", ".[report]"),
    "safetensors": (
        "import torchplug as tp; from torchplug.hosts import build_model; "
        "model = build_model('torchplug:resnet8'); tp.plug(model, 'se', example=(1, 3, 16, 16)); "
        "tp.save(model, 'never-written')",
        ".[files]",
    ),
    "huggingface_hub": (
        "import torch, torchplug as tp; tp.load_from_hub(torch.nn.Identity(), 'a/b')",
        ".[hub]",
    ),
    "timm": (
        "from torchplug.hosts import build_model; build_model('timm:resnet10t')",
        ".[models]",
    ),
}


@pytest.mark.parametrize("package", sorted(CASES))
def test_a_missing_package_names_its_extra(package: str) -> None:
    code, extra = CASES[package]
    hide = f"import sys; sys.modules[{package!r}] = None; "
    command = [sys.executable, "-c", hide + code]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode != 0
    assert f"needs {package}" in done.stderr
    assert f"install it from the clone of torchplug: pip install '{extra}'" in done.stderr


def test_the_readme_installs_extras_as_the_error_says() -> None:
    for name in ("README.md", "README.zh-CN.md"):
        text = Path(__file__).parents[1].joinpath(name).read_text("utf-8")
        assert "pip install '.[cli,compare]'" in text
