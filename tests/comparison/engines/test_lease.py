"""A trial has one driver: others wait for a living one, and take over from a dead one."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from torchplug.comparison.lease import LEASE, Leases, is_running, read_start


def pretend(root: Path, **changes: object) -> None:
    """Let the owner of every lease be another process, on this machine or another."""
    for path in (root / "drivers").iterdir():
        path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def test_a_trial_has_one_driver_and_can_be_given_back(tmp_path: Path) -> None:
    with Leases(tmp_path) as mine, Leases(tmp_path) as other:
        assert mine.take(tmp_path / "a")
        assert mine.take(tmp_path / "a")
        assert mine.holds(tmp_path / "a")
        assert not other.take(tmp_path / "a")
        assert other.find_holder(tmp_path / "a") == mine.owner
        other.give_back(tmp_path / "a")  # it is not its own
        assert mine.holds(tmp_path / "a")
        mine.give_back(tmp_path / "a")
        assert other.take(tmp_path / "a")
    assert not list((tmp_path / "drivers").iterdir())


def test_a_driver_that_ended_holds_nothing(tmp_path: Path) -> None:
    with Leases(tmp_path) as ended:
        ended.take(tmp_path / "a")
    with Leases(tmp_path) as mine:
        assert mine.take(tmp_path / "a")


def test_a_dead_process_of_this_machine_loses_its_trials_at_once(tmp_path: Path) -> None:
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    first, mine = Leases(tmp_path), Leases(tmp_path)
    with mine:
        first._write_beat()  # it is not entered: nobody beats for it
        assert first.take(tmp_path / "a")
        assert not mine.take(tmp_path / "a")
        pretend(tmp_path, pid=dead.pid, started="1")
        assert mine.take(tmp_path / "a")


def test_another_process_with_the_number_of_a_dead_one_is_not_it(tmp_path: Path) -> None:
    assert is_running(os.getpid(), read_start(os.getpid()))
    assert not is_running(os.getpid(), "1")


def test_a_silent_driver_of_another_machine_is_dead_after_a_while(tmp_path: Path) -> None:
    first, mine = Leases(tmp_path), Leases(tmp_path, stale_seconds=0.5)
    with mine:
        first._write_beat()
        first.take(tmp_path / "a")
        pretend_first = {"machine": "elsewhere", "pid": 1}
        path = tmp_path / "drivers" / f"{first.owner}.json"
        told = {**json.loads(path.read_text()), **pretend_first}
        path.write_text(json.dumps(told))
        assert not mine.take(tmp_path / "a")
        time.sleep(0.3)
        path.write_text(json.dumps({**told, "beat": 2}))  # it lives
        assert not mine.take(tmp_path / "a")
        time.sleep(0.3)
        assert not mine.take(tmp_path / "a")
        time.sleep(0.4)
        assert mine.take(tmp_path / "a")
        assert not first.holds(tmp_path / "a")


def test_a_living_driver_beats(tmp_path: Path) -> None:
    with Leases(tmp_path, stale_seconds=0.2) as mine:
        path = tmp_path / "drivers" / f"{mine.owner}.json"
        first = json.loads(path.read_text())["beat"]
        time.sleep(0.3)
        assert json.loads(path.read_text())["beat"] > first


@pytest.mark.parametrize("text", ["", "{", "[]", '{"owner": 3}', '{"owner": "nobody"}'])
def test_a_broken_lease_is_none(text: str, tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / LEASE).write_text(text)
    with Leases(tmp_path) as mine:
        assert mine.take(tmp_path / "a")
