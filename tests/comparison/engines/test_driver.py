"""The driver takes trials one at a time, next to others, and writes what comes out whole or not."""

import errno
import json
import shutil
import subprocess
import threading
import time
from collections import Counter
from pathlib import Path

import pytest

from tests.comparison.engines.harness import (
    Session,
    make_comparison,
    make_local_work,
    make_outcome,
    read_records,
    run_in_threads,
)
from torchplug.comparison import Comparison
from torchplug.comparison.engines import Job, Work
from torchplug.comparison.engines.inline import InlineEngine
from torchplug.comparison.lease import Leases
from torchplug.comparison.store import RECORD, DiskFullError, Store, is_disk_full, seal, write_json


def run(comparison: Comparison, root: Path, do=lambda job: None, **more) -> Session:
    session = Session(comparison, root, **more)
    session.run(make_local_work(comparison, do))
    return session


def test_two_drivers_share_the_work_and_both_know_all(tmp_path: Path) -> None:
    comparison = make_comparison(seeds=5)
    ran: Counter[tuple[str, str]] = Counter()

    def note(job: Job) -> None:
        ran[job.name, threading.current_thread().name] += 1
        time.sleep(0.05)

    sessions = [Session(comparison, tmp_path) for _ in range(2)]
    run_in_threads(
        *(lambda s=session: s.run(make_local_work(comparison, note)) for session in sessions)
    )
    total = len(list(comparison.trials()))
    assert len(ran) == sum(ran.values()) == total == 20  # none twice
    assert min(Counter(thread for _, thread in ran).values()) > 4  # shared
    assert all(len(session.driver.known) == total for session in sessions)
    assert sessions[0].driver.known == sessions[1].driver.known
    for session in sessions:
        assert session.events[-1].done == session.events[-1].total == total


def test_a_trial_of_a_dead_driver_is_taken_over(tmp_path: Path) -> None:
    comparison = make_comparison()
    dead = Leases(tmp_path, stale_seconds=0.3)
    dead._write_beat()
    folder = Store(tmp_path).trial_folder(comparison, comparison.variants[0], 1)
    dead.take(folder)
    (folder / ".checkpoint.x.tmp").write_text("half")
    session = run(comparison, tmp_path, leases={"stale_seconds": 0.3})
    assert len(session.driver.known) == 12
    assert session.driver.known["one", 1].status == "finished"
    assert not list(tmp_path.rglob("*.tmp"))
    assert not list(tmp_path.rglob("lease.json"))


def test_a_driver_that_was_asleep_does_not_overwrite_who_took_over(tmp_path: Path) -> None:
    comparison = make_comparison()
    folder = Store(tmp_path).trial_folder(comparison, comparison.variants[0], 0)

    def lose(job: Job) -> None:
        if job.name == "one, seed 0":
            other = Leases(tmp_path)
            other._write_beat()
            write_json(folder / "lease.json", {"owner": other.owner})
            outcome = make_outcome(comparison, job, value=1.0)
            Store(tmp_path).write_outcome(folder, outcome.record, outcome.timing)

    session = run(comparison, tmp_path, lose)
    assert session.driver.known["one", 0].value == 1.0
    assert json.loads((folder / RECORD).read_text())["value"] == 1.0


def test_what_is_there_is_kept_and_what_is_damaged_or_failed_is_run_again(tmp_path: Path) -> None:
    comparison = make_comparison("one")
    first = run(comparison, tmp_path)
    whole = read_records(tmp_path)
    store = Store(tmp_path)
    paths = [store.trial_folder(comparison, comparison.arms[1], seed) / RECORD for seed in range(3)]
    paths[0].write_bytes(paths[0].read_bytes()[:100])
    paths[1].write_text(paths[1].read_text().replace('"value": 9', '"value": 8'))
    failed = {**json.loads(paths[2].read_text()), "status": "failed"}
    write_json(paths[2], seal({k: v for k, v in failed.items() if k != "checksum"}))
    again = run(comparison, tmp_path)
    assert read_records(tmp_path) == whole
    assert first.kinds().count("start") == 9
    assert again.kinds() == ["begin", *again.kinds()[1:10], *["start", "end"] * 3]
    assert sorted(again.kinds()[1:10]) == ["kept"] * 6 + ["redo"] * 3
    assert run(comparison, tmp_path).kinds() == ["begin", *["kept"] * 9]


def test_records_of_other_data_or_another_specification_do_not_count(tmp_path: Path) -> None:
    comparison = make_comparison("one")
    store = Store(tmp_path)
    variant = comparison.variants[0]
    for seed, changes in enumerate([{"data": "other"}, {"specification": "other"}]):
        folder = store.trial_folder(comparison, variant, seed)
        outcome = make_outcome(comparison, Job(variant, seed, str(folder)))
        store.write_outcome(folder, {**outcome.record, **changes}, outcome.timing)
    assert run(comparison, tmp_path).kinds().count("start") == 9


class Dying:
    """An engine whose processes die as often as told."""

    slots = 2

    def __init__(self, comparison: Comparison, deaths: dict[str, int], progress: bool) -> None:
        self.comparison, self.deaths, self.progress = comparison, deaths, progress
        self.inline = InlineEngine(make_local_work(comparison), lambda job, epoch: None)
        self.died: Counter[str] = Counter()

    def submit(self, job: Job) -> None:
        self.inline.submit(job)

    def wait(self, seconds: float):
        from dataclasses import replace

        found = []
        for ended in self.inline.wait(seconds):
            name = ended.job.name
            if self.died[name] < self.deaths.get(name, 0):
                self.died[name] += 1
                if self.progress:
                    path = Path(ended.job.folder, "progress.json")
                    write_json(path, {"epoch": self.died[name]})
                found.append(replace(ended, result=None, death="killed"))
                continue
            found.append(ended)
        return found

    def stop(self) -> None:
        self.inline.stop()


