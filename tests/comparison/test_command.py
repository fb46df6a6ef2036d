"""Programs of the user's own as trials: what they are told, and how they fail."""

import dataclasses
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from torchplug.comparison.command import (
    check_command,
    hash_command,
    run_command_trial,
    write_plan,
)
from torchplug.comparison.metricfile import MetricError, MetricPlace, read_curve, read_metric
from torchplug.comparison.outcome import Outcome
from torchplug.comparison.spec import Comparison, Variant
from torchplug.errors import UsageError
from torchplug.programs.request_plan import RequestPlan

COMMAND = "{python} train.py --seed {seed} --plan {plan} --out {out}"

RECEIPT = """
import json, pathlib, sys
words = dict(zip(sys.argv[1::2], sys.argv[2::2]))
plan, out = pathlib.Path(words["--plan"]), pathlib.Path(words["--out"])
def apply(base="w", **more):  # what torchplug.apply_plan leaves, without importing torch
    content = json.loads(plan.read_text())
    receipt = {"base_weights": base, "parameters": {"base": 7, "modules": 1, "gates": 0},
               "seed": content["seed"], "flops": [8, 9], **more}
    receipt["plan"] = {"format": 1, "host": "Net", "plugs": [], "seed": content["seed"]}
    plan.with_suffix(".applied.json").write_text(json.dumps(receipt))
"""


def make(command: str = COMMAND, metric: str = "{out}/metrics.json:map50") -> Comparison:
    return Comparison(
        model="command",
        data="command",
        variants=(Variant.parse("se@stage"),),
        seeds=(3, 4),
        command=command,
        metric="map50",
        metric_file=metric,
    )


def run(
    tmp_path: Path, script: str, comparison: Comparison | None = None, arm: int = 1, seed: int = 3
) -> tuple[Outcome, Path]:
    (tmp_path / "train.py").write_text(RECEIPT + script)
    comparison = comparison or make(COMMAND.replace("train.py", f"{tmp_path}/train.py"))
    study: Any = SimpleNamespace(comparison=comparison, data=None)
    folder = tmp_path / "a trial's folder"
    return run_command_trial(study, comparison.arms[arm], seed, folder), folder


def test_a_script_gets_seed_plan_and_folder_and_its_metric_is_the_value(tmp_path: Path) -> None:
    script = """
apply()
print("seed", words["--seed"], json.loads(plan.read_text())["requests"][0]["module"])
(out / "metrics.json").write_text(json.dumps({"map50": 0.25}))
"""
    outcome, folder = run(tmp_path, script)
    record = outcome.record
    assert (record["status"], record["value"], record["metrics"]) == (
        "finished",
        0.25,
        {"map50": 0.25},
    )
    assert record["parameters"] == {"base": 7, "modules": 1, "gates": 0}
    assert record["base_weights"] == "w"
    assert (folder / "logs" / "stdout.txt").read_text() == "seed 3 se\n"
    assert json.dumps(record) == json.dumps(run(tmp_path, script)[0].record)
    assert outcome.timing["seconds"] > 0
    assert not {"process.json"} & {path.name for path in folder.iterdir()}


def test_the_baseline_gets_an_empty_plan_and_the_second_one_fresh_seeds(tmp_path: Path) -> None:
    script = """
apply()
(out / "metrics.json").write_text(json.dumps({"map50": int(words["--seed"])}))
"""
    baseline, folder = run(tmp_path, script, arm=0)
    assert RequestPlan.from_json((folder / "plan.json").read_text()).requests == ()
    again, _ = run(tmp_path, script, arm=-1)
    assert baseline.record["value"] == 3
    assert again.record["value"] not in {3, 4}
    assert again.record["control"] == "again"


def test_plans_of_one_seed_share_the_stream_of_the_modules(tmp_path: Path) -> None:
    first, second = Variant.parse("se"), Variant.parse("se + cbam@stage")
    seeds = []
    for variant, seed in ((first, 3), (second, 3), (first, 4)):
        write_plan(variant, seed, tmp_path / "plan.json")
        seeds.append(RequestPlan.from_json((tmp_path / "plan.json").read_text()).seed)
    assert seeds[0] == seeds[1] != seeds[2]


WRITE = "(out / 'metrics.json').write_text({!r})"


@pytest.mark.parametrize(
    ("script", "status", "says"),
    [
        ("raise SystemExit(3)", "failed", "exit code 3 (nothing on stderr)"),
        ("raise ValueError('no data here')", "failed", "ValueError: no data here"),
        ("import os; os.kill(os.getpid(), 9)", "failed", "signal SIGKILL"),
        ("pass", "failed", "add torchplug.apply_plan(model, plan)"),
        ("apply(trained=False)", "failed", "got plugs whose weights did not change"),
        ("apply()", "failed", "the program leaves {out}/metrics.json: got no such file"),
        ("apply();" + WRITE.format('{"map5": 1}'), "failed", "did you mean 'map5'?"),
        ("apply();" + WRITE.format("{"), "failed", "{out}/metrics.json is JSON"),
        ("apply();" + WRITE.format('{"map50": "x"}'), "failed", "is a number: got 'x'"),
        ("apply();" + WRITE.format('{"map50": NaN}'), "diverged", "map50 is nan"),
        ("apply();" + WRITE.format('{"map50": Infinity}'), "diverged", "map50 is inf"),
    ],
)
def test_each_way_to_fail_is_a_record_that_says_so(
    script: str, status: str, says: str, tmp_path: Path
) -> None:
    record = run(tmp_path, script)[0].record
    assert record["status"] == status
    assert says in record["error"]
    assert record["value"] is None
    assert str(tmp_path) not in record["error"]


