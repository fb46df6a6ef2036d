"""Recipes: what they refuse, and the rates of their schedules."""

import math

import pytest
import torch

import torchplug as tp
from torchplug.comparison.recipe import Recipe


def rates(recipe: Recipe, steps: int) -> list[float]:
    weight = torch.nn.Parameter(torch.ones(1))
    optimizer = recipe.make_optimizer([weight, torch.nn.Parameter(weight, requires_grad=False)])
    assert len(optimizer.param_groups[0]["params"]) == 1
    schedule, seen = recipe.make_schedule(optimizer, steps), []
    for _ in range(steps):
        weight.sum().backward()
        seen.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    return seen


@pytest.mark.parametrize(
    ("schedule", "shape"),
    [
        ("poly", lambda done: (1 - done) ** 0.9),
        ("cosine", lambda done: (1 + math.cos(math.pi * done)) / 2),
        ("constant", lambda done: 1.0),
    ],
)
def test_a_schedule_warms_up_and_follows_its_formula(schedule: str, shape: object) -> None:
    recipe = Recipe(epochs=10, schedule=schedule, warmup_epochs=2, learning_rate=0.3)
    expected = [0.1, 0.2, *(0.3 * shape(step / 8) for step in range(8))]  # type: ignore[operator]
    assert rates(recipe, 10) == pytest.approx(expected)


def test_a_recipe_of_a_task_takes_changes() -> None:
    recipe = Recipe.for_task("detection", epochs=3)
    assert (recipe.epochs, recipe.optimizer) == (3, "adamw")
    assert Recipe.for_task("classification") == Recipe()
    assert Recipe.from_dict({"epochs": 3}, task="detection") == recipe
    with pytest.raises(tp.UsageError, match="did you mean 'detection'"):
        Recipe.for_task("detect")


@pytest.mark.parametrize(
    ("name", "value", "error"),
    [
        ("learning_rate", "0.1", "learning_rate is a number: got '0.1'"),
        ("learning_rate", float("nan"), "learning_rate is a number"),
        ("ema", 1.0, "ema is from 0 to below 1: got 1.0"),
        ("warmup_epochs", 21, "warmup_epochs is from 0 to the epochs"),
        ("workers", -1, "workers is a whole number from 0"),
        ("epochs", True, "epochs is a whole number from 1"),
        ("precision", "16", "precision is one of '32', 'bf16'"),
        ("gradient_clip", -1, "gradient_clip is 0 or above"),
    ],
)
def test_an_impossible_setting_is_refused(name: str, value: object, error: str) -> None:
    with pytest.raises(tp.UsageError, match=error):
        Recipe.from_dict({name: value})
