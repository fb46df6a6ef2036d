"""How much faster two processes are than one: the same study inline and in a pool.

    python -m benchmarks.throughput --store benchmarks/results/throughput.json

The measure is at least 1.8 on 2 cores that do nothing else. The times are those of the whole call,
the starts of the processes included; the records must be equal.
"""

import argparse
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.stored import describe, publish
from torchplug.comparison import Recipe, compare


def run(out: Path, workers: int, seeds: int, epochs: int) -> float:
    began = time.monotonic()
    recipe = Recipe(epochs=epochs)
    compare("torchplug:resnet8", ["se"], seeds=seeds, recipe=recipe, out=out, workers=workers)
    return time.monotonic() - began


def read_records(root: Path) -> dict[str, bytes]:
    found = sorted((root / "trials").glob("*/record.json"))
    return {path.parent.name: path.read_bytes() for path in found}


def measure(seeds: int, epochs: int, workers: int) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        run(root / "warm", 1, 2, 1)  # imports count for neither
        alone = run(root / "inline", 1, seeds, epochs)
        together = run(root / "pool", workers, seeds, epochs)
        records = read_records(root / "inline")
        same = records == read_records(root / "pool")
    return {
        "trials": len(records),
        "workers": workers,
        "seconds inline": round(alone, 1),
        "seconds in the pool": round(together, 1),
        "times faster": round(alone / together, 2),
        "records are equal": same,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--store", type=Path)
    chosen = parser.parse_args()
    publish(describe() | measure(chosen.seeds, chosen.epochs, chosen.workers), chosen.store)


if __name__ == "__main__":
    main()
