"""What the small hosts learn of the embedded digits by the built-in recipe of each task.

    python -m benchmarks.recipes --store benchmarks/results/recipes.json

No number of it is a claim about a module: it says where a first try of a task starts from.
"""

import argparse
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.stored import describe, publish
from torchplug.comparison import Comparison, Recipe, Variant
from torchplug.comparison.arms import Study
from torchplug.comparison.data import load_data
from torchplug.comparison.spec import TaskName
from torchplug.comparison.tasks.choose import get_task
from torchplug.comparison.trial import run_trial
from torchplug.hosts import build_model

HOSTS: dict[TaskName, str] = {
    "classification": "torchplug:resnet8",
    "segmentation": "torchplug:unet8",
    "detection": "torchplug:fcos8",
}


def train(task: TaskName, seeds: int) -> dict[str, Any]:
    """Train the host of a task as the baseline of a comparison is trained."""
    data = load_data("digits", task=task)
    outputs = get_task(task).count_outputs(len(data.classes))
    comparison = Comparison(
        model=HOSTS[task],
        data="digits",
        task=task,
        variants=(Variant.parse("se"),),
        seeds=tuple(range(max(seeds, 2))),
        recipe=Recipe.for_task(task),
    )
    options = {"num_classes": outputs, "in_channels": data.channels}
    study = Study(comparison, data, lambda: build_model(HOSTS[task], **options))
    metrics, seconds = [], []
    for seed in range(seeds):
        with tempfile.TemporaryDirectory() as folder:
            began = time.monotonic()
            record = run_trial(study, comparison.arms[0], seed, Path(folder)).record
        seconds.append(round(time.monotonic() - began, 1))
        metrics.append({name: round(value, 2) for name, value in record["metrics"].items()})
    return {
        "model": HOSTS[task],
        "epochs": comparison.recipe.epochs,
        "metrics a seed": metrics,
        "seconds a seed": seconds,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--store", type=Path)
    chosen = parser.parse_args()
    publish(describe() | {task: train(task, chosen.seeds) for task in HOSTS}, chosen.store)


if __name__ == "__main__":
    main()