def test_arms_of_one_seed_that_start_from_other_weights_are_found(tmp_path: Path) -> None:
    script = """
apply(base=str(out.parent.name == "second"))
(out / "metrics.json").write_text(json.dumps({"map50": 1}))
"""
    (tmp_path / "train.py").write_text(RECEIPT + script)
    comparison = make(COMMAND.replace("train.py", f"{tmp_path}/train.py"))
    study: Any = SimpleNamespace(comparison=comparison, data=None)
    baseline, variant, again = comparison.arms
    for arm, seed, name, status in (
        (baseline, 3, "a/first", "finished"),
        (variant, 3, "b/second", "finished"),
        (again, 3, "a/second", "finished"),  # other seeds: another base
        (baseline, 4, "a/second2", "finished"),
        (variant, 3, "a/second", "failed"),
    ):
        outcome = run_command_trial(study, arm, seed, tmp_path / name)
        assert outcome.record["status"] == status, (name, outcome.record["error"])
    assert "seed every generator with {seed}" in outcome.record["error"]


def test_results_of_an_interrupted_trial_do_not_count(tmp_path: Path) -> None:
    good = "apply();" + WRITE.format('{"map50": 1}')
    assert run(tmp_path, good)[0].record["status"] == "finished"
    assert "no such file" in run(tmp_path, "apply()")[0].record["error"]
    assert "apply_plan" in run(tmp_path, WRITE.format('{"map50": 1}'))[0].record["error"]


def test_words_stay_whole_and_no_shell_reads_them(tmp_path: Path) -> None:
    name = "a b; touch owned $(touch owned)"
    comparison = make(f"{{python}} '{tmp_path}/train.py' --seed {{seed}} --plan {{plan}} --out "
                      "{out} --name {variant} --json '{{seed}}'")  # fmt: skip
    named = Variant(name=name, plugs=comparison.variants[0].plugs)
    comparison = dataclasses.replace(comparison, variants=(named,))
    check_command(comparison)
    script = """
apply()
(out / "metrics.json").write_text(json.dumps({"map50": 1}))
(out / "words.json").write_text(json.dumps(words))
"""
    _, folder = run(tmp_path, script, comparison)
    words = json.loads((folder / "out" / "words.json").read_text())
    assert words["--name"] == name
    assert words["--json"] == "{seed}"
    assert not Path("owned").exists()


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"command": COMMAND + " {sed}"}, "did you mean 'seed'?"),
        ({"command": "python train.py --plan {plan} --out {out}"}, "where its {seed} goes"),
        ({"command": "python train.py --seed {seed} --out {out}"}, "where its {plan} goes"),
        ({"command": "python train.py --seed {seed} --plan {plan}"}, "without {out}"),
        ({"command": "pyhton3 train.py {seed} {plan} {out}"}, "begins with a program"),
        ({"command": "python 'train.py {seed} {plan} {out}"}, "words as in a shell"),
        ({"metric_file": ""}, "a command's metric has a place"),
        ({"metric_file": "{out}/metrics.txt:map"}, "metric is FILE:KEY"),
        ({"controls": ("latency",)}, "measured and would be another one"),
        ({"base": "trained"}, "a program starts its own base"),
    ],
)
def test_a_command_that_cannot_be_a_trial_is_refused(changes: dict[str, Any], says: str) -> None:
    with pytest.raises(UsageError) as error:
        check_command(dataclasses.replace(make("python train.py {seed} {plan} {out}"), **changes))
    assert says in str(error.value)


def test_a_changed_script_is_another_comparison(tmp_path: Path) -> None:
    script = tmp_path / "train.py"
    script.write_text("1")
    command = f"python {script} --seed {{seed}}"
    first = hash_command(command)
    assert hash_command(command) == first
    script.write_text("2")
    assert hash_command(command) != first
    script.write_text("#!/bin/sh")
    first = hash_command(f"{script} {{seed}}")
    script.write_text("#!/bin/sh\n")
    assert hash_command(f"{script} {{seed}}") != first


def begin_and_wait(tmp_path: Path, script: str) -> tuple[subprocess.Popen[bytes], int]:
    """A driver whose program has begun, and the program."""
    (tmp_path / "train.py").write_text(RECEIPT + script)
    driver = f"""
from pathlib import Path
from tests.comparison.test_command import RECEIPT, make, run
run(Path({str(tmp_path)!r}), {script!r})
"""
    (tmp_path / "driver.py").write_text(driver)
    root = Path(__file__).parents[2]
    environment = {**os.environ, "PYTHONPATH": f"{root}{os.pathsep}{root / 'src'}"}
    started = subprocess.Popen([sys.executable, str(tmp_path / "driver.py")], env=environment)
    marks = tmp_path / "a trial's folder" / "out" / "marks"
    deadline = time.monotonic() + 300
    while not (marks.is_dir() and list(marks.iterdir())) and time.monotonic() < deadline:
        time.sleep(0.05)
    (program,) = (int(path.name) for path in marks.iterdir())
    return started, program