def test_a_trial_whose_process_always_dies_is_a_failure_on_record(tmp_path: Path) -> None:
    comparison = make_comparison("one")
    session = Session(comparison, tmp_path)
    deaths = {"one, seed 0": 2, "one, seed 1": 99}
    driver = session.run(None, Dying(comparison, deaths, progress=False))
    assert driver.known["one", 0].status == "finished"
    assert driver.known["one", 1].status == "failed"
    assert session.kinds().count("retry") == 4
    folder = driver.store.trial_folder(comparison, comparison.variants[0], 1)
    record = json.loads((folder / RECORD).read_text())
    assert record["error"] == "its process died 3 times without finishing an epoch in between"
    assert session.events[-1].done == session.events[-1].total == 9


def test_deaths_with_progress_in_between_are_not_counted(tmp_path: Path) -> None:
    comparison = make_comparison("one")
    session = Session(comparison, tmp_path)
    driver = session.run(None, Dying(comparison, {"one, seed 0": 7}, progress=True))
    assert driver.known["one", 0].status == "finished"


@pytest.fixture
def tiny_disk(tmp_path: Path):
    """A file system of 512 KiB, or nothing where it cannot be made."""
    folder = tmp_path / "tiny"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=512k", "tmpfs", str(folder)]
    found = shutil.which("mount") is not None
    if not found or subprocess.run(command, capture_output=True, check=False).returncode:
        pytest.skip("a tmpfs needs root")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_a_full_disk_is_one_clear_error_and_no_half_record(tiny_disk: Path) -> None:
    comparison = make_comparison("one", seeds=4)
    ballast = tiny_disk / ".ballast"

    def fill(job: Job) -> None:
        if job.name == "one, seed 1":
            with pytest.raises(OSError, match="No space"):
                ballast.write_bytes(b"x" * 600_000)

    with pytest.raises(DiskFullError, match=r"needs space .* free some and call again"):
        run(comparison, tiny_disk, fill)
    left = read_records(tiny_disk)
    assert 0 < len(left) < 12
    assert not list(tiny_disk.rglob("*.tmp"))
    assert not list(tiny_disk.rglob("lease.json"))
    ballast.unlink()
    session = run(comparison, tiny_disk)
    assert len(read_records(tiny_disk)) == 12
    assert {name: read_records(tiny_disk)[name] for name in left} == left
    assert session.kinds().count("start") == 12 - len(left)


def write_nowhere() -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


def test_a_full_disk_in_a_trial_is_no_failure_of_the_trial(tmp_path: Path) -> None:
    def fail(job: Job) -> None:
        try:
            write_nowhere()
        except OSError:
            raise RuntimeError("while saving") from None

    with pytest.raises(DiskFullError, match=r"No space left|while saving"):
        run(make_comparison(), tmp_path, fail)
    assert read_records(tmp_path) == {}
    assert is_disk_full(RuntimeError("[enforce fail] PytorchStreamWriter failed writing file x"))
    assert not is_disk_full(RuntimeError("out of memory"))


def run_with_values(root: Path, comparison: Comparison, values) -> Session:
    session = Session(comparison, root)

    def do(state, job, report):
        return make_outcome(comparison, job, values(job))

    session.run(Work(lambda: None, (), do))
    return session


@pytest.mark.parametrize("goal", ["max", "min"])
def test_a_hopeless_variant_is_stopped_by_seed_and_the_others_go_on(
    goal: str, tmp_path: Path
) -> None:
    comparison = make_comparison("bad", "good", seeds=10, futility=True, margin=0.2, goal=goal)
    sign = 1 if goal == "max" else -1

    def value(job: Job) -> float:
        gain = {"bad": -1.0, "good": 0.3}.get(job.variant.name, 0.0)
        return 90 + sign * gain + 0.1 * (job.seed % 3)

    session = run_with_values(tmp_path, comparison, value)
    ran = Counter(name for name, _ in session.driver.known)
    assert ran == {"baseline": 10, "baseline again": 10, "good": 10, "bad": 3}
    assert session.driver.stopped == {"bad": "for futility after 3 seeds"}
    assert session.events[-1].done == session.events[-1].total == 33
    assert [event.message for event in session.events if event.kind == "stop"] == [
        "for futility after 3 seeds"
    ]
    again = run_with_values(tmp_path, comparison, value)
    assert again.driver.stopped == session.driver.stopped
    assert "start" not in again.kinds()


def test_no_trial_is_begun_after_the_budget(tmp_path: Path) -> None:
    comparison = make_comparison("one", seeds=4, budget_hours=1.0)
    session = Session(comparison, tmp_path, deadline=time.monotonic() + 0.35)
    session.run(make_local_work(comparison, lambda job: time.sleep(0.1)))
    assert session.driver.out_of_time
    assert 2 <= len(session.driver.known) <= 6
    arms = comparison.arms
    told = session.driver.explain_stops(arms)
    assert told.keys() == {arm.name for arm in arms}
    assert told["baseline again"].startswith("by the budget after ")
    assert session.events[-1].done == session.events[-1].total == len(session.driver.known)


def test_an_error_that_no_trial_is_guilty_of_ends_the_run_and_gives_back(tmp_path: Path) -> None:
    def fail(job: Job) -> None:
        raise ConnectionError("the data are gone")

    with pytest.raises(ConnectionError, match="the data are gone"):
        run(make_comparison(), tmp_path, fail)
    assert not list(tmp_path.rglob("lease.json"))
    assert read_records(tmp_path) == {}
