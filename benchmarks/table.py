"""Print records as they come."""

from typing import Any

WIDTHS = (20, 9, 14, 9)


def print_head() -> None:
    _print(("row", "dtype", "layout", "mode"), "ms: ours, then the others; x floor; ours / best")


def print_record(record: dict[str, Any]) -> None:
    times = {name: timing["ms"] for name, timing in record["times"].items()}
    texts = [f"{name} {ms:.2f}" for name, ms in times.items()]
    texts.append(f"floor x{times['ours'] / record['floor_ms']:.1f}")
    ratio = find_ratio(record)
    if ratio is not None:
        texts.append(f"ratio {ratio:.2f}")
    memory = record["times"]["ours"]
    texts.append(f"peak {memory['peak_mb']:.0f} MB")
    if record["mode"] == "step":
        kept = {name: f"{t['kept_mb']:.0f}" for name, t in record["times"].items()}
        texts.append("kept " + "/".join(kept.values()) + " MB")
    cells = (record["row"], record["dtype"], record["layout"], record["mode"])
    _print(cells, "  ".join(texts))


def find_ratio(record: dict[str, Any]) -> float | None:
    """Return our time over that of the fastest peer of the same or nearly the same function."""
    kinds = record["kinds"]
    peers = [t["ms"] for name, t in record["times"].items() if kinds[name] in ("same", "near")]
    return record["times"]["ours"]["ms"] / min(peers) if peers else None


def _print(cells: tuple[str, ...], rest: str) -> None:
    padded = (cell.ljust(width) for cell, width in zip(cells, WIDTHS, strict=True))
    print(*padded, rest, flush=True)
