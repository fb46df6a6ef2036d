"""Controls of programs: real scripts from the plan to the report."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest

from tests.comparison.test_command import RECEIPT
from torchplug.comparison import ComparisonResult, load_run
from torchplug.comparison.controls import find_controls
from torchplug.comparison.engines import Place
from torchplug.comparison.gathering import gather
from torchplug.comparison.run import run_comparison
from torchplug.comparison.spec import Comparison, Variant
from torchplug.comparison.store import read_json
from torchplug.errors import TorchplugError, UsageError

TRAIN = """
import argparse, json, pathlib, random
import torch, torchplug
from torchplug.hosts import build_model

parser = argparse.ArgumentParser()
for name in ("--seed", "--plan", "--out"):
    parser.add_argument(name)
words = parser.parse_args()
random.seed(int(words.seed))
torch.manual_seed(int(words.seed))
model = build_model("torchplug:resnet8", num_classes=3)
report = torchplug.apply_plan(model, words.plan, (1, 3, 16, 16))
optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
for _ in range(3):
    loss = torch.nn.functional.cross_entropy(
        model(torch.randn(8, 3, 16, 16)), torch.randint(3, (8,))
    )
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
content = {"loss": float(loss), "drawn": [random.random(), float(torch.rand(1))]}
pathlib.Path(words.out, "metrics.json").write_text(json.dumps(content))
"""


def make_comparison(tmp_path: Path, script: str, *plugs: str, seeds: int = 2, **more: Any) -> Any:
    (tmp_path / "train.py").write_text(script)
    settings: dict[str, Any] = {"metric": "loss", "goal": "min", "margin": 0.001, **more}
    return Comparison(
        model="command",
        data="command",
        variants=tuple(map(Variant.parse, plugs)),
        seeds=tuple(range(seeds)),
        command=f"{{python}} '{tmp_path}/train.py' --seed {{seed}} --plan {{plan}} --out {{out}}",
        metric_file=f"{{out}}/metrics.json:{settings['metric']}",
        **settings,
    )


def list_controls(result: ComparisonResult) -> list[tuple[str | None, str]]:
    return [(row.control, row.of) for row in result.rows if row.control]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A study of a real script: one variant with both controls, another without a placebo."""
    root = tmp_path_factory.mktemp("programs")
    comparison = make_comparison(root, TRAIN, "se", "acnet", controls=("parameters", "placebo"))
    run_comparison(comparison, root / "run", Place(workers=2))
    return root / "run"


def test_a_real_script_is_controlled(trained: Path) -> None:
    run = load_run(trained)
    assert list_controls(run.result) == [
        ("again", "baseline"),
        ("parameters", "se"),
        ("placebo", "se"),
        ("parameters", "acnet"),
    ]
    rows = {row.variant: row for row in run.result.rows}
    assert all(row.statuses == {"finished": 2} for row in rows.values())
    assert run.result.seeds == (0, 1)
    assert rows["placebo control of se"].parameters == rows["se"].parameters
    assert rows["placebo control of se"].places == rows["se"].places
    widened = rows["parameters control of se"]
    assert abs(widened.parameters / rows["se"].parameters - 1) < 0.01
    assert (widened.places, widened.added > 0, widened.flops > rows["baseline"].flops) == (
        "-",
        True,
        True,
    )
    assert widened.lead is not None
    details = {arm.name: arm.details for arm in run.arms}
    assert details["placebo control of se"]["told"].startswith("SqueezeExcite: its gate is")
    assert details["parameters control of se"]["told"].startswith(f"{widened.parameters:,} param")
    assert details["parameters control of se"]["widths"]
    values = {record["variant"]: record for record in run.records if record["seed"] == 0}
    assert len({record["value"] for record in values.values()}) == len(values)
    assert len({r["base_weights"] for r in values.values() if r["control"] != "again"}) == 1
    drawn = [
        json.loads(path.read_text())["drawn"]
        for path in trained.glob("trials/*seed-0--*/out/metrics.json")
        if "again" not in path.parts[-3]
    ]
    assert len(drawn) == 6
    assert all(each == drawn[0] for each in drawn)


def test_a_control_that_a_script_cannot_make_is_missing_and_not_broken(trained: Path) -> None:
    run = load_run(trained)
    name = "placebo control of acnet"
    assert "through which the map itself passes" in run.missing[name]
    assert name not in {arm.name for arm in run.arms}
    assert not [record for record in run.records if record["variant"] == name]
    assert read_json(trained / "missing.json") == run.missing
    summary = json.loads((trained / "summary.json").read_text())
    assert [row["variant"] for row in summary["rows"]] == [row.variant for row in run.result.rows]


PRETEND = (
    RECEIPT
    + """
content = json.loads(plan.read_text())
seed, control = int(words["--seed"]), content["control"]
gain = 1.0 if content["requests"] and control is None else 0.0
{}
apply(control=control)
(out / "metrics.json").write_text(json.dumps({{"acc": 50 + gain + seed % 3 / 10 + seed % 2 / 50}}))
"""
)


