"""Weights that all arms start from."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

import torchplug as tp
from tests.comparison.training.conftest import make_study
from torchplug.comparison.trial import train_base
from torchplug.comparison.weights import load_base, read_weights
from torchplug.hosts import build_model


def make(classes: int = 10) -> nn.Module:
    return build_model("torchplug:resnet8", num_classes=classes, in_channels=1)


def same(one: nn.Module, two: nn.Module, but: tuple[str, ...] = ()) -> bool:
    others = two.state_dict()
    return all(
        torch.equal(value, others[name])
        for name, value in one.state_dict().items()
        if name not in but
    )


@pytest.mark.parametrize("form", ["plain", "lightning", "compiled", "safetensors"])
def test_checkpoints_of_all_kinds_are_loaded(form: str, tmp_path: Path) -> None:
    source, target = make(), make()
    weights, path = source.state_dict(), tmp_path / "w.pt"
    if form == "safetensors":
        path = tmp_path / "w.safetensors"
        save_file(weights, path)
    elif form == "plain":
        torch.save(weights, path)
    else:
        prefix = {"lightning": "model.", "compiled": "module._orig_mod."}[form]
        torch.save({"state_dict": {prefix + k: v for k, v in weights.items()}, "epoch": 3}, path)
    assert not same(source, target)
    assert load_base(target, path) == ()
    assert same(source, target)


def test_a_head_for_other_classes_keeps_its_start(tmp_path: Path) -> None:
    source, target, fresh = make(1000), make(), make()
    fresh.load_state_dict(target.state_dict())
    head = ("fc.weight", "fc.bias")
    assert load_base(target, source.state_dict()) == head
    assert same(target, fresh) is False
    assert torch.equal(target.fc.weight, fresh.fc.weight)
    assert all(
        torch.equal(value, source.state_dict()[name])
        for name, value in target.state_dict().items()
        if name not in head
    )


def test_other_weights_are_refused_and_nothing_is_changed(tmp_path: Path) -> None:
    target, before = make(), make()
    before.load_state_dict(target.state_dict())
    color = build_model("torchplug:resnet8", num_classes=10, in_channels=3).state_dict()
    with pytest.raises(tp.UsageError, match=r"\(16, 3, 3, 3\) for conv1.weight"):
        load_base(target, color)
    with pytest.raises(tp.UsageError, match=r"no bn1.bias.* in the checkpoint, no x in the model"):
        load_base(target, {"x": torch.zeros(1)})
    assert same(target, before)


def test_what_is_no_checkpoint_is_refused(tmp_path: Path) -> None:
    bad = tmp_path / "bad.pt"
    torch.save(make(), bad)  # a pickled model: reading it would run code
    for path, error in ((bad, "UnpicklingError"), (tmp_path / "none.pt", "FileNotFoundError")):
        with pytest.raises(tp.UsageError, match=f"'scratch', 'trained' or the path.*{error}"):
            read_weights(path)
    (tmp_path / "bad.safetensors").write_bytes(b"x" * 100)
    with pytest.raises(tp.UsageError, match="read safely"):
        read_weights(tmp_path / "bad.safetensors")
    torch.save({"epoch": 3}, bad)
    with pytest.raises(tp.UsageError, match="holds weights by name"):
        read_weights(bad)


def test_a_base_is_trained_once_with_a_stream_of_its_own(tmp_path: Path) -> None:
    study = make_study(epochs=1, comparison={"base": "trained"})
    path = train_base(study, tmp_path)
    content = path.read_bytes()
    assert load_base(study.make_model(), path) == ()
    assert train_base(study, tmp_path) == path
    assert path.read_bytes() == content
    again = train_base(study, tmp_path / "again")
    weights, others = read_weights(path), read_weights(again)
    assert all(torch.equal(value, others[name]) for name, value in weights.items())
    diverging = make_study(learning_rate=1e30, schedule="constant")
    with pytest.raises(tp.UsageError, match="diverged after epoch 0"):
        train_base(diverging, tmp_path / "diverged")
    assert not (tmp_path / "diverged/base.pt").exists()
