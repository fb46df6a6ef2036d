"""A real Ray: tasks that die, nodes that do not see the ledger, fractions of a GPU."""

import contextlib
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.comparison.conftest import read_trials, run_quickly
from tests.comparison.engines.harness import (
    Session,
    check_deaths,
    count_tries,
    make_comparison,
    make_outcome,
    make_work,
)
from torchplug.comparison.engines import Job, Place, Work
from torchplug.comparison.engines.ray_tasks import count_fits
from torchplug.errors import UsageError

pytest.importorskip("ray")


@pytest.fixture(scope="module")
def two_nodes() -> Iterator[str]:
    """The address of a cluster of two nodes here, with one core and one pretended GPU each."""
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    from ray.cluster_utils import Cluster

    settings = {"num_cpus": 1, "num_gpus": 1, "include_dashboard": False}
    cluster = Cluster(initialize_head=True, head_node_args=settings)
    cluster.add_node(num_cpus=1, num_gpus=1)
    yield cluster.address
    with contextlib.suppress(Exception):
        cluster.shutdown()


def run_on(place: Place, session: Session, work: Work, **more: object) -> None:
    root = session.driver.store.root
    owner = session.leases.owner
    engine = place.make_engine(work, print, root=root, owner=owner, **more)
    session.run(work, engine)


def test_a_ray_of_its_own_outlives_a_killed_worker(tmp_path: Path) -> None:
    comparison = make_comparison("once", "always", seeds=2)
    session = Session(comparison, tmp_path / "run")
    place = Place(engine="ray", workers=2)
    run_on(place, session, make_work(comparison, tmp_path / "notes"))
    check_deaths(session, tmp_path / "notes")
    import ray

    assert not ray.is_initialized()


def test_two_nodes_make_the_same_records_as_one_process(
    two_nodes: str, finished: Path, tmp_path: Path
) -> None:
    run_quickly(tmp_path / "run", engine="ray", address=two_nodes)
    assert read_trials(tmp_path / "run") == read_trials(finished)


def begin(notes: str) -> Path:
    return Path(notes)


def work_blindly(notes: Path, job: Job, report: object) -> object:
    """Where no lease of ours is seen, the folder is another one."""
    comparison = make_comparison("a", "b", seeds=2)
    (notes / f"{job.variant.name}-{job.seed}-{os.getpid()}-0").write_text(
        f"{job.folder} {os.environ.get('CUDA_VISIBLE_DEVICES')}"
    )
    Path(job.folder, "logs").mkdir(exist_ok=True)
    Path(job.folder, "logs/metrics.csv").write_text(job.name)
    Path(job.folder, "checkpoint.ckpt").write_text("large")
    return make_outcome(comparison, job)


def test_a_node_that_does_not_see_the_ledger_sends_its_files(
    two_nodes: str, tmp_path: Path
) -> None:
    comparison = make_comparison("a", "b", seeds=2)
    session = Session(comparison, tmp_path / "run")
    notes = tmp_path / "notes"
    notes.mkdir()
    place = Place(engine="ray", address=two_nodes, options={"num_gpus": 0.5, "num_cpus": 0.25})
    work = Work(begin, (str(notes),), work_blindly)
    root = session.driver.store.root
    engine = place.make_engine(work, print, root=root, owner="somebody else", device="cuda")
    assert engine.slots == 4  # two GPUs, half of one for each trial
    session.run(work, engine)
    assert len(session.driver.known) == len(count_tries(notes)) == 8
    texts = [path.read_text().split() for path in notes.iterdir()]
    assert all(Path(folder).parent == Path(tempfile.gettempdir()) for folder, _ in texts)
    assert not any(Path(folder).exists() for folder, _ in texts)
    assert {gpu for _, gpu in texts} <= {"0", "1"}
    for job, seed in session.driver.known:
        variant = next(arm for arm in comparison.arms if arm.name == job)
        folder = session.driver.store.trial_folder(comparison, variant, seed)
        assert (folder / "logs/metrics.csv").read_text() == f"{job}, seed {seed}"
        assert not (folder / "checkpoint.ckpt").exists()


def test_a_cluster_that_does_not_answer_is_named(tmp_path: Path) -> None:
    place = Place(engine="ray", address="127.0.0.1:1")
    with pytest.raises(UsageError, match=r"a cluster that answers: got 127\.0\.0\.1:1"):
        place.make_engine(Work(begin, ("x",), work_blindly), print, root=tmp_path, owner="me")


@pytest.mark.parametrize(
    ("options", "have", "fits"),
    [
        ({"num_cpus": 1, "num_gpus": 0}, {"CPU": 3.0}, 3),
        ({"num_cpus": 2, "num_gpus": 1}, {"CPU": 16.0, "GPU": 4.0}, 4),
        ({"num_cpus": 1, "num_gpus": 0.1}, {"CPU": 64.0, "GPU": 3.0}, 30),
        ({"num_cpus": 1, "resources": {"a100": 1}}, {"CPU": 8.0, "a100": 2.0}, 2),
        ({"num_cpus": 1, "num_gpus": 1}, {"CPU": 8.0}, 0),
    ],
)
def test_the_room_of_a_cluster_is_counted(options, have, fits: int) -> None:
    assert count_fits(options, have) == fits