def has_ended(pid: int) -> bool:
    state = Path(f"/proc/{pid}/stat")
    return not state.exists() or state.read_text().split()[2] == "Z"


WAITING = """
import os, time
marks = out / "marks"
marks.mkdir(exist_ok=True)
(marks / str(os.getpid())).touch()
if len(list(marks.iterdir())) == 1:
    time.sleep(600)
apply()
(out / "metrics.json").write_text(json.dumps({"map50": 1}))
"""


def test_a_program_ends_when_its_driver_is_killed(tmp_path: Path) -> None:
    killed, program = begin_and_wait(tmp_path, WAITING)
    assert not has_ended(program)
    killed.kill()
    killed.wait()
    deadline = time.monotonic() + 30
    while not has_ended(program) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert has_ended(program)


def test_what_a_machine_left_behind_is_ended_before_its_trial_runs_again(tmp_path: Path) -> None:
    killed, orphan = begin_and_wait(tmp_path, WAITING)
    children = Path(f"/proc/{killed.pid}/task/{killed.pid}/children").read_text().split()
    killed.send_signal(signal.SIGSTOP)  # all that would end the program dies at once
    for guard in {*map(int, children)} - {orphan}:
        os.kill(guard, signal.SIGKILL)
    killed.kill()
    killed.wait()
    assert not has_ended(orphan)
    outcome, _ = run(tmp_path, WAITING)
    assert outcome.record["status"] == "finished"
    assert has_ended(orphan)


def test_a_program_ends_with_its_children_when_it_is_interrupted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    script = """
import subprocess, time
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
(out / "child").write_text(str(child.pid))
time.sleep(600)
"""
    child = tmp_path / "a trial's folder" / "out" / "child"

    def interrupt(*_: Any) -> None:
        if child.exists() and child.read_text():
            raise KeyboardInterrupt

    previous = signal.signal(signal.SIGALRM, interrupt)
    signal.setitimer(signal.ITIMER_REAL, 0.2, 0.1)
    try:
        with pytest.raises(KeyboardInterrupt):
            run(tmp_path, script)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, previous)
    assert has_ended(int(child.read_text()))


FILES = {
    "m.json": '{"a": {"b.c": 0.5, "d": [1, {"e": 2}]}, "map50": 3}',
    "log.json": '{"step": 1, "bbox_mAP": 0.1}\n{"step": 2, "loss": 3}\n{"bbox_mAP": 0.4}\n',
    "results.csv": (
        "   epoch,   train/box_loss,  metrics/mAP50(B)\n  1, 3.5,  0.25\n  2, 2.5,  0.75\n\n"
    ),
    "empty.csv": "epoch,x\n",
    "stdout.txt": "epoch 1 acc=3\nacc=0.5 loss=2\nfinal, acc = 0.625\nbacc=9\n",
    "20260101/x.json": '{"v": 1}',
    "20260301/x.json": '{"v": 3}',
}


@pytest.fixture
def left(tmp_path: Path) -> Path:
    for name, text in FILES.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    return tmp_path


@pytest.mark.parametrize(
    ("place", "value"),
    [
        ("{out}/m.json:map50", 3),
        ("{out}/m.json:a.b.c", 0.5),
        ("{out}/m.json:a.d.0", 1),
        ("{out}/m.json:a.d.-1.e", 2),
        ("{out}/log.json:bbox_mAP", 0.4),
        ("{out}/results.csv:metrics/mAP50(B)", 0.75),
        ("{out}/*/x.json:v", 3),
        ("stdout:acc", 0.625),
    ],
)
def test_metrics_are_read_from_what_programs_write(place: str, value: float, left: Path) -> None:
    assert read_metric(MetricPlace.parse(place), left, left / "stdout.txt") == value


@pytest.mark.parametrize(
    ("place", "says"),
    [
        ("{out}/results.csv:metrics/mAP50", "did you mean 'metrics/mAP50(B)'?"),
        ("{out}/empty.csv:x", "has rows"),
        ("{out}/m.json:a.b.d", "no such key"),
        ("{out}/m.json:a", "is a number"),
        ("{out}/*/y.json:v", "no such file"),
        ("stdout:f1", "print f1=0.5"),
    ],
)
def test_metrics_that_are_not_there_are_named(place: str, says: str, left: Path) -> None:
    with pytest.raises(MetricError) as error:
        read_metric(MetricPlace.parse(place), left, left / "stdout.txt")
    assert says in str(error.value)


def test_the_rows_of_a_csv_are_a_learning_curve(left: Path) -> None:
    assert read_curve(MetricPlace.parse("{out}/results.csv:metrics/mAP50(B)"), left) == [0.25, 0.75]
    assert read_curve(MetricPlace.parse("{out}/m.json:map50"), left) == []