def run_pretended(tmp_path: Path, also: str = "", seeds: int = 7, **more: Any) -> ComparisonResult:
    script = PRETEND.replace("{}", also, 1).replace("{{", "{").replace("}}", "}")
    settings = {"metric": "acc", "goal": "max", **more}
    comparison = make_comparison(tmp_path, script, "se", seeds=seeds, **settings)
    return run_comparison(comparison, tmp_path / "run")


def test_a_winner_gets_its_controls(tmp_path: Path) -> None:
    result = run_pretended(tmp_path)
    assert result.winners == ("se",)
    assert list_controls(result) == [
        ("again", "baseline"),
        ("parameters", "se"),
        ("placebo", "se"),
    ]
    plans = {
        path.parent.name.partition("--")[0]: json.loads(path.read_text())
        for path in tmp_path.glob("run/trials/*--seed-3--*/plan.json")
    }
    assert {name: plan["control"] for name, plan in plans.items()} == {
        "baseline": None,
        "se": None,
        "baseline%20again": None,
        "parameters%20control%20of%20se": "parameters",
        "placebo%20control%20of%20se": "placebo",
    }
    assert len({plan["seed"] for plan in plans.values()}) == 2  # the baseline again has its own
    verdict = result.variants[0].verdict
    assert verdict is not None
    assert verdict.label == "better"


@pytest.mark.parametrize(
    ("also", "statuses"),
    [
        (
            "if control == 'placebo' and seed == 1: raise SystemExit(2)",
            {"finished": 2, "failed": 1},
        ),
        ("if control == 'placebo': raise SystemExit(2)", {"failed": 3}),
        ("if control == 'placebo': apply = lambda **more: RECEIPT(base='other', **more)", None),
    ],
)
def test_a_control_that_fails_takes_nothing_along(also: str, statuses: Any, tmp_path: Path) -> None:
    also = also.replace("apply = ", "made = apply; apply = ").replace("RECEIPT(", "made(")
    result = run_pretended(tmp_path, also, seeds=3, controls=("placebo", "parameters"))
    rows = {row.variant: row for row in result.rows}
    assert result.seeds == (0, 1, 2)
    assert not result.dropped
    assert rows["placebo control of se"].statuses == (statuses or {"failed": 3})
    others = [row for name, row in rows.items() if name != "placebo control of se"]
    assert all(row.statuses == {"finished": 3} for row in others)


@pytest.mark.parametrize("then", ["", "; raise SystemExit(1)"])
def test_what_a_plan_refused_is_the_reason_whatever_the_script_does(
    then: str, tmp_path: Path
) -> None:
    refused = (
        "if control == 'placebo': plan.with_suffix('.applied.json').write_text(json.dumps("
        "{'seed': seed, 'control': control, 'refused': 'no honest one'})); apply = lambda **more: 0"
        + then
    ).replace("{", "{{").replace("}", "}}")  # fmt: skip
    result = run_pretended(tmp_path, refused, seeds=2, controls=("placebo",))
    assert list_controls(result) == [("again", "baseline")]
    assert load_run(tmp_path / "run").missing == {"placebo control of se": "no honest one"}


def test_a_node_of_its_own_may_start_a_control_from_another_base(tmp_path: Path) -> None:
    # it sees no other trial, so the driver finds it where all records are
    comparison = make_comparison(tmp_path, "", "se")
    arms = (*comparison.arms, Variant(name="p", control="placebo", of="se"))
    records = [
        {
            "variant": arm.name,
            "seed": seed,
            "status": "finished",
            "value": 1.0,
            "base_weights": "other"
            if (arm.name, seed) == ("p", 1)
            else f"{arm.control == 'again'}",
        }
        for arm in arms
        for seed in comparison.seeds
    ]
    gathered = gather(comparison, arms, records, {})
    assert gathered.seeds == (0, 1)
    assert gathered.finished("p") == [0]
    assert gathered.trials["p"][1].error == "it started from other weights of the base"
    for record in records:
        if record["variant"] == "p":
            record |= {"base_weights": "False"}
        elif record["variant"] == "se":
            record |= {"base_weights": "other"}
    with pytest.raises(TorchplugError, match="not paired"):
        gather(comparison, arms, records, {})


def test_latency_is_refused_with_the_reason(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="measured and would be another one each time"):
        run_pretended(tmp_path, controls=("latency",))
    comparison = make_comparison(tmp_path, "", "se")
    study: Any = type("S", (), {"comparison": comparison})
    (found,) = find_controls(study, comparison.variants, ["latency"])
    assert found.arm is None
    assert "measured" in found.reason
    ours = find_controls(study, comparison.variants, ["parameters"])[0].arm
    assert ours is not None
    assert Variant.from_dict(dataclasses.asdict(ours)) == ours
