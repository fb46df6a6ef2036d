"""``python -m benchmarks.report``: a report of 100,000 records, its time and its peak memory.

The run directory is drawn, not trained, but written in the ledger's own layout and read by the code
that reads every other one.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from datetime import UTC, datetime
from pathlib import Path

from benchmarks.simulated_run import Simulation, simulate_run
from torchplug.comparison.environment import describe_environment

ARMS, SEEDS = 100, 1000
MOST_SECONDS, MOST_BYTES = 60, 2 * 2**30
_CHILD = """
import json, resource, sys, time
began = time.perf_counter()
from torchplug.reporting import write_report
imported = time.perf_counter()
before = time.process_time()
path = write_report(sys.argv[1])
print(json.dumps({
    "import seconds": round(imported - began, 2),
    "seconds": round(time.perf_counter() - imported, 2),
    "processor seconds": round(time.process_time() - before, 2),
    "peak bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
    "page bytes": path.stat().st_size,
}))
"""


def main() -> int:
    """Write a run, report on it in a process of its own, and print what it took."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.report", description=__doc__)
    parser.add_argument("--arms", type=int, default=ARMS, help="baseline and A/A control included")
    parser.add_argument("--seeds", type=int, default=SEEDS)
    parser.add_argument("--folder", type=Path, help="where the run is kept; a new one if not named")
    parser.add_argument("--store", type=Path, help="where the JSON goes")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        root = options.folder or Path(temporary) / "run"
        began = time.perf_counter()
        gains = {f"variant {i}": 0.02 * (i % 10) for i in range(options.arms - 2)}
        simulate_run(root, Simulation(gains=gains, seeds=options.seeds))
        written = time.perf_counter() - began
        command = [sys.executable, "-c", _CHILD, str(root)]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
    measured = json.loads(done.stdout.splitlines()[-1])
    result = {
        "command": f"python -m benchmarks.report --arms {options.arms} --seeds {options.seeds}",
        "when": datetime.now(UTC).isoformat(timespec="seconds"),
        "environment": describe_environment("cpu"),
        "load average": round(os.getloadavg()[0], 1),
        "records": options.arms * options.seeds,
        "arms": options.arms,
        "seeds": options.seeds,
        "seconds to write the run": round(written, 1),
        **measured,
    }
    own = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 2**20
    print(
        f"{result['records']:,} records: {measured['seconds']} s "
        f"({measured['processor seconds']} s of processor), {own:.2f} GiB at the peak"
    )
    if options.store is not None:
        options.store.parent.mkdir(parents=True, exist_ok=True)
        options.store.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    is_good = measured["seconds"] <= MOST_SECONDS and measured["peak bytes"] <= MOST_BYTES
    return 0 if is_good else 1


if __name__ == "__main__":
    sys.exit(main())
