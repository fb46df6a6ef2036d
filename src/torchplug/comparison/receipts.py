"""What programs say of their models: read from the receipts of their plans, checked, summed up."""

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, get_args

from torchplug.comparison.rehearsal import describe_places
from torchplug.comparison.spec import BASELINE, Comparison, Variant
from torchplug.comparison.store import Store, read_json, write_json, write_text
from torchplug.errors import TorchplugError, explain
from torchplug.programs import ProgramControl, receipt_path
from torchplug.surgery import Plan

DETAILS = "details.json"
"""What controls were brought to, by arm: a program knows it when it has run."""


def take_receipt(plan: Path, record: dict[str, Any]) -> str:
    """Take what a program says of its model into its record; return what is wrong with it.

    Args:
        plan: the file that the program was given.
        record: of the trial; ``refused`` says that the plan could not be applied.
    """
    receipt = read_json(receipt_path(plan))
    if not isinstance(receipt, dict):
        return explain(
            "the program applies its plan",
            "a program that ended without",
            "add torchplug.apply_plan(model, plan) after the model is built",
        )
    if "refused" in receipt:
        record["refused"] = True
        return str(receipt["refused"])
    record |= {name: receipt[name] for name in ("base_weights", "parameters")}
    if receipt.get("trained") is False:
        return explain(
            "the model that is plugged is the one that is trained",
            f"{_name_weights(receipt)} whose weights did not change",
            "apply the plan where the framework builds its model: docs/your-own-script.md",
        )
    others = _others_of_seed(plan, receipt)
    if others - {receipt["base_weights"]}:
        return explain(
            "all arms of one seed start from equal weights",
            "other weights of the base than in another arm",
            "seed every generator with {seed} before the model is built, and apply the plan then",
        )
    return ""


def is_refused(plan: Path) -> bool:
    """Whether the program could not apply its plan, whatever it did then."""
    receipt = read_json(receipt_path(plan))
    return isinstance(receipt, dict) and "refused" in receipt


def _name_weights(receipt: Mapping[str, Any]) -> str:
    return "a widened base" if receipt.get("control") == "parameters" else "plugs"


def _others_of_seed(plan: Path, receipt: Mapping[str, Any]) -> set[str]:
    """Return the hashes of the bases that other arms of the same seed have started from.

    Controls are held to the arms that are compared, and no arm to a control.
    """
    found = set()
    for path in plan.parent.parent.glob(f"*/{receipt_path(plan).name}"):
        other = read_json(path)
        if not isinstance(other, dict) or other.get("seed") != receipt.get("seed"):
            continue
        if "base_weights" in other and not other.get("control"):
            found.add(str(other["base_weights"]))
    return found


def find_refused(arms: Sequence[Variant], records: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    """Return the controls that a program could make in no trial, each with the reason.

    They are controls that do not exist, as an arm has none that torchplug cannot build.
    """
    refused = {}
    for arm in arms:
        mine = [record for record in records if record["variant"] == arm.name]
        is_made_there = arm.control in get_args(ProgramControl)
        if is_made_there and mine and all(record.get("refused") for record in mine):
            refused[arm.name] = str(mine[0]["error"])
    return refused


def note_receipts(store: Store, comparison: Comparison, arms: Sequence[Variant]) -> None:
    """Write plans, costs and details of arms that only programs have built, as far as known."""
    costs = read_json(store.root / "costs.json") or {}
    details = read_json(store.root / DETAILS) or {}
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
        if receipt.get("details"):
            details[arm.name] = receipt["details"]
        if plan.plugs:
            write_text(store.plan_path(arm), plan.to_json())
    write_json(store.root / "costs.json", costs)
    write_json(store.root / DETAILS, details)


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
