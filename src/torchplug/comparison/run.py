"""Compare plugged variants with a baseline, from the specification to the verdict."""

import dataclasses
import json
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torchplug.comparison.arms import Study
from torchplug.comparison.driver import Driver
from torchplug.comparison.engines import EngineName, Job, Place, Work
from torchplug.comparison.environment import describe_environment, merge_environments
from torchplug.comparison.inputs import (
    Model,
    check_device,
    hash_model,
    make_maker,
    name_model,
    read_data,
)
from torchplug.comparison.lease import Leases
from torchplug.comparison.progress import OnEvent, Teller, ignore
from torchplug.comparison.readback import Run as Run
from torchplug.comparison.readback import conclude, read_records, read_timings
from torchplug.comparison.readback import load_run as load_run
from torchplug.comparison.recipe import Recipe
from torchplug.comparison.rehearsal import Rehearsal, rehearse
from torchplug.comparison.result import ComparisonResult, to_json
from torchplug.comparison.spec import Comparison, Control, Goal, TaskName, Variant, read_seeds
from torchplug.comparison.store import SPECIFICATION, Store, read_json, write_json, write_text
from torchplug.comparison.trial_job import run_job

WINNER_CONTROLS: tuple[Control, ...] = ("parameters", "placebo")


def compare(
    model: Model,
    plugs: Sequence[str | Variant],
    *,
    data: Any = "digits",
    seeds: int | Sequence[int] = 5,
    task: TaskName = "classification",
    metric: str = "",
    goal: Goal = "max",
    recipe: Recipe | None = None,
    base: str = "scratch",
    controls: Sequence[Control] = (),
    margin: float | None = None,
    futility: bool = False,
    budget_hours: float | None = None,
    out: str | Path = "runs/comparison",
    model_options: Mapping[str, Any] | None = None,
    image_size: int | None = None,
    device: str = "cpu",
    workers: int | None = None,
    engine: EngineName = "auto",
    address: str | None = None,
    engine_options: Mapping[str, Any] | None = None,
    on_event: OnEvent = ignore,
) -> ComparisonResult:
    """Train baseline and variants on paired seeds and say what was found.

    One seed gives every variant the same initial base weights, the same order of images and the
    same augmentation; the modules draw from a stream of their own. Each trial writes its record at
    once, so a comparison that was killed goes on where it was when it is called again.

    Args:
        model: a name such as ``"torchplug:resnet8"`` or ``"timm:resnet10t"``, or a function without
            arguments that makes the classifier. Start it from scratch or from weights: the
            baseline gets the same.
        plugs: ``"MODULE[@PLACE][:OPTION=VALUE,…]"``, or variants.
        data: a name such as ``"digits"``, or data in memory.
        seeds: how many, or which. Five are a screen, ten allow a verdict.
        task: what the model does.
        metric: the one that decides; empty is the task's own.
        goal: whether more of it is better.
        recipe: how all are trained.
        base: where training starts: ``"scratch"``, ``"trained"``, or the path of a checkpoint.
        controls: asked for, for every variant; winners get theirs in any case.
        margin: the smallest difference worth having, in points; ``None`` is 0.2, or one standard
            error of the baseline if that is larger.
        futility: stop a variant that can no longer reach the margin.
        budget_hours: begin no trial after this time.
        out: directory of the run.
        model_options: keyword arguments of the model's maker, if ``model`` is a name.
        image_size: side of the square to which the images of a folder are resized.
        device: where to train.
        workers: how many trials run at once, each in a process of its own with one thread. The
            records are the same for any number. A script needs ``if __name__ == "__main__"``.
        engine: what runs the trials.
        address: of a Ray cluster.
        engine_options: what one trial asks of a cluster.
        on_event: called as the trials go on, for a progress display.

    Returns:
        The result; printing it gives the table and the verdicts.

    Raises:
        UsageError: for a model, module, data set or directory that cannot be used; nothing is
            written then.
        PlugError: if a variant cannot be plugged into the model.
        DiskFullError: if there is no space for a record; what was there is whole.
    """
    comparison = Comparison(
        model=name_model(model),
        data=data,
        variants=tuple(Variant.parse(plug) if isinstance(plug, str) else plug for plug in plugs),
        seeds=read_seeds(seeds),
        task=task,
        metric=metric,
        goal=goal,
        recipe=recipe or Recipe(),
        base=base,
        controls=tuple(controls),
        margin=margin,
        futility=futility,
        budget_hours=budget_hours,
        image_size=image_size,
        model_options=dict(model_options or {}),
        device=device,
    )
    place = Place(
        engine=engine,
        workers=workers,
        address=address,
        options=dict(engine_options or {}),
        device=device,
    )
    return run_comparison(comparison, model, data, Path(out), place, on_event)


