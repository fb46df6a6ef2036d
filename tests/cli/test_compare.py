"""Compare and report, run as a user runs them."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.cli.test_commands import TORCHPLUG
from tests.comparison.test_command import RECEIPT
from torchplug.cli import main
from torchplug.cli.console import console
from torchplug.cli.watching import follow
from torchplug.comparison.watch import RunningTrial, RunState, Watcher

STUDY = """
seeds = 2
variants = ["se", "cbam@stage"]

[model]
name = "torchplug:resnet8"

[data]
name = "digits"

[recipe]
epochs = 1
batch_size = 256
"""


class Done(NamedTuple):
    status: int
    out: str
    err: str


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path):  # type: ignore[no-untyped-def]
    """Call the command line in this process, in an empty folder."""
    monkeypatch.setenv("COLUMNS", "200")
    console.width = 200
    monkeypatch.setenv("TERM", "dumb")

    def call(*words: str, cwd: Path = tmp_path) -> Done:
        monkeypatch.chdir(cwd)
        monkeypatch.setattr(sys, "argv", ["torchplug", *words])
        with pytest.raises(SystemExit) as ended:
            main()
        captured = capsys.readouterr()
        return Done(int(ended.value.code or 0), captured.out, captured.err)

    return call


FLAGS = ("compare", "--model", "torchplug:resnet8", "--plug", "se")
COMMAND = ("compare", "--plug", "se", "--metric", "{out}/m.json:top1", "--command")


@pytest.mark.parametrize(
    ("words", "text"),
    [
        ((*FLAGS, "--seeds", "1"), "2 seeds"),
        ((*FLAGS, "--seeds", "a"), "write 5, or 3,5,8"),
        ((*FLAGS, "--task", "segment"), "did you mean 'segmentation'?"),
        ((*FLAGS, "--controls", "placebos"), "controls is a list"),
        ((*FLAGS, "--budget", "0"), "budget.hours is above 0"),
        ((*FLAGS, "--metric", "acuracy"), "did you mean 'accuracy'?"),
        ((*FLAGS, "--engine", "rya"), "did you mean 'ray'?"),
        ((*FLAGS, "--workers", "0"), "at least one process"),
        ((*FLAGS, "--engine", "pool", "--address", "auto"), "has no address"),
        ((*FLAGS, "--lang", "fr"), "a report is written in a language that it knows"),
        ((*FLAGS, "--lang", "fr", "--dry-run"), "a report is written in a language that it knows"),
        ((*FLAGS, "--recipe", "none.toml"), "none.toml must be a TOML file: got no such file"),
        ((*FLAGS, "--plug", "cbma"), "did you mean 'cbam'"),
        ((*FLAGS, "--plug", "gc@layer9"), "got 'layer9', which matches none"),
        (("compare", "--plug", "se"), "a study names its model"),
        (
            ("compare", "nothing.toml"),
            "must be a TOML file: got no such file; check its name; this",
        ),
        (("compare", "study.toml", "--plug", "se"), "a study file says what is compared"),
        (("compare", "--watch", "runs/x"), "needs the directory of a run"),
        (("compare", "--watch", "runs/x", "--plug", "se"), "--watch only looks: got --plug"),
        ((*COMMAND, "python t.py {seed} {plan}"), "without {out}"),
        ((*COMMAND, "python t.py {sed} {plan} {out}"), "did you mean 'seed'?"),
        ((*COMMAND, "python t.py {seed} {plan} {out}", "--epochs", "3"), "has its own recipe"),
        ((*FLAGS, "--metric-file", "x.json:y"), "metric_file belongs to a command"),
    ],
)
def test_bad_input_is_one_line_and_status_2(run, words, text, tmp_path) -> None:  # type: ignore[no-untyped-def]
    done = run(*words)
    assert done.status == 2
    assert text in done.err
    assert len(done.err.splitlines()) == 1
    assert not list(tmp_path.iterdir())


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which a study file was compared, while another process watched."""
    folder = tmp_path_factory.mktemp("compared")
    (folder / "study.toml").write_text(STUDY)
    environment = {**os.environ, "COLUMNS": "200"}
    words = [str(TORCHPLUG), "compare", "study.toml", "--lang", "zh"]
    with (folder / "out.txt").open("w") as out:
        driver = subprocess.Popen(words, cwd=folder, env=environment, stdout=out, stderr=out)
    root = folder / "runs" / "study"
    deadline = time.monotonic() + 300
    while not (root / "comparison.json").exists() and time.monotonic() < deadline:
        assert driver.poll() is None, (folder / "out.txt").read_text()
        time.sleep(0.1)
    words = [str(TORCHPLUG), "compare", "--watch", str(root)]
    watched = subprocess.run(
        words, capture_output=True, text=True, env=environment, timeout=300, check=False
    )
    assert driver.wait(300) == 0, (folder / "out.txt").read_text()
    (folder / "watched.txt").write_text(watched.stdout + watched.stderr)
    return folder


