"""Compare plugged variants with a baseline, from the specification to the verdict."""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torchplug.comparison.arguments import Plug, check_seeds, read_plugs, read_recipe, read_words
from torchplug.comparison.arms import pin_modules
from torchplug.comparison.engines import EngineName, Place
from torchplug.comparison.inputs import Model, check_device, name_data, name_model
from torchplug.comparison.progress import OnEvent, ignore, print_event
from torchplug.comparison.readback import Run as Run
from torchplug.comparison.readback import load_run as load_run
from torchplug.comparison.recipe import Recipe
from torchplug.comparison.result import ComparisonResult
from torchplug.comparison.session import Inputs, Session
from torchplug.comparison.spec import Comparison, Control, Goal, TaskName
from torchplug.comparison.store import Store


def compare(
    model: Model,
    plugs: Plug | Sequence[Plug],
    *,
    data: Any = "digits",
    seeds: int | Sequence[int] = 5,
    task: TaskName = "classification",
    metric: str = "",
    goal: Goal = "max",
    recipe: Recipe | Mapping[str, Any] | None = None,
    epochs: int | None = None,
    base: str = "scratch",
    controls: Control | Sequence[Control] = (),
    margin: float | None = None,
    futility: bool = False,
    budget_hours: float | None = None,
    out: str | Path = "runs/comparison",
    model_options: Mapping[str, Any] | None = None,
    image_size: int | None = None,
    data_options: Mapping[str, Any] | None = None,
    device: str = "cpu",
    workers: int | None = None,
    engine: EngineName = "auto",
    address: str | None = None,
    engine_options: Mapping[str, Any] | None = None,
    on_event: OnEvent | None = print_event,
) -> ComparisonResult:
    """Train baseline and variants on paired seeds and say what was found.

    One seed gives every variant the same initial base weights, the same order of images and the
    same augmentation; the modules draw from a stream of their own. Each trial writes its record at
    once, so a comparison that was killed goes on where it was when it is called again.

    Args:
        model: a name such as ``"torchplug:resnet8"`` or ``"timm:resnet10t"``, or a function without
            arguments that makes the classifier. Start it from scratch or from weights: the
            baseline gets the same.
        plugs: ``"MODULE[@PLACE][:OPTION=VALUE,…]"``, a table as in a study file, whose lists are
            grids, a class of the catalogue, or a :class:`Variant`; one of them or a list.
        data: a name (see :mod:`torchplug.comparison.data`), or data in memory: a ``TaskData``, a
            tuple of datasets ``(train, test)``, or a ``LightningDataModule``.
        seeds: how many, or which. Five are a screen, ten allow a verdict.
        task: what the model does.
        metric: the one that decides; empty is the task's own.
        goal: whether more of it is better.
        recipe: how all are trained: a :class:`Recipe`, or the settings that differ from the task's.
        epochs: instead of the recipe's.
        base: where training starts: ``"scratch"``, ``"trained"``, or the path of a checkpoint.
        controls: asked for, for every variant; winners get theirs in any case.
        margin: the smallest difference worth having, in points; ``None`` is 0.2, or one standard
            error of the baseline if that is larger.
        futility: stop a variant that can no longer reach the margin.
        budget_hours: begin no trial after this time.
        out: directory of the run.
        model_options: keyword arguments of the model's maker, if ``model`` is a name.
        image_size: side of the square to which the images of a folder are resized.
        data_options: for the reader of the data; of datasets in memory, ``classes``.
        device: where to train.
        workers: how many trials run at once, each in a process of its own with one thread. The
            records are the same for any number. A script needs ``if __name__ == "__main__"``.
        engine: what runs the trials.
        address: of a Ray cluster.
        engine_options: what one trial asks of a cluster.
        on_event: called as the trials go on, for a progress display; by default a line on stderr
            for each, ``None`` is silence.

    Returns:
        The result; printing it gives the table and the verdicts. ``torchplug report DIRECTORY``, or
        :func:`torchplug.reporting.write_report`, writes the report.

    Raises:
        UsageError: for a model, module, data set or directory that cannot be used; nothing is
            written then.
        PlugError: if a variant cannot be plugged into the model.
        DiskFullError: if there is no space for a record; what was there is whole.
    """
    comparison = Comparison(
        model=name_model(model),
        data=name_data(data),
        variants=read_plugs(plugs),
        seeds=check_seeds(seeds),
        **read_words(task=task, metric=metric, goal=goal, base=base, controls=controls),
        recipe=read_recipe(recipe, task, epochs),
        margin=margin,
        futility=futility,
        budget_hours=budget_hours,
        image_size=image_size,
        data_options=dict(data_options or {}),
        model_options=dict(model_options or {}),
        device=device,
    )
    options = dict(engine_options or {})
    place = Place(engine=engine, workers=workers, address=address, options=options)
    tell = on_event or ignore
    return run_comparison(comparison, out, place, model=model, data=data, on_event=tell)


def run_comparison(
    comparison: Comparison,
    out: str | Path,
    place: Place | None = None,
    *,
    model: Model | None = None,
    data: Any = None,
    on_event: OnEvent = ignore,
) -> ComparisonResult:
    """Run what is missing of a comparison and return its result; see :func:`compare`.

    Args:
        comparison: what is compared.
        out: directory of the run.
        place: where the trials run.
        model: a function that makes the base, if the comparison's model is no name.
        data: in memory, if the comparison's data is no name.
        on_event: called as the trials go on.
    """
    place = place or Place()
    check_device(comparison.device)
    inputs = Inputs(comparison.model if model is None else model, comparison, data)
    study = inputs.make_study(check=True)
    pinned = pin_modules(comparison)
    comparison = dataclasses.replace(pinned, model_digest=inputs.hash_model(study))
    inputs = dataclasses.replace(inputs, comparison=comparison)
    study = dataclasses.replace(study, comparison=comparison)
    store = Store(Path(out))
    store.check(comparison, study.data.digest)
    if not place.is_inline:
        inputs.make_work().check()
    session = Session(study, inputs, store, place, on_event)
    return session.run()
