"""Processes of a pool: one that is killed costs its own trial, and none outlives its driver."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.comparison.engines.harness import (
    Session,
    check_deaths,
    make_comparison,
    make_work,
)
from torchplug.comparison.engines import Job, Work, pool
from torchplug.comparison.engines.pool import PoolEngine, choose_gpus, list_gpus
from torchplug.comparison.lease import is_running, read_start
from torchplug.comparison.spec import Variant
from torchplug.errors import UsageError

REPOSITORY = Path(__file__).parents[3]


def test_a_killed_process_costs_its_own_trial_only(tmp_path: Path) -> None:
    comparison = make_comparison("once", "always", seeds=2)
    notes = tmp_path / "notes"
    epochs = []
    session = Session(comparison, tmp_path / "run")
    work = make_work(comparison, notes)
    engine = PoolEngine(work, lambda job, epoch: epochs.append((job.name, epoch)), workers=2)
    driver = session.run(work, engine)
    check_deaths(session, notes)
    assert ("baseline, seed 0", 1) in epochs
    folder = driver.store.trial_folder(comparison, comparison.variants[0], 0)
    assert not (folder / "checkpoint.ckpt").exists()
    assert (folder / "logs/metrics.csv").read_text() == "once, seed 0"


def fail_to_begin() -> None:
    os._exit(3)


def refuse_to_begin() -> None:
    raise UsageError("no data here")


@pytest.mark.parametrize(
    ("begin", "text"),
    [(fail_to_begin, "must be able to start"), (refuse_to_begin, "no data here")],
)
def test_a_process_that_cannot_start_is_an_error_and_no_failed_trial(
    begin, text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pool, "_STARTS", 1)
    engine = PoolEngine(Work(begin, (), print), lambda job, epoch: None, workers=1)
    job = Job(Variant(name="a"), 0, "nowhere")
    try:
        engine.submit(job)
        ended = wait_for(lambda: engine.wait(1.0))
        assert isinstance(ended[0].error, UsageError)
        assert text in str(ended[0].error)
    finally:
        engine.stop()


ORPHANS = """
import sys, time
from pathlib import Path
from tests.comparison.engines.test_pool import sleep_for_long
from torchplug.comparison.engines import Job, Work, pool
from torchplug.comparison.engines.pool import PoolEngine
from torchplug.comparison.spec import Variant
if __name__ == "__main__":
    engine = PoolEngine(Work(Path, (sys.argv[1],), sleep_for_long), print, workers=1)
    engine.submit(Job(Variant(name="a"), 0, sys.argv[1]))
    while True:
        engine.wait(1.0)
"""


def sleep_for_long(folder: Path, job: Job, report: object) -> None:
    (folder / f"pid-{os.getpid()}").touch()
    time.sleep(600)


def test_processes_end_when_their_driver_is_killed(tmp_path: Path) -> None:
    script = tmp_path / "driver.py"
    script.write_text(ORPHANS)
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    driver = subprocess.Popen([sys.executable, str(script), str(tmp_path)], env=environment)
    pid = int(wait_for(lambda: next(tmp_path.glob("pid-*"), None)).name.partition("-")[2])
    started = read_start(pid)
    assert is_running(pid, started)
    driver.send_signal(signal.SIGKILL)
    driver.wait()
    wait_for(lambda: not is_running(pid, started))


def wait_for(look):
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        if found := look():
            return found
        time.sleep(0.05)
    raise TimeoutError


@pytest.mark.parametrize(
    ("index", "devices", "gpus", "chosen"),
    [
        (0, 1, ["0", "1"], ["0"]),
        (1, 1, ["4", "7"], ["7"]),
        (5, 1, ["0", "1"], ["1"]),
        (1, 2, ["0", "1", "2", "3"], ["2", "3"]),
        (0, 4, ["0", "1"], ["0", "1"]),
        (3, 1, [], []),
    ],
)
def test_each_process_has_gpus_of_its_own(
    index: int, devices: int, gpus: list[str], chosen: list[str]
) -> None:
    assert choose_gpus(index, devices, gpus) == chosen


def test_gpus_that_were_named_are_dealt_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "GPU-5fd4,3")
    assert list_gpus() == ["GPU-5fd4", "3"]
