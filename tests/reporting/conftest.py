"""Runs with drawn numbers in the ledger's layout, their reports, and one browser for all tests."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from benchmarks.simulated_run import Simulation, simulate_run
from tests.reporting.browser import CHROMIUM, Browser
from torchplug.comparison import Run, load_run
from torchplug.reporting import write_report

HOSTILE = "</script><script>alert(1)</script> $x$ & <b>bold</b> |\"'=1+1"
FORMULA = "=HYPERLINK(0)"


@pytest.fixture(scope="session")
def run_directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four variants on eleven seeds: one better, one that diverges once, two of hostile names."""
    simulation = Simulation(
        gains={"se": 0.8, "gc": -0.7, HOSTILE: 0.05, FORMULA: 0.0},
        seeds=11,
        epochs=4,
        controls_of=("se",),
        failures={("gc", 2): "diverged"},
    )
    return simulate_run(tmp_path_factory.mktemp("runs") / "report", simulation)


@pytest.fixture(scope="session")
def run(run_directory: Path) -> Run:
    return load_run(run_directory)


@pytest.fixture(scope="session")
def page_path(run_directory: Path) -> Path:
    return write_report(run_directory)


@pytest.fixture(scope="session")
def page(page_path: Path) -> str:
    return page_path.read_text(encoding="utf-8")


@pytest.fixture(scope="session")
def chinese_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Segmentation with two metrics, and a grid of two modules in two stages, in Chinese."""
    modules = {f"{m}@stage{s}": (m, s) for m in ("scse", "gc") for s in (1, 2)}
    simulation = Simulation(
        gains=dict(zip(modules, (1.0, -1.0, 0.0, 0.02), strict=True)),
        seeds=12,
        epochs=3,
        task="segmentation",
        metrics=("miou", "dice"),
        classes=4,
        modules=modules,
        level=71.0,
    )
    root = simulate_run(tmp_path_factory.mktemp("runs") / "chinese", simulation)
    return write_report(root, "zh")


@pytest.fixture(scope="session")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    if CHROMIUM is None:
        pytest.skip("no chromium: apt-get install chromium")
    opened = Browser(tmp_path_factory.mktemp("profile"))
    yield opened
    opened.close()
