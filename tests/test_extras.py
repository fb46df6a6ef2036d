"""A missing optional package gives one error that names the extra."""

import subprocess
import sys

import pytest

CASES = {
    "typer": ("from torchplug.cli import main; main()", "torchplug[cli]"),
    "scipy": ("import torchplug; torchplug.compare", "torchplug[compare]"),
    "filelock": ("import torchplug.comparison", "torchplug[compare]"),
    "matplotlib": ("import torchplug.reporting", "torchplug[report]"),
    "safetensors": (
        "import torchplug as tp; from torchplug.hosts import build_model; "
        "model = build_model('torchplug:resnet8'); tp.plug(model, 'se', example=(1, 3, 16, 16)); "
        "tp.save(model, 'never-written')",
        "torchplug[files]",
    ),
    "huggingface_hub": (
        "import torch, torchplug as tp; tp.load_from_hub(torch.nn.Identity(), 'a/b')",
        "torchplug[hub]",
    ),
    "timm": (
        "from torchplug.hosts import build_model; build_model('timm:resnet10t')",
        "torchplug[models]",
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
    assert f"pip install '{extra}'" in done.stderr
