"""Specifications are data: parsed, written, read back, compared."""

import json
from pathlib import Path

import pytest
import torch

import torchplug as tp
from torchplug.comparison import Comparison, Recipe, Variant
from torchplug.comparison.seeds import derive_seed
from torchplug.comparison.spec import find_differences


def make(**changes: object) -> Comparison:
    settings = {"model": "m", "data": "digits", "variants": (Variant.parse("se"),), "seeds": (0, 1)}
    return Comparison(**{**settings, **changes})


@pytest.mark.parametrize(
    ("text", "module", "at", "options"),
    [
        ("se", "se", None, {}),
        ("cbam@stage", "cbam", "stage", {}),
        ("cbam@layer?.*.bn2", "cbam", "layer?.*.bn2", {}),
        ("se@re:layer[12].*", "se", "re:layer[12].*", {}),
        ("se:reduction=4,bias=False", "se", None, {"reduction": 4, "bias": False}),
        ("scse@block:fusion=add", "scse", "block", {"fusion": "add"}),
        ("cbam:pools=('avg','max')", "cbam", None, {"pools": ("avg", "max")}),
    ],
)
def test_variants_are_read_from_text(
    text: str, module: str, at: str | None, options: dict[str, object]
) -> None:
    variant = Variant.parse(text)
    (plug,) = variant.plugs
    assert (plug.module, plug.at, dict(plug.options)) == (module, at, options)
    assert "/" not in variant.slug
    assert ":" not in variant.slug


@pytest.mark.parametrize("text", ["se@", "se:4=2", "se:reduction=1+", "se:reduction=open('x')"])
def test_text_that_is_no_variant_is_refused(text: str) -> None:
    with pytest.raises(tp.UsageError):
        Variant.parse(text)


def test_a_specification_survives_its_file() -> None:
    comparison = make(margin=0.3, recipe=Recipe(epochs=3))
    again = Comparison.from_dict(json.loads(comparison.to_json()))
    assert again.to_json() == comparison.to_json()
    assert again == comparison


def test_a_trial_is_known_by_what_decides_it_and_nothing_else() -> None:
    variant = Variant.parse("se")
    digest = make().digest(variant, 0)
    same = make(seeds=(0, 1, 2), margin=1.0, variants=(variant, Variant.parse("gc")))
    assert same.digest(variant, 0) == digest
    for other in (make(data="x"), make(model="n"), make(recipe=Recipe(epochs=1))):
        assert other.digest(variant, 0) != digest
    assert make().digest(variant, 1) != digest
    assert make().digest(Variant.parse("se@stage"), 0) != digest


def test_differences_name_their_place() -> None:
    old, new = {"a": {"b": 1}, "c": [1]}, {"a": {"b": 2}, "c": [1]}
    assert find_differences(old, new) == ["a.b: 1 -> 2"]


def test_seeds_do_not_depend_on_the_process() -> None:
    assert derive_seed("base", 0) == 3678013647500740608
    assert len({derive_seed(p, s) for p in ("base", "order") for s in range(50)}) == 100


def test_a_recipe_is_read_from_toml(tmp_path: Path) -> None:
    path = tmp_path / "recipe.toml"
    path.write_text('epochs = 3\noptimizer = "adamw"\nlearning_rate = 1e-3\n')
    assert Recipe.load(path) == Recipe(epochs=3, optimizer="adamw", learning_rate=1e-3)


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("epoch = 3", "did you mean 'epochs'"),
        ("epochs = 0", "a whole number from 1"),
        ("epochs = 1.5", "a whole number from 1"),
        ('optimizer = "adam"', "optimizer is one of 'sgd', 'adamw'"),
        ("learning_rate = -1", "learning_rate is above 0"),
        ("epochs: 3", "must be a TOML file"),
    ],
)
def test_an_impossible_recipe_is_refused(text: str, error: str, tmp_path: Path) -> None:
    path = tmp_path / "recipe.toml"
    path.write_text(text)
    with pytest.raises(tp.UsageError, match=error):
        Recipe.load(path)


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
@pytest.mark.parametrize("schedule", ["onecycle", "cosine", "constant"])
def test_every_optimizer_and_schedule_takes_its_steps(optimizer: str, schedule: str) -> None:
    recipe = Recipe(optimizer=optimizer, schedule=schedule, learning_rate=0.1)
    weight = torch.nn.Parameter(torch.ones(1))
    steps = recipe.make_optimizer([weight])
    rates = recipe.make_schedule(steps, 10)
    seen = []
    for _ in range(10):
        weight.square().sum().backward()
        seen.append(steps.param_groups[0]["lr"])
        steps.step()
        rates.step()
    assert max(seen) == pytest.approx(0.1, rel=0.05)
    assert (seen[-1] < 0.05) == (schedule != "constant")
    assert weight.item() != 1
