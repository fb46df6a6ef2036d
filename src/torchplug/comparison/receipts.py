"""What programs plugged: the receipts of their plans, turned into plans and costs of the arms."""

import json
from collections.abc import Iterator, Sequence
from typing import Any

from torchplug.comparison.rehearsal import describe_places
from torchplug.comparison.spec import BASELINE, Comparison, Variant
from torchplug.comparison.store import Store, read_json, write_json, write_text
from torchplug.errors import TorchplugError
from torchplug.programs.receipt import receipt_path
from torchplug.surgery import Plan


def note_receipts(store: Store, comparison: Comparison, arms: Sequence[Variant]) -> None:
    """Write plans and costs of arms that only programs have built, as far as they are known."""
    costs = read_json(store.root / "costs.json") or {}
    found = {arm.name: receipt for arm in arms for receipt in _first(store, comparison, arm)}
    base = _count(found[BASELINE]) if BASELINE in found else None
    flops = [receipt["flops"][0] for receipt in found.values() if receipt["flops"][0]]
    for arm in arms:
        if arm.name not in found:
            continue
        receipt, plan = found[arm.name], Plan.from_json(json.dumps(found[arm.name]["plan"]))
        count = _count(receipt)
        costs[arm.name] = {
            **costs.get(arm.name, {}),
            "places": describe_places(plan.plugs),
            "parameters": count,
            "added": count - base if base is not None else 0,
            "flops": receipt["flops"][1] or (flops[0] if flops else 0),
        }
        if arm.plugs:
            write_text(store.plan_path(arm), plan.to_json())
    write_json(store.root / "costs.json", costs)


def _first(store: Store, comparison: Comparison, arm: Variant) -> Iterator[dict[str, Any]]:
    """Yield the first receipt that an arm left, if it left one."""
    for seed in comparison.seeds:
        path = receipt_path(store.trial_folder(comparison, arm, seed) / "plan.json")
        receipt = read_json(path)
        try:
            Plan.from_json(json.dumps(receipt["plan"]))
            _count(receipt)
            receipt["flops"] = [int(receipt["flops"][0]), int(receipt["flops"][1])]
        except (TorchplugError, ValueError, TypeError, KeyError, IndexError, AttributeError):
            continue
        yield receipt
        return


def _count(receipt: dict[str, Any]) -> int:
    return sum(int(number) for number in receipt["parameters"].values())
