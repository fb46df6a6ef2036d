"""``python -m benchmarks [name ...]``: measure, print and store."""

import argparse
import itertools
import json
import os
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

# The heap keeps what it has: a fresh map for every result would measure page faults.
HEAP = {"MALLOC_MMAP_THRESHOLD_": str(2**34), "MALLOC_TRIM_THRESHOLD_": str(2**34)}


def parse(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("names", nargs="*", help="rows or keys; all if none is named")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=1, help="processor threads")
    parser.add_argument("--seconds", type=float, default=2.0, help="of measuring per contest")
    parser.add_argument("--dtype", nargs="+", default=["float32", "bfloat16"])
    parser.add_argument("--layout", nargs="+", default=["contiguous", "channels_last"])
    parser.add_argument("--compile", action="store_true", help="measure compiled forwards too")
    parser.add_argument("--store", type=Path, help="where the JSON goes")
    parser.add_argument(
        "--merge", action="store_true", help="replace in the stored file what is measured here"
    )
    return parser.parse_args(arguments)


def load_result(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text())


def insert_record(records: list[dict[str, Any]], record: dict[str, Any]) -> None:
    """Put ``record`` in the place of the one that measured the same, or at the end."""

    def name(one: dict[str, Any]) -> tuple[str, ...]:
        return tuple(one[part] for part in ("row", "dtype", "layout", "mode"))

    places = [i for i, old in enumerate(records) if name(old) == name(record)]
    if places:
        records[places[0]] = record
    else:
        records.append(record)


def main() -> int:
    if sys.platform == "linux" and any(os.environ.get(k) != v for k, v in HEAP.items()):
        os.execve(sys.executable, sys.orig_argv, {**os.environ, **HEAP})
    options = parse(sys.argv[1:])
    import torch

    from benchmarks.measure import measure_row
    from benchmarks.rows import ROWS
    from benchmarks.table import print_head, print_record
    from torchplug.comparison.environment import describe_environment

    torch.set_num_threads(options.threads)
    known = {row.name for row in ROWS} | {row.key for row in ROWS}
    if unknown := set(options.names) - known:
        print(f"unknown: {', '.join(sorted(unknown))}; known: {', '.join(sorted(known))}")
        return 2
    rows = [r for r in ROWS if not options.names or {r.name, r.key} & set(options.names)]
    run = {
        "command": "python -m benchmarks " + " ".join(sys.argv[1:]),
        "when": datetime.now(UTC).isoformat(timespec="seconds"),
        "environment": describe_environment(options.device),
        "instructions": torch.backends.cpu.get_cpu_capability(),
        "threads": options.threads,
    }
    result = load_result(options.store) if options.merge else {**run, "records": []}
    if options.merge:
        result.setdefault("later", []).append(run)
    print_head()
    for row, dtype, layout in itertools.product(rows, options.dtype, options.layout):
        for record in measure_row(row, dtype, layout, options):
            print_record(record)
            insert_record(result["records"], record | {"run": len(result.get("later", []))})
        if options.store is not None:  # what is measured stays, whatever comes after
            options.store.parent.mkdir(parents=True, exist_ok=True)
            options.store.write_text(json.dumps(result, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