def test_a_study_file_is_run_to_its_verdicts(finished: Path) -> None:
    out = (finished / "out.txt").read_text()
    assert "3 x stage" in out
    assert "2 seeds are a screen" in out
    assert "baseline again" in out
    assert "controls" in out
    root = finished / "runs" / "study"
    assert len(list((root / "trials").iterdir())) == 8
    assert (root / "report.html").exists()
    assert json.loads((root / "comparison.json").read_text())["recipe"]["epochs"] == 1


def test_a_second_terminal_follows_a_run_until_it_is_over(finished: Path) -> None:
    last = (finished / "watched.txt").read_text().split("study")[-1]
    assert "8 of 8 trials, over" in last
    assert "cbam@stage" in last


def test_a_run_is_seen_once_and_reported_in_another_language(run, finished: Path) -> None:  # type: ignore[no-untyped-def]
    seen = run("compare", "--watch", "runs/study", "--once", cwd=finished)
    assert seen.status == 0
    assert "8 of 8 trials, over" in seen.out
    page = finished / "runs" / "study" / "report.html"
    assert 'lang="zh' in page.read_text()
    done = run("report", "runs/study", "--lang", "en", cwd=finished)
    assert done.status == 0
    assert "no difference found" in done.out or "undecided" in done.out
    assert 'lang="en' in page.read_text()


def test_the_same_command_again_has_nothing_left_to_do(run, finished: Path) -> None:  # type: ignore[no-untyped-def]
    before = {
        path: path.stat().st_mtime_ns for path in finished.glob("runs/study/trials/*/record.json")
    }
    done = run("compare", "study.toml", "--workers", "1", cwd=finished)
    assert done.status == 0
    assert "8 of 8 trials are there from an earlier run" in done.out
    assert before == {path: path.stat().st_mtime_ns for path in before}


