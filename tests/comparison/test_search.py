"""The search for settings: what is drawn, who goes on, what is chosen, what is never touched."""

import json
from pathlib import Path
from typing import Any

import pytest

from torchplug.comparison import search as module
from torchplug.comparison.recipe import Recipe
from torchplug.comparison.search import Search, draw, read_search, tune
from torchplug.comparison.session import Inputs
from torchplug.comparison.spec import Comparison, Variant
from torchplug.errors import UsageError

RECIPE = Recipe(epochs=2, batch_size=256, learning_rate=0.1)


def make(**changes: Any) -> Comparison:
    fields = {
        "model": "torchplug:resnet8",
        "data": "digits",
        "variants": (Variant.parse("se"), Variant.parse("gc@stage")),
        "seeds": (0, 1),
        "recipe": RECIPE,
    }
    return Comparison(**{**fields, **changes})


def test_all_arms_draw_the_same_rates_and_only_options_that_they_have() -> None:
    search = Search(settings=5, options={"reduction": [2, 4, 8]})
    baseline, se = Variant(name="baseline"), Variant.parse("se")
    drawn = [draw(search, RECIPE, arm) for arm in (baseline, se)]
    assert [s.learning_rate for s in drawn[0]] == [s.learning_rate for s in drawn[1]]
    assert drawn[0][0].learning_rate == 0.1
    assert all(0.02 <= setting.learning_rate <= 0.5 for setting in drawn[0])
    assert all(setting.options == {} for setting in drawn[0])
    assert drawn[1][0].options == {}
    assert {s.options["reduction"] for s in drawn[1][1:]} <= {2, 4, 8}
    assert drawn[1] == draw(search, RECIPE, se)


@pytest.mark.parametrize("goal", ["max", "min"])
def test_the_best_third_goes_on_and_every_arm_gets_the_same_epochs(
    goal: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[str, float, int]] = []
    sign = 1 if goal == "max" else -1

    def advance(study: Any, arm: Variant, setting: Any, seed: int, rung: int, folder: Path) -> Any:
        asked.append((arm.name, setting.learning_rate, rung))
        # the largest rate is ahead at first and diverges later
        rate = setting.learning_rate
        if rate == max(rates) and rung > 1:
            return None
        return sign * rate

    monkeypatch.setattr(module, "_advance", advance)
    comparison = make(recipe=Recipe(epochs=9), goal=goal)
    search = Search(settings=9)
    rates = sorted(s.learning_rate for s in draw(search, comparison.recipe, comparison.arms[0]))
    study = Inputs(comparison.model, comparison).make_study()
    told: list[str] = []
    tuned = tune(study, search, tmp_path, told.append)
    for name in ("baseline", "se", "gc@stage"):
        rungs = [rung for arm, _, rung in asked if arm == name]
        assert rungs == [1] * 9 + [3] * 3 + [9]
        third = sorted(rate for arm, rate, rung in asked if arm == name and rung == 3)
        assert third == rates[-3:]
    assert tuned.recipe.learning_rate == rates[-2]
    assert (
        tuned.variants == comparison.variants
    )  # the same rate as the baseline: nothing of its own
    assert len(told) == 3
    assert "9 settings, 21 epochs" in told[0]
    assert search.count_epochs(9) == 9 * 1 + 3 * 2 + 1 * 6


def test_a_rate_of_its_own_is_kept_with_the_variant(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def advance(study: Any, arm: Variant, setting: Any, *_: Any) -> float:
        return setting.learning_rate * (-1 if arm.plugs else 1) + 0.001 * len(setting.options)

    monkeypatch.setattr(module, "_advance", advance)
    comparison = make()
    study = Inputs(comparison.model, comparison).make_study()
    search = Search(settings=3, rungs=(1,), options={"reduction": [4]})
    tuned = tune(study, search, tmp_path, lambda _: None)
    rates = [s.learning_rate for s in draw(search, RECIPE, comparison.arms[0])]
    assert tuned.recipe.learning_rate == max(rates)
    assert tuned.variants[0].details["recipe"] == {"learning_rate": min(rates)}
    assert tuned.variants[0].name == "se"
    assert json.loads((tmp_path / "search.json").read_text())["chosen"]["se"]


def test_a_search_that_was_interrupted_goes_on_and_never_tests(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import lightning.pytorch

    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("a search must not look at the test images")

    monkeypatch.setattr(lightning.pytorch.Trainer, "test", refuse)
    comparison = make(variants=(Variant.parse("se"),))
    study = Inputs(comparison.model, comparison).make_study()
    search = Search(settings=2, rungs=(1,), learning_rate=(0.05, 0.2))
    calls: list[str] = []
    real = module.run_trial

    def count(small: Any, arm: Any, seed: int, folder: Path, stop: Any) -> Any:
        calls.append(folder.name)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return real(small, arm, seed, folder, stop)

    monkeypatch.setattr(module, "run_trial", count)
    with pytest.raises(KeyboardInterrupt):
        tune(study, search, tmp_path, lambda _: None)
    tuned = tune(study, search, tmp_path, lambda _: None)
    # two settings to rung 1, one of them to rung 2, for each of two arms; one was interrupted
    assert len(calls) == 2 * 3 + 1
    assert tuned.recipe.epochs == RECIPE.epochs
    values = json.loads(next(tmp_path.glob("baseline/*/rungs.json")).read_text())
    assert all(0 <= value <= 100 for value in values.values())


@pytest.mark.parametrize(
    ("table", "says"),
    [
        ({"setting": 3}, "did you mean 'settings'?"),
        ({"settings": 0}, "settings counts from 1"),
        ({"rungs": [6, 2]}, "rungs are epochs in rising order"),
        ({"learning_rate": [1, 0.1]}, "learning_rate is a range above 0"),
        ({"options": {"reduction": 4}}, "search.options.reduction is a list"),
    ],
)
def test_a_search_that_makes_no_sense_is_refused(table: dict[str, Any], says: str) -> None:
    with pytest.raises(UsageError) as error:
        read_search({"search": table})
    assert says in str(error.value)