def run_comparison(
    comparison: Comparison,
    model: Model,
    data: Any,
    out: Path,
    place: Place,
    on_event: OnEvent = ignore,
) -> ComparisonResult:
    """Run what is missing of a comparison and return its result; see :func:`compare`."""
    check_device(comparison.device)
    images = read_data(data, comparison)
    maker = make_maker(model, comparison, images)
    digest = hash_model(model, Study(comparison, images, maker))
    comparison = dataclasses.replace(comparison, model_digest=digest)
    store = Store(out)
    store.check(comparison, images.digest)
    study = Study(comparison, images, maker)
    inputs = _Inputs(model, comparison, data)
    if place.name != "inline":
        inputs.make_work().check()
    arms = comparison.arms
    rehearsal = rehearse(study, arms)
    store.root.mkdir(parents=True, exist_ok=True)
    with Leases(store.root) as leases:
        return _Session(study, inputs, store, leases, place, on_event).run(arms, rehearsal)


@dataclass(frozen=True)
class _Inputs:
    """What another process makes the same study of."""

    model: Model
    comparison: Comparison
    data: Any
    start: bytes | None = None

    def make_work(self) -> Work:
        return Work(_begin, (self.model, self.comparison.to_json(), self.data, self.start), _run)


def _begin(model: Model, specification: str, data: Any, start: bytes | None) -> Study:
    comparison = Comparison.from_dict(json.loads(specification))
    images = read_data(data, comparison)
    return Study(comparison, images, make_maker(model, comparison, images))


def _run(study: Study, job: Job, report: Any) -> Any:
    return run_job(study, job, report)


@dataclass
class _Session:
    """One driver's work on a run."""

    study: Study
    inputs: _Inputs
    store: Store
    leases: Leases
    place: Place
    on_event: OnEvent

    def run(self, arms: tuple[Variant, ...], rehearsal: Rehearsal) -> ComparisonResult:
        comparison, store = self.study.comparison, self.store
        hours = comparison.budget_hours
        deadline = math.inf if hours is None else time.monotonic() + 3600 * hours
        with self.leases.locked():
            # another driver may have begun meanwhile
            store.check(comparison, self.study.data.digest)
            self._write_head(arms, rehearsal)
        teller = Teller(self.on_event, comparison.recipe.epochs)
        driver = Driver(comparison, self.study.data.digest, store, self.leases, teller, deadline)
        engine = self.place.make_engine(
            self.inputs.make_work,
            Work(lambda: self.study, (), _run),
            lambda job, epoch: teller.tell("epoch", job.name, epoch=epoch),
        )
        try:
            driver.plan(arms)
            driver.run(engine)
            result = self._conclude(driver, arms)
        finally:
            engine.stop()
        write_text(store.root / "summary.json", to_json(result))
        return result

    def _conclude(self, driver: Driver, arms: tuple[Variant, ...]) -> ComparisonResult:
        comparison, store = self.study.comparison, self.store
        stopped = driver.explain_stops(arms)
        write_json(store.root / "stopped.json", stopped)
        records = read_records(store, comparison, arms)
        timings = read_timings(store, comparison, arms)
        costs = read_json(store.root / "costs.json")
        return conclude(store, comparison, arms, records, driver.known, timings, costs, stopped)

    def _write_head(self, arms: tuple[Variant, ...], rehearsal: Rehearsal) -> None:
        store, data = self.store, self.study.data
        write_text(store.root / SPECIFICATION, self.study.comparison.to_json())
        described = {
            "name": data.name,
            "digest": data.digest,
            "classes": list(data.classes),
            "samples": [len(data.train), len(data.validation), len(data.test)],
        }
        write_json(store.root / "data.json", described)
        self._write_arms(arms, rehearsal)
        path = store.root / "environment.json"
        now = describe_environment(self.study.comparison.device)
        write_json(path, merge_environments(read_json(path), now))

    def _write_arms(self, arms: tuple[Variant, ...], rehearsal: Rehearsal) -> None:
        """Write what is known of these arms, next to others that are there already."""
        for variant in arms:
            if variant.plugs:
                write_text(self.store.plan_path(variant), rehearsal.plans[variant.name].to_json())
        old = self.store.read_arms() or ()
        names = {arm.name for arm in old}
        self.store.write_arms((*old, *(arm for arm in arms if arm.name not in names)))
        path = self.store.root / "costs.json"
        write_json(path, {**rehearsal.costs, **(read_json(path) or {})})