def test_a_dry_run_tells_trials_time_and_power_and_writes_nothing(run, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    words = (*FLAGS, "--epochs", "2", "--seeds", "4", "--dry-run", "--controls", "parameters")
    done = run(*words, "--controls", "placebo")
    assert done.status == 0, done.err
    lines = done.out.splitlines()
    rows = {line.split("  ")[0]: line for line in lines}
    assert rows["baseline"].split()[2:4] == ["77,754", "0"]
    assert "3 x bottleneck" in rows["se"]
    assert "placebo control of se" in rows
    assert "16: 4 arms with seeds 0, 1, 2, 3" in done.out
    assert "parameters for a variant that wins: 4 more trials" in done.out
    assert (
        "with 80 %, a difference of 0.74 points if paired differences deviate by 0.35" in done.out
    )
    assert not list(tmp_path.iterdir())


def test_names_of_arms_are_folded_where_columns_are_few(  # type: ignore[no-untyped-def]
    run, monkeypatch: pytest.MonkeyPatch, finished: Path
) -> None:
    monkeypatch.setattr(console, "width", 58)
    plugs = ("--plug", "scse@block:reduction=2", "--plug", "scse@block:reduction=8")
    looked = run("compare", "--model", "torchplug:resnet8", *plugs, "--dry-run")
    column = "".join(line.split(" ")[0] for line in looked.out.splitlines())
    assert "scse@block:reduction=2scse@block:reduction=8" in column
    monkeypatch.setattr(console, "width", 40)
    for words in (("compare", "--watch", "runs/study", "--once"), ("report", "runs/study")):
        done = run(*words, cwd=finished)
        assert done.status == 0, done.err
        assert "…" not in done.out


def test_a_program_is_compared_and_its_failures_are_shown(run, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    script = """
apply(words["--seed"])
requests = json.loads(plan.read_text())["requests"]
if requests and requests[0]["module"] == "gc":
    raise SystemExit(3)
value = float("nan") if requests and requests[0]["module"] == "cc" else int(words["--seed"]) % 7
(out / "m.json").write_text(json.dumps({"test": {"top1": value / 10}}))
"""
    (tmp_path / "train.py").write_text(RECEIPT + script)
    plugs = ("--plug", "se", "--plug", "gc", "--plug", "cc", "--seeds", "3,4,5", "--name", "own")
    words = ("compare", "--command", "{python} train.py --seed {seed} --plan {plan} --out {out}")
    done = run(*words, "--metric", "{out}/m.json:test.top1", *plugs)
    assert done.status == 0, done.err
    assert "3 failed" in done.out
    assert "3 diverged" in done.out
    root = tmp_path / "runs" / "own"
    records = [json.loads(path.read_text()) for path in root.glob("trials/*/record.json")]
    assert {r["variant"] for r in records if r["status"] == "failed"} == {"gc"}
    assert {r["value"] for r in records if r["variant"] == "se"} == {0.3, 0.4, 0.5}
    seen = run("compare", "--watch", "runs/own", "--once")
    assert "exit code 3" in seen.out
    assert (root / "report.html").exists()


PROGRAM = "{python} train.py --seed {seed} --plan {plan} --out {out}"


@pytest.mark.parametrize(
    ("place", "reason"),
    [
        ("{out}/m.json:top2", "{out}/m.json has top2: got no such key; did you mean 'top1'?"),
        ("{out}/n.json:top1", "the program leaves {out}/n.json: got no such file; let the program"),
    ],
)
def test_a_metric_that_is_not_there_ends_the_run_at_the_first_baseline(  # type: ignore[no-untyped-def]
    run, tmp_path: Path, place: str, reason: str
) -> None:
    (tmp_path / "train.py").write_text(
        RECEIPT + "apply(); (out / 'm.json').write_text('{\"top1\": 1}')"
    )
    words = ("compare", "--command", PROGRAM, "--plug", "se", "--seeds", "2", "--name", "own")
    done = run(*words, "--metric", place)
    assert done.status == 2
    assert f"none after baseline, seed 0, so no other trial is begun: {reason}" in done.err
    assert done.err.rstrip().endswith("run it under another name, or remove runs/own first")
    assert f"baseline, seed 0: failed: {reason}" in done.out
    assert len(list((tmp_path / "runs" / "own" / "trials").iterdir())) == 1
    (tmp_path / "runs" / "own").rename(tmp_path / "runs" / "typo")
    assert run(*words, "--metric", "{out}/m.json:top1").status == 0


def test_why_trials_fail_is_told_once_and_at_the_end(run, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    script = "if 'module' in plan.read_text(): raise SystemExit(3)\napply(); raise SystemExit(4)"
    (tmp_path / "train.py").write_text(RECEIPT + script)
    words = ("compare", "--command", PROGRAM, "--plug", "se", "--seeds", "2", "--name", "own")
    done = run(*words, "--metric", "{out}/m.json:top1")
    told = [line for line in done.out.splitlines() if ": failed" in line]
    assert len(told) == 6
    assert [line.partition("(")[0] for line in told if "exit code" in line] == [
        "baseline, seed 0: failed: a program ends with exit code 0: got exit code 4 ",
        "se, seed 0: failed: a program ends with exit code 0: got exit code 3 ",
    ]
    assert done.err.rstrip().endswith(
        "mend what the reason names, or remove the variant that fails"
    )


def test_the_report_names_the_control_that_a_program_cannot_make(run, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    script = """
content = json.loads(plan.read_text())
if content["control"] == "placebo":
    refused = {"seed": content["seed"], "control": "placebo", "refused": "no honest one"}
    plan.with_suffix(".applied.json").write_text(json.dumps(refused))
    raise SystemExit(1)
apply(control=content["control"], details={"told": "as wide as it takes"})
(out / "m.json").write_text(json.dumps({"top1": int(words["--seed"]) % 7}))
"""
    (tmp_path / "train.py").write_text(RECEIPT + script)
    words = ("compare", "--command", "{python} train.py --seed {seed} --plan {plan} --out {out}")
    words = (*words, "--metric", "{out}/m.json:top1", "--plug", "se", "--seeds", "2")
    looked = run(*words, "--dry-run", "--name", "own")
    assert "parameters and placebo for a variant that wins" in looked.out
    done = run(*words, "--controls", "placebo,parameters", "--name", "own")
    assert done.status == 0, done.err
    table = done.out.partition("\nvariant ")[2]
    assert "parameters control of se" in table
    assert "placebo control of se" not in table
    report = (tmp_path / "runs" / "own" / "report.html").read_text()
    assert "There is no placebo control of se: no honest one." in report
    assert "as wide as it takes" in report


def make_state(done: int, *, over: bool = False) -> RunState:
    waiting = RunningTrial(name="se, seed 1", epoch=3, epochs=9, seconds=61.0)
    return RunState(
        name="x",
        arms={"baseline": {"finished": done, "waiting": 2 - done}, "[red]se[/red]": {"failed": 1}},
        running=() if over else (waiting,),
        failures=("[b]se[/b], seed 0: failed OutOfMemoryError",),
        left=None if over else 3725.0,
        drivers=0 if over else 2,
        is_over=over,
    )


def test_the_view_ends_when_the_run_is_over(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torchplug.cli.watching._LOOK_SECONDS", 0.0)
    states = iter([make_state(1), make_state(2, over=True)])
    follow(lambda: next(states), make_state(0))
    shown = capsys.readouterr().out
    assert "x  3 of 3 trials, over" in shown
    assert "[red]se[/red]" in shown
    assert "[b]se[/b], seed 0: failed OutOfMemoryError" in shown
    assert next(states, None) is None


def test_a_run_that_nobody_works_on_is_not_over(finished: Path, tmp_path: Path) -> None:
    import shutil

    root = tmp_path / "copy"
    shutil.copytree(finished / "runs" / "study", root)
    watcher = Watcher(root)
    assert watcher.look().is_over
    next(root.glob("trials/se--*/record.json")).unlink()
    state = watcher.look()
    assert (state.done, state.total, state.is_over, state.drivers) == (7, 8, False, 0)
    assert state.left is not None
    broken = next(root.glob("trials/baseline--*/record.json"))
    broken.write_text(broken.read_text()[:-20])
    assert watcher.look().done == 6
