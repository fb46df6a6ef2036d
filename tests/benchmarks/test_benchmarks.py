"""The benchmark measures equal functions and writes what it says. No time is asserted here."""

import json
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.__main__ import insert_record
from benchmarks.contest import Timing
from benchmarks.floor import Reference, find_floor, make_references
from benchmarks.measure import _check_agreement, _compulsory_bytes
from benchmarks.memory import find_kept, find_peak
from benchmarks.peers import LIBRARIES, Peer, find_peers
from benchmarks.plain import PLAIN
from benchmarks.rows import ROWS, Row
from benchmarks.table import find_ratio
from torchplug import cards

ROOT = Path(__file__).parents[2]


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "benchmarks", *arguments]
    return subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, timeout=300, check=False
    )


def test_every_module_has_a_row_and_a_plain_form() -> None:
    keys = {c.key for c in cards().values() if c.factory.__module__.startswith("torchplug.")}
    assert {row.key for row in ROWS} == keys
    assert PLAIN.keys() == keys
    assert LIBRARIES.keys() <= {row.name for row in ROWS}
    assert len({row.name for row in ROWS}) == len(ROWS)


def small(row: Row) -> Row:
    """The row on maps small enough for a test, with the sides of several inputs in proportion."""
    shapes = tuple((*s[:2], max(s[2] // 4, 7), max(s[3] // 4, 7)) for s in row.shapes)
    return Row(row.name, row.key, row.args, shapes, row.options, row.train)


@pytest.mark.parametrize("row", [r for r in ROWS if r.args[0] < 2048], ids=lambda r: r.name)
def test_all_forms_of_a_row_compute_the_same(row: Row) -> None:
    torch.manual_seed(0)
    ours = row.build()
    for parameter in ours.parameters():
        parameter.data.add_(torch.randn_like(parameter), alpha=0.1)
    peers = list(find_peers(row, ours))
    assert any(peer.kind == "same" for peer in peers)
    _check_agreement(row, peers, [torch.randn(shape) for shape in small(row).shapes])


def test_a_form_that_computes_something_else_stops_the_benchmark() -> None:
    row = ROWS[0]
    ours = row.build()
    other = nn.Sequential(row.build(), nn.Tanh())
    with pytest.raises(AssertionError, match="differs"):
        _check_agreement(row, [Peer("other", other, ours)], [torch.randn(2, 256, 7, 7)])


def test_a_later_run_replaces_the_records_that_it_measures_and_no_other() -> None:
    def record(row: str, mode: str, ms: float) -> dict[str, object]:
        return {"row": row, "dtype": "float32", "layout": "contiguous", "mode": mode, "ms": ms}

    records = [record("se", "forward", 1), record("se", "step", 2), record("gc", "forward", 3)]
    insert_record(records, record("se", "step", 4))
    insert_record(records, record("gc", "step", 5))
    assert [r["ms"] for r in records] == [1, 4, 3, 5]


def test_a_run_stores_times_memory_and_what_it_ran_on(tmp_path: Path) -> None:
    path = tmp_path / "out.json"
    done = run("se", "--seconds", "0.01", "--dtype", "float32", "--store", str(path))
    assert done.returncode == 0, done.stderr
    result = json.loads(path.read_text())
    assert result["environment"]["torch"] == version("torch")
    modes = [(record["layout"], record["mode"]) for record in result["records"]]
    both = [("contiguous", "forward"), ("contiguous", "step")]
    assert modes == [*both, *((("channels_last", mode)) for _, mode in both)]
    for record in result["records"]:
        assert {"ours", "plain"} <= record["times"].keys()
        assert record["floor_ms"] > 0
        assert record["run"] == 0
        ratio = find_ratio(record)
        assert ratio is not None
        assert ratio > 0
        for timing in record["times"].values():
            assert 0 < timing["best_ms"] <= timing["ms"]
    assert "floor x" in done.stdout


def test_an_unknown_row_is_refused() -> None:
    done = run("sqeeze")
    assert done.returncode == 2
    assert "unknown: sqeeze" in done.stdout


def test_memory_and_floor_are_counted_from_sizes() -> None:
    x = torch.randn(1, 4, 64, 64, requires_grad=True)
    assert find_kept(lambda: (x * 2).sigmoid().sum(), [x]) == x.nbytes
    assert find_kept(lambda: x.relu().exp(), [x]) == 2 * x.nbytes
    assert x.nbytes <= find_peak(lambda: x.detach() + 1, "cpu") < 1.5 * x.nbytes
    module = nn.Conv2d(4, 8, 1, bias=False)
    moved = _compulsory_bytes(module, [x.detach()], "forward")
    assert moved == 4 * (4 * 64 * 64 + 8 * 64 * 64 + 32)


def test_the_floor_is_the_slower_of_arithmetic_and_traffic_at_the_rates_of_the_run() -> None:
    references = {"multiply": Reference(int, 1e9), "copy": Reference(int, 1e6)}
    timings = {"multiply": Timing(2.0, 1.0, 0.0), "copy": Timing(3.0, 1.0, 0.0)}
    assert find_floor(5e8, 2e5, references, timings) == pytest.approx(1.0)
    assert find_floor(1e8, 2e5, references, timings) == pytest.approx(0.6)


def test_the_rates_are_those_of_what_is_done() -> None:
    references = make_references("cpu", torch.float32)
    with FlopCounterMode(display=False) as counter:
        references["multiply"].step()
    assert references["multiply"].amount == counter.get_total_flops()
    target = references["copy"].step()
    assert isinstance(target, torch.Tensor)
    assert references["copy"].amount == 2 * target.nbytes
    assert target.min() == 1
