"""Slurm through submitit, with its executor for this machine."""

from pathlib import Path

import pytest

from tests.comparison.engines.harness import Session, make_comparison, make_work, read_records
from torchplug.comparison.engines import Job, Place, Work
from torchplug.comparison.engines.slurm import AbandonedError, SlurmTrial
from torchplug.comparison.spec import Variant
from torchplug.errors import UsageError

submitit = pytest.importorskip("submitit")


def test_jobs_of_slurm_fill_the_ledger_and_one_that_is_killed_is_sent_again(tmp_path: Path) -> None:
    comparison = make_comparison("once", seeds=2)
    session = Session(comparison, tmp_path / "run")
    work = make_work(comparison, tmp_path / "notes")
    place = Place(engine="slurm", address="local", workers=3, options={"timeout_min": 5})
    root, owner = tmp_path / "run", session.leases.owner
    engine = place.make_engine(work, print, root=root, owner=owner)
    assert engine.slots == 3
    arms = comparison.arms[1:2]
    session.run(work, engine, arms)
    assert {known.status for known in session.driver.known.values()} == {"finished"}
    assert len(read_records(tmp_path / "run")) == 2
    assert session.kinds().count("retry") == 1


def act(state: int, job: Job, report) -> int:
    report(1)
    return state


def test_a_job_whose_driver_has_lost_the_trial_does_not_run(tmp_path: Path) -> None:
    work = Work(int, ("3",), act)
    job = Job(Variant(name="a"), 0, str(tmp_path))
    with pytest.raises(AbandonedError):
        SlurmTrial(work, job, "me")()
    (tmp_path / "lease.json").write_text('{"owner": "me"}')
    assert SlurmTrial(work, job, "me")() == 3
    again = SlurmTrial(work, job, "me").checkpoint()
    assert isinstance(again, submitit.helpers.DelayedSubmission)


def test_options_that_submitit_does_not_know_are_refused(tmp_path: Path) -> None:
    place = Place(engine="slurm", address="local", options={"partitoin": "gpu"})
    with pytest.raises(UsageError, match=r"options that submitit knows: got .*partitoin"):
        place.make_engine(Work(int, ("3",), act), print, root=tmp_path, owner="me")
