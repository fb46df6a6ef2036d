"""Compare plugged variants with a baseline, from the specification to the verdict."""

import contextlib
import dataclasses
import functools
import hashlib
import inspect
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from torchplug.analysis import count_flops, count_parameters
from torchplug.comparison.arms import (
    MakeModel,
    Study,
    build_base,
    hash_weights,
    input_channels,
    plug_variant,
)
from torchplug.comparison.data import ImageData, load_data
from torchplug.comparison.engine import Event, OnEvent, run_and_store, run_missing
from torchplug.comparison.environment import describe_environment, merge_environments
from torchplug.comparison.pool import Job, Work, check_workers
from torchplug.comparison.recipe import Recipe
from torchplug.comparison.result import ComparisonResult, summarize, to_json
from torchplug.comparison.seeds import derive_seed
from torchplug.comparison.spec import Comparison, Variant, read_seeds
from torchplug.comparison.store import SPECIFICATION, Store, read_json, write_json, write_text
from torchplug.comparison.trial import check_model
from torchplug.errors import UsageError, explain
from torchplug.hosts import build_model
from torchplug.surgery import Plan
from torchplug.surgery.plan import PlannedPlug

Cost = dict[str, Any]


def _ignore(event: Event) -> None:
    del event


def compare(
    model: str | Callable[[], nn.Module],
    plugs: Sequence[str | Variant],
    *,
    data: str = "digits",
    seeds: int | Sequence[int] = 5,
    recipe: Recipe | None = None,
    out: str | Path = "runs/comparison",
    model_options: Mapping[str, Any] | None = None,
    image_size: int | None = None,
    margin: float | None = None,
    device: str = "cpu",
    workers: int = 1,
    on_event: OnEvent = _ignore,
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
        data: ``"digits"``, ``"cifar10:ROOT"``, ``"cifar100:ROOT"`` or a folder of images.
        seeds: how many, or which. Five are a screen, ten allow a verdict.
        recipe: how all are trained.
        out: directory of the run.
        model_options: keyword arguments of the model's maker, if ``model`` is a name.
        image_size: side of the square to which the images of a folder are resized.
        margin: the smallest difference worth having, in points of accuracy; ``None`` is 0.2, or
            one standard error of the baseline if that is larger.
        device: where to train.
        workers: how many trials run at once, each in a process of its own with one thread. The
            records are the same for any number. A script needs ``if __name__ == "__main__"``.
        on_event: called as the trials go on, for a progress display.

    Returns:
        The result; printing it gives the table and the verdicts.

    Raises:
        UsageError: for a model, module, data set or directory that cannot be used; nothing is
            written then.
        PlugError: if a variant cannot be plugged into the model.
    """
    specification = Comparison(
        model=_name_model(model),
        data=data,
        variants=tuple(Variant.parse(plug) if isinstance(plug, str) else plug for plug in plugs),
        seeds=read_seeds(seeds),
        recipe=recipe or Recipe(),
        image_size=image_size,
        model_options=dict(model_options or {}),
        margin=margin,
        device=device,
    )
    _check_device(device)
    check_workers(workers)
    images = load_data(data, image_size=image_size)
    maker = _make_maker(model, specification, images)
    digest = _hash_model(model, Study(specification, images, maker))
    specification = dataclasses.replace(specification, model_digest=digest)
    store = Store(Path(out))
    store.check(specification)
    study = Study(specification, images, maker)
    work = None
    if workers > 1:
        work = Work(
            _begin_worker, (model, specification.to_json(), str(store.root)), _run_in_worker
        )
        work.check()
    plans, costs = _rehearse(study)
    with store.locked():
        store.check(specification)  # another driver may have begun and ended meanwhile
        _write_head(store, study, plans, costs)
        records = run_missing(study, store, on_event, work=work, workers=workers)
        result = summarize(specification, records, costs, store.root)
        write_text(store.root / "summary.json", to_json(result))
    return result


def _begin_worker(
    model: str | Callable[[], nn.Module], specification: str, root: str
) -> tuple[Study, Store]:
    comparison = Comparison.from_dict(json.loads(specification))
    images = load_data(comparison.data, image_size=comparison.image_size)
    return Study(comparison, images, _make_maker(model, comparison, images)), Store(Path(root))


def _run_in_worker(state: tuple[Study, Store], job: Job) -> None:
    study, store = state
    variant = next(arm for arm in study.comparison.arms if arm.name == job[0])
    run_and_store(study, store, variant, job[1])


def _name_model(model: Any) -> str:
    if isinstance(model, str):
        return model
    if isinstance(model, nn.Module) or not callable(model):
        text = explain(
            "a comparison makes a new model for each trial",
            f"one {type(model).__name__}",
            "pass a name, or a function without arguments that makes it",
        )
        raise UsageError(text)
    named = model.func if isinstance(model, functools.partial) else model
    return f"{named.__module__}:{getattr(named, '__qualname__', type(named).__qualname__)}"


def _hash_model(model: str | Callable[[], nn.Module], study: Study) -> str:
    """Hash what makes the base: source where there is one, kinds of layers, first weights."""
    base = build_base(study, study.comparison.seeds[0])
    hashed = hashlib.sha256(hash_weights(base).encode())
    for path, module in base.named_modules():
        hashed.update(f"{path} {type(module).__module__}.{type(module).__qualname__}\n".encode())
    if isinstance(model, str):
        file = Path(model.rpartition(":")[0])
        hashed.update(file.read_bytes() if file.suffix == ".py" else b"")
    else:
        with contextlib.suppress(OSError, TypeError):  # a prompt or a partial has no source
            hashed.update(inspect.getsource(model).encode())
    return hashed.hexdigest()


def _check_device(device: str) -> None:
    try:
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        fix = "pass device='cpu'"
        raise UsageError(explain("device must be there", f"{device!r} ({error})", fix)) from error


def _make_maker(
    model: str | Callable[[], nn.Module], specification: Comparison, data: ImageData
) -> MakeModel:
    if not isinstance(model, str):
        return model
    name = model

    def make() -> nn.Module:
        return build_model(
            name,
            num_classes=len(data.classes),
            in_channels=data.channels,
            options=specification.model_options,
        )

    return make


def _rehearse(study: Study) -> tuple[dict[str, Plan], dict[str, Cost]]:
    """Build and plug every variant once, before anything is written."""
    plans: dict[str, Plan] = {}
    costs: dict[str, Cost] = {}
    weights = ""
    seed = study.comparison.seeds[0]
    for variant in study.comparison.arms:
        model = build_base(study, seed)
        if not plans:
            check_model(study, model)
            weights = hash_weights(model)
        if hash_weights(model) != weights:
            text = explain(
                "the maker of a model must make a new, equal one for the same random numbers",
                f"{study.comparison.model}, whose second model differs",
                "return a new model each time, drawn from torch's, numpy's or Python's generator",
            )
            raise UsageError(text)
        base = count_parameters(model)
        reports = plug_variant(model, variant, study, seed)
        channels = input_channels(model) or study.data.channels
        planned = tuple(plug for report in reports for plug in report.plan.plugs)
        costs[variant.name] = {
            "places": _describe_places(planned),
            "parameters": count_parameters(model),
            "added": count_parameters(model) - base,
            "flops": count_flops(model, (1, channels, *study.data.shape[2:])),
        }
        plan = Plan(host=type(model).__name__, plugs=planned, seed=derive_seed("modules", seed))
        plan.to_json()  # options that no file can hold are refused before a file exists
        plans[variant.name] = plan
    return plans, costs


def _describe_places(planned: Sequence[PlannedPlug]) -> str:
    if not planned:
        return "-"
    roles = [plug.role for plug in planned]
    names = [plug.path for plug in planned]
    if set(roles) == {"named"}:
        return names[0] if len(names) == 1 else f"{len(names)} x named"
    return ", ".join(f"{roles.count(role)} x {role}" for role in dict.fromkeys(roles))


def _write_head(
    store: Store, study: Study, plans: Mapping[str, Plan], costs: Mapping[str, Cost]
) -> None:
    write_text(store.root / SPECIFICATION, study.comparison.to_json())
    for variant in study.comparison.variants:
        write_text(store.plan_path(variant), plans[variant.name].to_json())
    write_json(store.root / "costs.json", costs)
    path = store.root / "environment.json"
    now = describe_environment(study.comparison.device)
    write_json(path, merge_environments(read_json(path), now))


@dataclass(frozen=True)
class Run:
    """A finished run, read back from its directory."""

    comparison: Comparison
    result: ComparisonResult
    records: tuple[Mapping[str, Any], ...]
    plans: Mapping[str, Plan]
    environment: Mapping[str, str]
    seconds: Mapping[tuple[str, int], float]
    """Training time of each trial by variant and seed."""


def load_run(directory: str | Path) -> Run:
    """Read a run back and summarize it again.

    Raises:
        UsageError: if the directory holds no run, or trials are missing.
    """
    store = Store(Path(directory))
    content = read_json(store.root / SPECIFICATION)
    if content is None:
        fix = "name a directory that torchplug compare wrote, such as runs/demo"
        got = f"{directory} without a readable {SPECIFICATION}"
        raise UsageError(explain("a report needs the directory of a run", got, fix))
    comparison = Comparison.from_dict(content)
    records, seconds, missing = [], {}, []
    for variant, seed in comparison.trials():
        record = read_json(store.trial_path(variant, seed))
        if not isinstance(record, dict) or "status" not in record:
            missing.append(f"{variant.name} seed {seed}")
            continue
        records.append(record)
        timing = read_json(store.timing_path(variant, seed))
        if timing is not None:
            seconds[variant.name, seed] = float(timing["seconds"])
    if missing:
        fix = "run the same torchplug compare again: it does what is missing"
        raise UsageError(explain("a report needs all trials", "no " + ", ".join(missing), fix))
    plans = {
        variant.name: Plan.from_json(store.plan_path(variant).read_text(encoding="utf-8"))
        for variant in comparison.variants
    }
    costs = read_json(store.root / "costs.json")
    if costs is None:
        fix = "run the same torchplug compare again: it writes it anew"
        raise UsageError(explain("a report needs the costs", "no whole costs.json", fix))
    environment = read_json(store.root / "environment.json") or {}
    result = summarize(comparison, records, costs, store.root)
    return Run(comparison, result, tuple(records), plans, environment, seconds)
