"""kill -9 at random moments, thirty times: are the records those of an uninterrupted run?

    python -m benchmarks.kills --store benchmarks/results/kills.json

Half of the kills hit the driver, which is then called again, and half hit one of its two workers.
When a study is through, its records are compared byte by byte and the next one begins in a new
directory, until there were enough kills. A trial whose process dies three times before it has
finished an epoch is given up, as one that is killed for its memory would be; the same call again
runs it.
"""

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.stored import describe, publish
from benchmarks.throughput import read_records
from torchplug.comparison import Recipe, compare
from torchplug.comparison.store import read_json

SEEDS, EPOCHS = 4, 12
_PATIENCE_SECONDS = 300.0


def run(out: Path, workers: int) -> None:
    recipe = Recipe(epochs=EPOCHS)
    compare("torchplug:resnet8", ["se"], seeds=SEEDS, recipe=recipe, out=out, workers=workers)


def start(out: Path) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "benchmarks.kills", "--child", str(out)]
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def find_workers(pid: int) -> list[int]:
    """Return the processes of a pool; the tracker of its resources is none."""
    found = []
    for path in Path("/proc").glob("[0-9]*"):
        try:
            parent = int((path / "stat").read_text().rpartition(")")[2].split()[1])
            words = (path / "cmdline").read_bytes().split(b"\0")
        except (OSError, ValueError, IndexError):
            continue
        if parent == pid and any(b"spawn_main" in word for word in words):
            found.append(int(path.name))
    return found


def wait_for_work(out: Path, process: subprocess.Popen[bytes]) -> None:
    """Let a driver come as far as a trial: imports take longer than the time between two kills."""
    began = time.time()
    while process.poll() is None:
        for path in out.glob("drivers/*.json"):
            told = read_json(path)
            if told is not None and told["pid"] == process.pid:
                found = [read_json(lease) for lease in out.glob("trials/*/lease.json")]
                if any(lease and lease["owner"] == told["owner"] for lease in found):
                    return
        if time.time() - began > _PATIENCE_SECONDS:
            raise TimeoutError("a driver takes no trial")
        time.sleep(0.2)


def torment(out: Path, kills: int, longest: float, random_: random.Random) -> dict[str, int]:
    """Run a study to its end and kill it on the way."""
    done = {"driver": 0, "worker": 0, "calls": 1}
    process = start(out)
    while process.poll() is None:
        wait_for_work(out, process)
        time.sleep(random_.uniform(0.0, longest))
        if sum((done["driver"], done["worker"])) >= kills:
            process.wait()
        elif process.poll() is None and random_.random() < 0.5:
            process.send_signal(signal.SIGKILL)
            process.wait()
            done["driver"] += 1
            done["calls"] += 1
            process = start(out)
        elif process.poll() is None and (workers := find_workers(process.pid)):
            os.kill(random_.choice(workers), signal.SIGKILL)
            done["worker"] += 1
    if process.returncode:
        raise RuntimeError(f"a driver ended with {process.returncode}")
    done["given up"] = count_failed(out)
    if done["given up"]:
        done["calls"] += 1
        start(out).wait()
    return done


def count_failed(root: Path) -> int:
    """Return the trials that a driver gave up, since they died too often before an epoch."""
    records = [json.loads(path.read_text()) for path in root.glob("trials/*/record.json")]
    return sum(record["status"] != "finished" for record in records)


def count_resumed(root: Path) -> int:
    timings = [json.loads(path.read_text()) for path in root.glob("trials/*/timing.json")]
    return sum(bool(timing["resumed_at"]) for timing in timings)


def measure(kills: int, longest: float, seed: int) -> dict[str, Any]:
    random_ = random.Random(seed)
    names = ("driver", "worker", "calls", "given up", "studies", "resumed", "unequal")
    total = dict.fromkeys(names, 0)
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        run(root / "whole", 1)
        whole = read_records(root / "whole")
        while (left := kills - total["driver"] - total["worker"]) > 0:
            out = root / f"study-{total['studies']}"
            for name, count in torment(out, left, longest, random_).items():
                total[name] += count
            records = read_records(out)
            total["unequal"] += sum(records.get(name) != whole[name] for name in whole)
            total["resumed"] += count_resumed(out)
            total["studies"] += 1
            print(total, flush=True)
    return {
        "kills of the driver": total["driver"],
        "kills of a worker": total["worker"],
        "calls": total["calls"],
        "trials that were given up and run by the next call": total["given up"],
        "studies": total["studies"],
        "trials a study": len(whole),
        "trials that went on from a checkpoint": total["resumed"],
        "records that differ": total["unequal"],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=30)
    parser.add_argument("--longest", type=float, default=10.0, help="seconds between two kills")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--store", type=Path)
    parser.add_argument("--child", type=Path, help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    if chosen.child is not None:
        run(chosen.child, 2)
        return
    publish(describe() | measure(chosen.kills, chosen.longest, chosen.seed), chosen.store)


if __name__ == "__main__":
    main()
