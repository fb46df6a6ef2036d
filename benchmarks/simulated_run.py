"""A run directory with drawn numbers, in the ledger's own layout: quick to write, any size."""

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from torchplug.comparison.spec import AGAIN, BASELINE, Comparison, Variant
from torchplug.comparison.store import (
    RECORD,
    SPECIFICATION,
    TIMING,
    Store,
    seal,
    to_text,
    write_json,
)
from torchplug.surgery import Plan
from torchplug.surgery.plan import PlannedPlug
from torchplug.surgery.request import Request

TESTED = 719


@dataclass(frozen=True, kw_only=True)
class Simulation:
    """What is drawn: true gains in points by arm, and how many trials."""

    gains: Mapping[str, float]
    seeds: int
    task: str = "classification"
    metrics: tuple[str, ...] = ("accuracy",)
    classes: int = 10
    epochs: int = 12
    controls_of: tuple[str, ...] = ()
    """Variants that get a parameter control and a placebo."""

    modules: Mapping[str, tuple[str, int | None]] = field(default_factory=dict)
    """Module and stage of a variant's plan."""

    failures: Mapping[tuple[str, int], str] = field(default_factory=dict)
    """Status of trials that did not finish."""

    level: float = 94.0
    has_latency: bool = True


def simulate_run(root: Path, simulation: Simulation) -> Path:
    """Write the directory of a finished run and return it."""
    comparison, arms = _specify(simulation)
    store = Store(root)
    write_json(root / SPECIFICATION, json.loads(comparison.to_json()))
    store.write_arms(arms)
    write_json(root / "costs.json", _make_costs(simulation, arms))
    write_json(root / "environment.json", _ENVIRONMENT)
    for arm in arms:
        if arm.plugs:
            plan = _make_plan(simulation, arm)
            store.plan_path(arm).parent.mkdir(parents=True, exist_ok=True)
            store.plan_path(arm).write_text(plan.to_json(), encoding="utf-8")
    for folder, record, timing in _draw(simulation, comparison, arms, store):
        folder.mkdir(parents=True, exist_ok=True)
        # no fsync: nothing of this must survive a crash
        (folder / TIMING).write_text(to_text(timing), encoding="utf-8")
        (folder / RECORD).write_text(to_text(seal(record)), encoding="utf-8")
    return root


_ENVIRONMENT = {
    "python": "3.12.3",
    "torchplug": "0.2.0",
    "torch": "2.15.0",
    "lightning": "2.6.6",
    "processor": "a simulated processor",
    "device": "cpu",
    "deterministic algorithms": "yes",
    "git commit of the working folder": "0123456789ab-dirty",
}


def _specify(simulation: Simulation) -> tuple[Comparison, tuple[Variant, ...]]:
    variants = tuple(
        Variant(name=name, plugs=(Request(module=_module_of(simulation, name)),))
        for name in simulation.gains
    )
    comparison = Comparison(
        model="torchplug:resnet8",
        data="digits",
        task=simulation.task,  # type: ignore[arg-type]
        metric=simulation.metrics[0],
        variants=variants,
        seeds=tuple(range(simulation.seeds)),
        margin=0.2,
    )
    controls = tuple(
        Variant(
            name=f"{kind} control of {name}",
            control=kind,
            of=name,
            details={"stage": 3, "width": 66} if kind == "parameters" else {},
        )
        for name in simulation.controls_of
        for kind in ("parameters", "placebo")
    )
    return comparison, (*comparison.arms, *controls)


def _module_of(simulation: Simulation, name: str) -> str:
    return simulation.modules.get(name, ("se", None))[0]


def _make_plan(simulation: Simulation, arm: Variant) -> Plan:
    module, stage = simulation.modules.get(arm.name, ("se", None))
    stages = [stage] if stage is not None else [1, 2, 3]
    plugs = tuple(
        PlannedPlug(
            path=f"layer{n}.0.bn2",
            name=module,
            module=module,
            shape=(1, 16 * n, 8, 8),
            channels=16 * n,
            role="bottleneck",
            stage=n,
        )
        for n in stages
    )
    return Plan(host="SmallResNet", plugs=plugs, seed=0)


