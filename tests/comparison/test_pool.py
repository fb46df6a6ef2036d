"""Several processes make the same records as one, and outlive one that is killed."""

import functools
import os
import signal
from pathlib import Path

import pytest
from torch import nn

from torchplug.comparison import Recipe, compare
from torchplug.comparison.pool import Job, Work, run_pool
from torchplug.errors import UsageError
from torchplug.hosts import build_model

RECIPE = Recipe(epochs=1)


def make_model() -> nn.Module:
    return build_model("torchplug:resnet8", num_classes=10, in_channels=1)


def records(root: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted((root / "trials").iterdir())}


def test_a_pool_writes_the_same_bytes_as_one_process(tmp_path: Path) -> None:
    for workers in (1, 2):
        result = compare(
            make_model,
            ["se"],
            seeds=2,
            recipe=RECIPE,
            out=tmp_path / str(workers),
            workers=workers,
        )
        assert len(result.rows) == 2
    one, two = records(tmp_path / "1"), records(tmp_path / "2")
    assert len(one) == 4
    assert one == two
    assert (tmp_path / "1/summary.json").read_bytes() == (tmp_path / "2/summary.json").read_bytes()


def test_what_is_there_is_not_run_again(tmp_path: Path) -> None:
    compare(make_model, ["se"], seeds=2, recipe=RECIPE, out=tmp_path / "run")
    before = records(tmp_path / "run")
    (tmp_path / "run/trials/se--seed-1.json").write_text("{")
    kinds = []
    compare(
        make_model,
        ["se"],
        seeds=2,
        recipe=RECIPE,
        out=tmp_path / "run",
        workers=2,
        on_event=lambda event: kinds.append(event.kind),
    )
    assert kinds == ["begin", "kept", "kept", "kept", "redo", "start", "end"]
    assert records(tmp_path / "run") == before


def test_a_model_that_cannot_be_sent_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    def local() -> nn.Module:
        return make_model()

    with pytest.raises(UsageError, match="workers=1"):
        compare(local, ["se"], out=tmp_path / "run", workers=2)
    with pytest.raises(UsageError, match="at least one process"):
        compare(make_model, ["se"], out=tmp_path / "run", workers=0)
    assert not (tmp_path / "run").exists()


def begin(folder: str) -> Path:
    return Path(folder)


def act(folder: Path, job: Job) -> None:
    """Note that it ran; ``once`` dies the first time, ``always`` every time."""
    tries = len(list(folder.glob(f"{job[0]}-{job[1]}-*")))
    (folder / f"{job[0]}-{job[1]}-{tries}").touch()
    if job[0] == "always" or (job[0] == "once" and tries == 0):
        os.kill(os.getpid(), signal.SIGKILL)


def test_a_killed_process_costs_only_what_ran_in_it(tmp_path: Path) -> None:
    jobs = [("calm", 0), ("once", 0), ("always", 0), *(("calm", seed) for seed in range(1, 5))]
    work = Work(begin, (str(tmp_path),), act)
    ended = dict(run_pool(work, jobs, 2))
    assert ended.keys() == set(jobs)
    assert {job for job, death in ended.items() if death} == {("always", 0)}
    assert "died while it ran alone" in str(ended["always", 0])
    assert (
        1 <= len(list(tmp_path.glob("always-*"))) <= 2
    )  # it may not have begun when the other died
    for seed in range(5):
        assert list(tmp_path.glob(f"calm-{seed}-*"))


def die_for_se(parent: int) -> nn.Module:
    """A model whose process dies while a trial trains it, and only there."""
    model = make_model()
    if os.getpid() != parent:
        model.register_forward_hook(functools.partial(_die_in_training, ()))
    return model


def _die_in_training(_: object, module: nn.Module, *__: object) -> None:
    if module.training and any("torchplug" in name for name, _ in module.named_modules()):
        os.kill(os.getpid(), signal.SIGKILL)


def test_a_trial_that_always_kills_its_process_is_a_failure_on_record(tmp_path: Path) -> None:
    maker = functools.partial(die_for_se, os.getpid())
    with pytest.raises(UsageError, match="died while it ran alone"):
        compare(maker, ["se"], seeds=2, recipe=RECIPE, out=tmp_path / "run", workers=2)
    texts = {path.name: path.read_text() for path in (tmp_path / "run" / "trials").iterdir()}
    assert "died while it ran alone" in texts["se--seed-0.json"]
    assert "finished" in texts["baseline--seed-0.json"]
    assert "finished" in texts["baseline--seed-1.json"]
