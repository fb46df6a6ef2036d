"""Sharing plugs: a local folder needs no network, a repository is spoken to over HTTP."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torchvision
from torch import nn

import torchplug as tp
from tests.surgery.hub_server import COMMIT, Hub
from tests.surgery.plug_files import snapshot

EXAMPLE = (1, 3, 64, 64)


@pytest.fixture(scope="module")
def plugged() -> nn.Module:
    model = torchvision.models.resnet18().eval()
    tp.plug(model, "se", example=EXAMPLE, start="paper", reduction=8)
    tp.plug(model, "cbam", "layer4", example=EXAMPLE, pools=("avg",))
    return model


def base_of(model: nn.Module) -> dict[str, torch.Tensor]:
    return {n: v for n, v in model.state_dict().items() if ".torchplug." not in n}


def test_a_folder_holds_plugs_and_a_card_and_gives_them_back(
    plugged: nn.Module, tmp_path: Path
) -> None:
    folder = tmp_path / "deep" / "se"
    assert tp.push_to_hub(plugged, folder) == str(folder)
    assert {path.name for path in folder.iterdir()} == {"plugs.safetensors", "README.md"}
    fresh = torchvision.models.resnet18().eval()
    fresh.load_state_dict(base_of(plugged))
    report = tp.load_from_hub(fresh, str(folder), example=EXAMPLE)
    assert report.same_base
    x = torch.randn(1, 3, 64, 64)
    assert torch.equal(fresh(x), plugged(x))


def test_the_card_tells_what_is_plugged_where(plugged: nn.Module, tmp_path: Path) -> None:
    tp.push_to_hub(plugged, tmp_path)
    card = (tmp_path / "README.md").read_text()
    assert card.startswith("---\nlibrary_name: torchplug\ntags:\n- torchplug\n- cbam\n- se\n---\n")
    assert "# cbam, se for ResNet" in card
    assert "| `layer1.0.bn2` | `se` | 64 | paper | `reduction=8` |" in card
    assert "| `layer4.1` | `cbam` | 512 | identity | `pools=['avg']` |" in card
    numbers = sum(p.numel() for _, _, plug in tp.find_plugs(plugged) for p in plug.parameters())
    assert f"9 plugs with {numbers:,} parameters" in card


def test_a_card_that_was_edited_is_kept(plugged: nn.Module, tmp_path: Path) -> None:
    (tmp_path / "README.md").write_text("mine")
    tp.push_to_hub(plugged, tmp_path)
    assert (tmp_path / "README.md").read_text() == "mine"
    assert (tmp_path / "plugs.safetensors").exists()


class Own(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(channels, 1, 1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * self.scale


def test_the_card_of_a_module_of_ones_own_says_what_to_give(tmp_path: Path) -> None:
    model = torchvision.models.resnet18()
    tp.plug(model, Own, "layer1", example=EXAMPLE)
    tp.push_to_hub(model, tmp_path)
    name = f"{Own.__module__}:Own"
    assert f"factories={{'{name}': …}}" in (tmp_path / "README.md").read_text()
    tp.load_from_hub(torchvision.models.resnet18(), tmp_path, factories={name: Own})


def test_nothing_is_left_of_a_push_that_fails(tmp_path: Path) -> None:
    with pytest.raises(tp.PlugError, match="plug something first"):
        tp.push_to_hub(torchvision.models.resnet18(), tmp_path / "new")
    assert not list(tmp_path.iterdir())
    (tmp_path / "file").write_text("")
    model = torchvision.models.resnet18()
    tp.plug(model, "se", example=EXAMPLE)
    with pytest.raises(tp.UsageError, match="must be writable"):
        tp.push_to_hub(model, tmp_path / "file")


def test_a_folder_without_plugs_is_refused(tmp_path: Path) -> None:
    model = torchvision.models.resnet18()
    before = snapshot(model)
    with pytest.raises(tp.UsageError, match="a file of plugs must be readable"):
        tp.load_from_hub(model, tmp_path)
    assert snapshot(model) == before


def speak(code: str, address: str, home: Path) -> subprocess.CompletedProcess[str]:
    """Run code whose Hub is at ``address``; the client reads that when it is imported."""
    start = (
        "import sys, torch, torchplug as tp\n"
        "from torchplug.hosts import build_model\n"
        "model = build_model('torchplug:resnet8')\n"
    )
    environment = {
        **os.environ,
        "HF_ENDPOINT": address,
        "HF_HOME": str(home),
        "HF_TOKEN": "hf_of_nobody",
        "HF_HUB_DISABLE_XET": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
    }
    return subprocess.run(
        [sys.executable, "-c", start + code],
        capture_output=True,
        text=True,
        check=False,
        cwd=home,
        env=environment,
    )


def test_a_repository_is_made_filled_and_read(tmp_path: Path) -> None:
    push = (
        "tp.plug(model, 'se', example=(1, 3, 32, 32))\n"
        "print(tp.push_to_hub(model, 'someone/plugs', private=True))\n"
        "print(tp.push_to_hub(model, 'someone/plugs', message='again'))\n"
    )
    with Hub() as hub:
        done = speak(push, hub.address, tmp_path)
        assert done.returncode == 0, done.stderr
        assert done.stdout.split() == [f"{hub.address}/someone/plugs/commit/{COMMIT}"] * 2
        asked = hub.repositories["someone/plugs"]
        assert asked.get("private") is True or asked.get("visibility") == "private"
        assert set(hub.files) == {"someone/plugs/plugs.safetensors", "someone/plugs/README.md"}

        hub.files["someone/plugs/README.md"] = b"edited"
        assert speak(push, hub.address, tmp_path).returncode == 0
        assert hub.files["someone/plugs/README.md"] == b"edited"

        pull = "print(len(tp.load_from_hub(model, 'someone/plugs', example=(1, 3, 32, 32)).paths))"
        done = speak(pull, hub.address, tmp_path)
        assert done.stdout.split() == ["3"], done.stderr

        done = speak("tp.load_from_hub(model, 'someone/else')", hub.address, tmp_path)
        assert "UsageError: the Hub must give access to someone/else: got RepositoryNotFound" in (
            done.stderr
        )