def _make_costs(simulation: Simulation, arms: Sequence[Variant]) -> dict[str, Any]:
    costs = {}
    for index, arm in enumerate(arms):
        plugged = index % 7 if arm.name not in {BASELINE, AGAIN} else 0
        ratio = 1 + 0.07 * plugged
        latency = {"milliseconds": 1.9 * ratio, "ratio": ratio}
        latency |= {"low": ratio - 0.012, "high": ratio + 0.02}
        costs[arm.name] = {
            "places": f"{3 * (plugged > 0)} x bottleneck" if plugged else "-",
            "parameters": 77_754 + 1_414 * plugged,
            "added": 1_414 * plugged,
            "flops": 4_700_000 + 9_000 * plugged,
            "memory": 410_000 + 31_000 * plugged,
            "latency": latency if simulation.has_latency else None,
        }
    return costs


def _draw(
    simulation: Simulation, comparison: Comparison, arms: Sequence[Variant], store: Store
) -> Iterator[tuple[Path, dict[str, Any], dict[str, Any]]]:
    gains = _gains_by_arm(simulation, arms)
    for seed in comparison.seeds:
        shared = np.random.default_rng(seed).normal(0, 0.2)
        for index, arm in enumerate(arms):
            folder = store.trial_folder(comparison, arm, seed)
            if (folder / RECORD).exists():
                continue  # of a writing that was interrupted
            rng = np.random.default_rng([seed, index])
            luck = rng.normal(0, 0.2) if arm.control == "again" else shared
            value = simulation.level + luck + gains[arm.name] + float(rng.normal(0, 0.18))
            status = simulation.failures.get((arm.name, seed), "finished")
            record = _make_record(simulation, rng, value, status)
            record |= {"variant": arm.name, "control": arm.control, "of": arm.of, "seed": seed}
            record["specification"] = comparison.digest(arm, seed)
            record["base_weights"] = f"{seed:08x}"
            pace = 0.4 * (1 + 0.07 * (index % 7))
            timing = _make_timing(simulation, pace, seed)
            yield folder, record, timing


def _gains_by_arm(simulation: Simulation, arms: Sequence[Variant]) -> dict[str, float]:
    found = {arm.name: 0.0 for arm in arms}
    return found | dict(simulation.gains)


def _make_record(
    simulation: Simulation, rng: np.random.Generator, value: float, status: str
) -> dict[str, Any]:
    has_errors = simulation.task == "classification"
    wrong = round(TESTED * (1 - value / 100)) if has_errors else 0
    value = 100 * (TESTED - wrong) / TESTED if has_errors else value
    errors = sorted(rng.choice(TESTED, size=wrong, replace=False).tolist()) if has_errors else None
    epochs = range(1, simulation.epochs + 1)
    curve = [
        {
            "epoch": epoch,
            "loss": round(2.3 * math.exp(-epoch / 4) + 0.02 + 0.01 * float(rng.random()), 5),
            "validation": round(value - 60 * math.exp(-epoch / 2.2) + float(rng.normal(0, 0.3)), 3),
        }
        for epoch in epochs
    ]
    is_whole = status == "finished"
    metrics = {name: value - 3.0 * place for place, name in enumerate(simulation.metrics)}
    spread = rng.normal(0, 0.8, size=simulation.classes)
    return {
        "format": 2,
        "status": status,
        "error": "" if is_whole else "the loss is no longer a number in epoch 3",
        "value": value if is_whole else None,
        "metrics": metrics if is_whole else {},
        "classes": {str(i): round(value + x, 3) for i, x in enumerate(spread)} if is_whole else {},
        "errors": errors if is_whole else None,
        "tested": TESTED,
        "curve": curve if is_whole else curve[:2],
        "data": "5f0c" * 16,
        "parameters": {"base": 77_754, "modules": 0, "gates": 0},
    }


def _make_timing(simulation: Simulation, pace: float, seed: int) -> dict[str, Any]:
    return {
        "began": 1_790_000_000.0 + seed,
        "seconds": pace * simulation.epochs,
        "epoch_seconds": [pace] * simulation.epochs,
        "resumed_at": [5] if seed == 1 and pace == 0.4 else [],
        "host": "simulated",
    }
