"""A driver that is killed at any moment loses at most the trial in flight, which goes on."""

import json
import multiprocessing
import random
import time
from pathlib import Path

from tests.comparison.conftest import read_trials, run_quickly
from torchplug.comparison import Recipe

SETTINGS = {"plugs": ["se"], "recipe": Recipe(epochs=4, batch_size=64)}
KILLS = 3


def drive(root: Path) -> None:
    run_quickly(root, **SETTINGS)


def test_a_driver_killed_at_random_moments_ends_as_if_it_had_not_been(tmp_path: Path) -> None:
    began = time.monotonic()
    drive(tmp_path / "whole")
    seconds = time.monotonic() - began
    root = tmp_path / "killed"
    # a server that has imported everything once: a driver begins within milliseconds
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["torchplug.comparison.training.perform", __name__])
    random.seed(5)
    for kill in range(KILLS):
        process = context.Process(target=drive, args=(root,))
        process.start()
        if kill == 0:
            wait_for_a_checkpoint(root)
        else:
            time.sleep(random.uniform(0.1, 0.5) * seconds)
        process.kill()
        process.join()
    left = read_trials(root)
    (root / "trials" / ".half.json.x.tmp").write_text("{")  # what a killed writer leaves

    events = []
    run_quickly(root, **SETTINGS, on_event=events.append)

    assert read_trials(root) == read_trials(tmp_path / "whole")
    assert sum(event.kind == "kept" for event in events) == len(left)
    assert not list((root / "drivers").iterdir())
    assert not list(root.rglob("lease.json"))
    timings = [json.loads(path.read_text()) for path in root.glob("trials/*/timing.json")]
    assert any(timing["resumed_at"] for timing in timings)


def wait_for_a_checkpoint(root: Path) -> None:
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        if list(root.glob("trials/*/checkpoint.ckpt")):
            return
        time.sleep(0.002)
    raise TimeoutError
