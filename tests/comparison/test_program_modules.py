"""Modules of the user's own in studies of programs, by relative paths, on every engine."""

import dataclasses
import json
import os
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.comparison.test_command import RECEIPT
from tests.comparison.test_program_controls import TRAIN, list_controls, make_comparison
from tests.programs.test_own_modules import OWN
from torchplug.comparison import load_run
from torchplug.comparison.engines import Place
from torchplug.comparison.run import run_comparison
from torchplug.comparison.session import Inputs
from torchplug.comparison.spec import Comparison, Variant
from torchplug.errors import UsageError

QUICK = (
    RECEIPT
    + """
import hashlib
content = json.loads(plan.read_text())
for name, digest in content["sources"].items():
    found = pathlib.Path(name.rpartition(":")[0]).read_bytes()
    assert hashlib.sha256(found).hexdigest() == digest
apply(control=content["control"], details={"told": "cut"} if content["control"] else {})
(out / "metrics.json").write_text(json.dumps({"loss": len(content["requests"])}))
"""
)
OWN_TRAIN = TRAIN.replace("import torch, torchplug", "import torch, torchplug, own").replace(
    "(1, 3, 16, 16))\noptimizer", "(1, 3, 16, 16), modules={'Scale': own.Scale})\noptimizer"
)


@pytest.fixture
def study(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Comparison:
    """A study whose script and module are named from the current folder."""
    (tmp_path / "own.py").write_text(OWN)
    comparison = make_comparison(
        tmp_path, OWN_TRAIN, "own.py:Scale@stage:value=2.0", controls=("placebo",)
    )
    monkeypatch.chdir(tmp_path)
    command = comparison.command.replace(f"'{tmp_path}/train.py'", "train.py")
    return dataclasses.replace(comparison, command=command)


def check_study(root: Path) -> None:
    run = load_run(root)
    assert list_controls(run.result) == [
        ("again", "baseline"),
        ("placebo", "own.py:Scale@stage:value=2.0"),
    ]
    assert [row.statuses for row in run.result.rows] == [{"finished": 2}] * 4
    assert [row.places for row in run.result.rows] == ["-", "3 x stage", "-", "3 x stage"]
    assert "Scale: what it adds is computed from one fixed map" in run.arms[3].details["told"]


def check_quick(root: Path, arms: int = 4) -> None:
    run = load_run(root)
    assert [row.statuses for row in run.result.rows] == [{"finished": 2}] * arms
    assert [row.mean for row in run.result.rows] == [0, 1, 0, 1][:arms]
    assert all(arm.details["told"] == "cut" for arm in run.arms[3:])
    assert len(list(root.glob("trials/*/plan.applied.json"))) == 2 * arms


def test_a_script_plugs_its_own_module_and_its_placebo(study: Comparison, tmp_path: Path) -> None:
    run_comparison(study, "run", Place(workers=2))
    check_study(tmp_path / "run")
    (plan, *_) = (tmp_path / "run").glob("trials/own.py*/plan.json")
    content = json.loads(plan.read_text())
    assert content["requests"][0]["module"] == f"{tmp_path}/own.py:Scale"
    assert list(content["sources"]) == [f"{tmp_path}/own.py:Scale"]
    os.chdir("/")
    with pytest.raises(UsageError, match=r"a model file must exist: got 'own\.py'"):
        run_comparison(study, tmp_path / "run")
    os.chdir(tmp_path)
    (tmp_path / "own.py").write_text(OWN + "# changed\n")
    with pytest.raises(UsageError, match=r'another comparison.*"sources"'):
        run_comparison(study, tmp_path / "run")


def test_ray_runs_programs_by_relative_paths(study: Comparison, tmp_path: Path) -> None:
    pytest.importorskip("ray")
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    from ray.cluster_utils import Cluster

    os.chdir("/")  # a cluster that was started elsewhere
    settings = {"num_cpus": 2, "include_dashboard": False}
    cluster = Cluster(initialize_head=True, head_node_args=settings)
    try:
        os.chdir(tmp_path)
        (tmp_path / "train.py").write_text(QUICK)
        run_comparison(study, "run", Place(engine="ray", address=cluster.address))
    finally:
        cluster.shutdown()
    check_quick(tmp_path / "run")


def test_slurm_runs_programs(study: Comparison, tmp_path: Path) -> None:
    pytest.importorskip("submitit")
    place = Place(engine="slurm", address="local", workers=2, options={"timeout_min": 5})
    (tmp_path / "train.py").write_text(QUICK)
    study = dataclasses.replace(study, controls=())  # a job imports torch each time
    run_comparison(study, "run", place)
    check_quick(tmp_path / "run", arms=3)


STARTED = """
import pickle, sys
from torchplug.comparison.arms import prepare_model
work = pickle.load(sys.stdin.buffer)
study = work.start(*work.arguments)
arm = prepare_model(study, study.comparison.variants[0], 0)
print(*[plug.path for report in arm.reports for plug in report.plan.plugs])
"""


def test_another_process_finds_a_relative_module_of_a_study_without_a_program(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "own.py").write_text(OWN)
    monkeypatch.chdir(tmp_path)
    comparison = Comparison(
        model="torchplug:resnet8",
        data="digits",
        variants=(Variant.parse("own.py:Scale@stage"),),
        seeds=(0, 1),
    )
    work: Any = pickle.dumps(Inputs(comparison.model, comparison).make_work())
    done = subprocess.run(
        [sys.executable, "-c", STARTED], input=work, capture_output=True, cwd="/", check=False
    )
    assert done.stdout.split() == [b"layer1", b"layer2", b"layer3"], done.stderr.decode()
