"""From records to rows: which seeds count, what a winner must beat, what is said of failures."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import stats

from torchplug.comparison import Comparison, ComparisonResult, Variant
from torchplug.comparison.futility import is_futile
from torchplug.comparison.planning import find_power, minimum_detectable, seeds_for
from torchplug.comparison.result import Row, summarize, to_json
from torchplug.errors import TorchplugError, UsageError

SEEDS = tuple(range(8))
BASE = [90.0, 91.0, 90.5, 89.5, 90.2, 90.8, 91.1, 90.3]


def make_record(arm: Variant, seed: int, value: float | None, **more: Any) -> dict[str, Any]:
    return {
        "variant": arm.name,
        "seed": seed,
        "status": "finished" if value is not None else "diverged",
        "value": value,
        "metrics": {"accuracy": value},
        "tested": 200,
        "base_weights": f"{arm.stream(seed)}",
        **more,
    }


def run(
    gains: dict[str, Sequence[float | None]],
    extra: Sequence[Variant] = (),
    *,
    stopped: dict[str, str] | None = None,
    changes: dict[tuple[str, int], dict[str, Any]] | None = None,
    **settings: Any,
) -> ComparisonResult:
    """Summarize made-up gains over a baseline, one list an arm."""
    names = [name for name in gains if name not in {"baseline again", *(c.name for c in extra)}]
    variants = tuple(Variant(name=name, plugs=("se",)) for name in names)
    defaults = {"model": "m", "data": "digits", "seeds": SEEDS}
    comparison = Comparison(variants=variants, **{**defaults, **settings})
    arms = (*comparison.arms, *extra)
    records = []
    for arm in arms:
        steps = gains.get(arm.name, [0.01 * (-1) ** seed for seed in SEEDS])
        steps = [0.0] * len(SEEDS) if arm.name == "baseline" else steps
        for seed, step in enumerate(steps):
            value = None if step is None else BASE[seed] + step
            record = make_record(arm, seed, value)
            records.append(record | (changes or {}).get((arm.name, seed), {}))
    return summarize(comparison, arms, records, {}, Path(), stopped=stopped)


def row_of(result: ComparisonResult, name: str) -> Row:
    return next(row for row in result.rows if row.variant == name)


UP = [0.9, 1.1, 1.0, 0.8, 1.2, 1.0, 0.9, 1.1]
SAME = [0.01, -0.02, 0.02, 0.0, -0.01, 0.01, 0.02, -0.03]


def control(kind: Any, of: str) -> Variant:
    return Variant(name=f"{kind} control of {of}", control=kind, of=of)


def test_a_winner_must_beat_its_controls() -> None:
    wider, cut = control("parameters", "se"), control("placebo", "se")
    near = [gain - 0.02 * (-1) ** seed for seed, gain in enumerate(UP)]
    alone = run({"se": UP})
    assert row_of(alone, "se").verdict.label == "better"
    assert alone.winners == ("se",)

    matched = run({"se": UP, wider.name: near, cut.name: SAME}, [wider, cut])
    verdict = row_of(matched, "se").verdict
    assert (verdict.label, verdict.wins, verdict.unbeaten) == ("undecided", True, (wider.name,))
    assert "a control may do as well: it leads the parameters control of se" in verdict.sentence
    assert matched.winners == ("se",)

    beaten = run({"se": UP, wider.name: SAME, cut.name: SAME}, [wider, cut])
    assert row_of(beaten, "se").verdict.label == "better"
    lead = row_of(beaten, wider.name).lead
    assert lead.p == pytest.approx(stats.ttest_rel(UP, SAME).pvalue)


def test_a_slower_network_is_told_and_decides_nothing() -> None:
    slow = control("latency", "se")
    result = run({"se": UP, slow.name: UP}, [slow])
    assert row_of(result, "se").verdict.label == "better"
    assert row_of(result, slow.name).lead.mean == 0.0


def test_controls_do_not_widen_the_family() -> None:
    wider = control("parameters", "se")
    one = run({"se": UP, "gc": SAME})
    two = run({"se": UP, "gc": SAME, wider.name: SAME}, [wider])
    for name in ("se", "gc"):
        assert row_of(one, name).difference == row_of(two, name).difference
    p = max(row_of(one, "se").difference.p, row_of(one, "se").difference.p_flip)
    assert row_of(one, "se").difference.p_corrected == pytest.approx(2 * p)


def test_the_baseline_again_is_judged_and_not_paired() -> None:
    result = run({"se": SAME})
    again = row_of(result, "baseline again")
    assert again.verdict.label == "equivalent"
    assert again.control == "again"
    assert result.controls == (again,)


def test_less_is_better_where_the_goal_says_so() -> None:
    down = [-gain for gain in UP]
    result = run({"se": down}, goal="min", metric="loss", margin=0.5)
    row = row_of(result, "se")
    assert row.verdict.label == "better"
    assert row.difference.mean == pytest.approx(1.0)
    assert row.mean == pytest.approx(np.mean(BASE) - 1.0)
    assert result.unit == ""
    assert "points" not in row.verdict.sentence


def test_a_metric_of_its_own_unit_has_a_margin_of_one_standard_error() -> None:
    result = run({"se": UP}, metric="test/psnr")
    assert result.margin == pytest.approx(np.std(BASE, ddof=1) / 8**0.5)
    assert run({"se": UP}).margin == pytest.approx(max(0.2, result.margin))


def test_a_variant_that_always_fails_takes_no_seed_along() -> None:
    result = run({"se": UP, "gc": [None] * 8})
    row = row_of(result, "gc")
    assert result.seeds == SEEDS
    assert (row.verdict.label, row.mean, row.values) == ("failed", None, ())
    assert row.verdict.sentence == "failed: diverged in 8 of 8 seeds"
    assert row.statuses == {"diverged": 8}
    assert row_of(result, "se").difference == row_of(run({"se": UP}), "se").difference
    assert "failed: diverged in 8 of 8 seeds" in str(result)
    assert repr(result) == str(result)  # what a cell of a notebook shows
    to_json(result)


def test_a_seed_that_fails_once_is_left_out_for_all() -> None:
    result = run({"se": [*UP[:3], None, *UP[4:]], "gc": SAME})
    assert result.dropped == {3: "se diverged"}
    assert len(row_of(result, "gc").values) == len(row_of(result, "se").values) == 7


def test_a_stopped_variant_keeps_the_seeds_it_has() -> None:
    why = {"gc": "for futility after 3 seeds"}
    result = run({"se": UP, "gc": [-1.0, -1.1, -0.9]}, stopped=why)
    row = row_of(result, "gc")
    assert (len(row.values), row.stopped) == (3, "for futility after 3 seeds")
    assert result.seeds == SEEDS
    missing = run({"se": UP, "gc": SAME[:7]})
    assert missing.dropped == {7: "gc missing"}


def test_other_base_weights_are_an_error() -> None:
    with pytest.raises(TorchplugError, match="seed 2 is not paired"):
        run({"se": UP}, changes={("se", 2): {"base_weights": "other"}})


def test_a_baseline_that_fails_is_an_error() -> None:
    failed = {("baseline", seed): {"status": "failed", "error": "boom"} for seed in range(7)}
    with pytest.raises(UsageError, match="seed 0: baseline failed boom"):
        run({"se": UP}, changes=failed)


def test_errors_and_items_give_the_wider_interval() -> None:
    wrong = {
        (name, seed): {"errors": list(range(10 if name == "baseline" else 6))}
        for name in ("baseline", "se")
        for seed in SEEDS
    }
    by_errors = row_of(run({"se": UP}, changes=wrong), "se").difference.generality
    assert by_errors.low < 100 * 4 / 200 < by_errors.high
    scores = {
        (name, seed): {"items": [50.0 + (name == "se")] * 200, "metrics": {"miou": 1.0}}
        for name in ("baseline", "se")
        for seed in SEEDS
    }
    by_items = row_of(run({"se": UP}, changes=scores), "se").difference.generality
    assert by_items.low == pytest.approx(1.0)
    assert row_of(run({"se": UP}), "se").difference.generality is None


def test_futility_is_asked_at_fixed_looks_only() -> None:
    for count in range(2, 31):
        looked = is_futile([-1.0 - 0.01 * i for i in range(count)], 0.2)
        assert looked == (count in {3, 5, 8, 10, 15, 20, 25, 30})
    gains = [0.1, -0.2, 0.05, 0.0, -0.1]
    bound = np.mean(gains) + stats.t.ppf(0.95, 4) * np.std(gains, ddof=1) / 5**0.5
    assert not is_futile(gains, bound - 1e-9)
    assert is_futile(gains, bound + 1e-9)


def test_a_plan_of_seeds_agrees_with_simulation() -> None:
    deviation, seeds = 0.4, 9
    effect = minimum_detectable(seeds, 1, deviation)
    rng = np.random.default_rng(2)
    drawn = rng.normal(effect, deviation, (4000, seeds))
    found = (stats.ttest_1samp(drawn, 0.0, axis=1).pvalue < 0.05).mean()
    assert found == pytest.approx(0.8, abs=0.025)
    assert seeds_for(effect, 1, deviation) in {seeds, seeds + 1}
    assert find_power([effect], seeds, 1, deviation)[0] == pytest.approx(0.8, abs=1e-6)
    assert seeds_for(effect, 5, deviation) > seeds
    assert seeds_for(0.2, 1, 0.0) is None
