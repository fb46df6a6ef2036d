"""How often the verdict is wrong, and how often it finds what is there: by simulation.

    python -m benchmarks.verdicts --store benchmarks/results/verdicts.json

Each simulated study goes through the code of a real one, from records to verdicts. Accuracies are
those of the digits: a normal spread around 98.6 %, in steps of one test image of 897, with seeds
that move baseline and variant together by half of it.
"""

import argparse
import gc
import json
import platform
import sys
import time
from collections import Counter
from importlib.metadata import version
from pathlib import Path

import numpy as np

from torchplug.comparison import Comparison, Variant
from torchplug.comparison.planning import minimum_detectable
from torchplug.comparison.result import summarize

CENTER, DEVIATION, TESTED, MARGIN = 98.6, 0.35, 897, 0.2
SEEDS, FAMILIES = (5, 10, 20), (1, 3, 10)
GAINS = (0.2, 0.5, 1.0)


def simulate(rng: np.random.Generator, seeds: int, gains: list[float]) -> list[str]:
    """Return the labels of one study whose variants have these true gains."""
    variants = tuple(Variant(name=f"v{i}", plugs=("se",)) for i in range(len(gains)))
    comparison = Comparison(
        model="m", data="digits", variants=variants, seeds=tuple(range(seeds)), margin=MARGIN
    )
    arms = (comparison.arms[0], *variants)
    shared = rng.normal(0, DEVIATION / 2, seeds)  # what a seed does to all arms
    records = []
    for arm, gain in zip(arms, [0.0, *gains], strict=True):
        # two arms differ by the spread of the paired differences that was measured: 0.35
        own = rng.normal(0, DEVIATION / 2**0.5, seeds)
        wrong = np.round((100 - CENTER - gain + shared + own) / 100 * TESTED).clip(0)
        for seed, count in enumerate(wrong):
            value = 100 * (TESTED - count) / TESTED
            records.append(
                {
                    "variant": arm.name,
                    "seed": seed,
                    "status": "finished",
                    "value": value,
                    "metrics": {"accuracy": value},
                    "tested": TESTED,
                }
            )
    result = summarize(comparison, arms, records, {}, Path())
    return [row.verdict.label for row in result.variants if row.verdict]


def run(studies: int) -> list[dict[str, object]]:
    """Simulate studies without any effect, then studies with one."""
    rows = []
    for seeds in SEEDS:
        for family in FAMILIES:
            # the random flips of many seeds take long: fewer studies where there are many of them
            share = 4 if seeds * family > 30 and seeds > 16 else 1
            rows.append(repeat(studies // share, seeds, [0.0] * family))
        rows += [repeat(max(studies // 2, 1), seeds, [gain]) for gain in GAINS]
    return rows


def repeat(studies: int, seeds: int, gains: list[float]) -> dict[str, object]:
    """Simulate many studies of one kind and count their labels."""
    rng = np.random.default_rng([seeds, len(gains), int(100 * gains[0])])
    began, counts, wrong = time.perf_counter(), Counter[str](), 0
    for _ in range(studies):
        labels = simulate(rng, seeds, gains)
        counts.update(labels)
        wrong += bool({"better", "worse"} & set(labels))
    share = {label: count / (studies * len(gains)) for label, count in sorted(counts.items())}
    row = {
        "seeds": seeds,
        "variants": len(gains),
        "true gain": gains[0],
        "studies": studies,
        "studies with a better or worse": wrong / studies,
        "labels": share,
        "detectable": minimum_detectable(seeds, len(gains), DEVIATION),
    }
    told = ", ".join(f"{label} {100 * value:.1f} %" for label, value in share.items())
    print(
        f"{seeds:>2} seeds, {len(gains):>2} variants, true gain {gains[0]:.1f}: "
        f"{100 * wrong / studies:5.1f} % of studies say better or worse; {told} "
        f"({time.perf_counter() - began:.0f} s)",
        flush=True,
    )
    return row


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--studies", type=int, default=400)
    parser.add_argument("--store", type=Path)
    arguments = parser.parse_args()
    gc.freeze()  # statsmodels collects garbage in every call: leave torch's objects out of it
    rows = run(arguments.studies)
    if arguments.store:
        packages = {name: version(name) for name in ("torch", "numpy", "scipy", "statsmodels")}
        machine = {"python": sys.version.split()[0], "system": platform.machine(), **packages}
        content = {"command": "python -m benchmarks.verdicts", "environment": machine, "rows": rows}
        arguments.store.write_text(json.dumps(content, indent=1) + "\n")


if __name__ == "__main__":
    main()
