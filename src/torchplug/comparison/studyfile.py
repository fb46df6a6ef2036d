"""A comparison as a TOML file: what a user writes, read into the specification.

    task = "segmentation"
    seeds = 5

    [model]
    name = "smp:Unet"
    options = { encoder_name = "resnet18" }

    [data]
    name = "digits"

    [[variants]]
    module = "cbam"
    at = ["bottleneck", "stage"]     # a list is a grid: one variant each
    options = { reduction = [8, 16] }

A path in the file is relative to the folder where the command runs. Nothing that a file names is
imported or run by reading it.
"""

import dataclasses
import itertools
import typing
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

from torchplug.catalog import get_card
from torchplug.comparison.engines import EngineName, Place
from torchplug.comparison.recipe import Recipe
from torchplug.comparison.spec import Comparison, Variant, read_seeds
from torchplug.comparison.typed import (
    check_fields,
    check_keys,
    check_table,
    check_value,
    fits,
    hints_of,
    join,
    read_toml,
)
from torchplug.errors import TorchplugError, UsageError, explain
from torchplug.hosts import load_maker
from torchplug.surgery.plan import Start
from torchplug.surgery.request import Request

OWN_SCRIPT = "command"
"""What stands for model and data where a program of the user's own is the trial."""


@dataclass(frozen=True, kw_only=True)
class EngineSettings:
    """Where and how many trials run at once: no number of a record depends on it."""

    name: EngineName = "auto"
    """``auto`` is Ray if there is an address, the pool for several workers, else inline."""

    workers: int | None = None
    address: str | None = None
    """Of a Ray cluster that is there, or ``local`` for Slurm's jobs on this machine."""

    options: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    """What one trial asks of a cluster, such as ``num_gpus = 0.5`` or ``slurm_partition``."""

    @property
    def place(self) -> Place:
        """Where the trials of a comparison run.

        Raises:
            UsageError: if the settings contradict each other.
            MissingExtra: if the engine's package is not installed.
        """
        return Place(
            engine=self.name,
            workers=self.workers,
            address=self.address or None,
            options=dict(self.options),
        )


_SIMPLE = ("task", "metric", "goal", "margin", "controls", "futility", "device", "devices")
_COMMAND = ("command", "metric_file")
_TABLES = ("model", "data", "recipe", "variants", "budget", "seeds", "engine", "search")
KEYS = (*_TABLES, *_SIMPLE, *_COMMAND)
_VARIANT = ("name", "plugs", "module", "at", "options", "start", "stages", "every")
_PLUG = _VARIANT[2:]


def load_study(path: str | Path) -> tuple[Comparison, EngineSettings]:
    r"""Read a study file.

    Args:
        path: a TOML file; ``examples/`` has one of each kind.

    Returns:
        The specification, and how its trials are run.

    Raises:
        UsageError: if the file cannot be read, has an unknown key (the nearest is named) or a
            value of another type (its path is named), or no comparison can be made of it.

    >>> import pathlib, tempfile
    >>> text = 'model = "torchplug:resnet8"\nvariants = ["se", "cbam@stage"]\nseeds = 3'
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     file = pathlib.Path(folder, "study.toml")
    ...     _ = file.write_text(text)
    ...     comparison, settings = load_study(file)
    >>> [variant.name for variant in comparison.variants], comparison.seeds
    (['se', 'cbam@stage'], (0, 1, 2))
    """
    return read_study(load_content(path))


def load_content(path: str | Path) -> dict[str, Any]:
    """Read a study file without holding it to anything: see :func:`read_study`.

    Raises:
        UsageError: if it is not there, cannot be read, or is no TOML.
    """
    return read_toml(path, "seeds = 5")


def read_study(content: Mapping[str, Any]) -> tuple[Comparison, EngineSettings]:
    """Make a comparison of the content of a study file: see :func:`load_study`."""
    check_keys(content, KEYS)
    simple = _pick(content, Comparison, (*_SIMPLE, *_COMMAND))
    settings = _read_engine(content.get("engine", {}))
    command = "command" in simple
    if "metric_file" in simple and not command:
        fix = "name the program with command, or leave metric_file out"
        raise UsageError(explain("metric_file belongs to a command", "no command", fix))
    comparison = Comparison(
        **_read_model(content, command=command),
        **_read_data(content, command=command),
        **_read_budget(content),
        **read_metric(simple),
        recipe=_read_recipe(content, simple.get("task", "classification"), command=command),
        variants=read_variants(content.get("variants", [])),
        seeds=_read_seeds(content.get("seeds", 5)),
    )
    comparison.to_json()  # dates and the like are refused here
    return comparison, settings


def _pick(content: Mapping[str, Any], kind: Any, names: Sequence[str]) -> dict[str, Any]:
    hints = typing.get_type_hints(kind)
    return {
        name: check_value(content[name], hints[name], name) for name in names if name in content
    }


def _read_engine(content: Any) -> EngineSettings:
    table = _as_table(content, "engine")
    return EngineSettings(**check_fields(table, EngineSettings, "engine"))


def read_metric(simple: Mapping[str, Any]) -> dict[str, Any]:
    """Let ``metric`` be the place of a command's metric: ``{out}/metrics.json:map50``."""
    fields = dict(simple)
    metric = fields.get("metric", "")
    if fields.get("command") and ":" in metric and not fields.get("metric_file"):
        fields["metric_file"] = metric
        del fields["metric"]
    if fields.get("metric_file") and not fields.get("metric"):
        fields["metric"] = fields["metric_file"].rpartition(":")[2]
    return fields


def _read_model(content: Mapping[str, Any], *, command: bool) -> dict[str, Any]:
    if "model" not in content:
        if command:
            return {"model": OWN_SCRIPT}
        fix = 'write model = "torchvision:resnet18", or a [model] table'
        raise UsageError(explain("a study names its model", "no model", fix))
    table = _as_table(content["model"], "model")
    check_keys(table, ("name", "options", "base"), "model")
    fields = {"model": check_value(table.get("name"), str, "model.name")}
    if "options" in table:
        fields["model_options"] = check_table(table["options"], "model.options")
    if "base" in table:
        fields["base"] = check_value(table["base"], str, "model.base")
    return fields


def _read_data(content: Mapping[str, Any], *, command: bool) -> dict[str, Any]:
    table = _as_table(content.get("data", OWN_SCRIPT if command else "digits"), "data")
    check_keys(table, ("name", "image_size", "options"), "data")
    fields = {"data": check_value(table.get("name"), str, "data.name")}
    if "image_size" in table:
        fields["image_size"] = check_value(table["image_size"], int, "data.image_size")
    if "options" in table:
        fields["data_options"] = check_table(table["options"], "data.options")
    return fields


def _as_table(value: Any, path: str) -> dict[str, Any]:
    return {"name": value} if isinstance(value, str) else check_table(value, path)


def _read_budget(content: Mapping[str, Any]) -> dict[str, Any]:
    if "budget" not in content:
        return {}
    table = check_table(content["budget"], "budget")
    check_keys(table, ("hours",), "budget")
    hours = check_value(table.get("hours"), float, "budget.hours")
    if not hours > 0:
        raise UsageError(explain("budget.hours is above 0", repr(hours), "raise it"))
    return {"budget_hours": float(hours)}


def _read_recipe(content: Mapping[str, Any], task: str, *, command: bool) -> Recipe:
    if command and "recipe" in content:
        fix = "put the settings into the command"
        raise UsageError(explain("a command has its own recipe", "[recipe]", fix))
    return make_recipe(task, check_fields(content.get("recipe", {}), Recipe, "recipe"))


def make_recipe(task: str, changes: Mapping[str, Any]) -> Recipe:
    """Return the recipe of a task with some settings of the user's own."""
    return Recipe.for_task(task, **changes)


def _read_seeds(seeds: Any) -> tuple[int, ...]:
    return read_seeds(check_value(seeds, int | tuple[int, ...], "seeds"))


def read_variants(entries: Any) -> tuple[Variant, ...]:
    """Read variants: texts such as ``"cbam@stage"``, or tables; lists in a table are a grid.

    >>> [v.name for v in read_variants([{"module": "se", "at": ["block", "stage"]}])]
    ['se@block', 'se@stage']
    """
    if not isinstance(entries, list):
        fix = 'write variants = ["se", "cbam@stage"], or [[variants]] tables'
        raise UsageError(explain("variants is a list", repr(entries), fix))
    return tuple(
        variant
        for index, entry in enumerate(entries)
        for variant in read_variant(entry, f"variants[{index}]")
    )


def read_variant(entry: Any, path: str) -> Iterator[Variant]:
    """Yield the variants that one text or table stands for; errors name its path."""
    if isinstance(entry, str):
        yield _located(path, Variant.parse, entry)
    else:
        yield from _read_grid(check_table(entry, path), path)


def _located(path: str, function: Any, *args: Any) -> Any:
    """Call a reader that knows no path, and name the path in its error."""
    try:
        return function(*args)
    except TorchplugError as error:
        raise UsageError(f"{path}: {error}") from error


def _read_grid(table: Mapping[str, Any], path: str) -> Iterator[Variant]:
    check_keys(table, _VARIANT, path)
    name = check_value(table.get("name", ""), str, join(path, "name"))
    entries = table.get("plugs", [{key: table[key] for key in _PLUG if key in table}])
    if "plugs" in table and any(key in table for key in _PLUG):
        fix = "move the module into plugs"
        raise UsageError(explain(f"{path} has plugs or one module, not both", "both", fix))
    if not isinstance(entries, list) or not entries:
        fix = 'write plugs = ["se", { module = "cbam", at = "stage" }]'
        raise UsageError(explain(f"{path}.plugs is a list", repr(entries), fix))
    places = [
        f"{path}.plugs[{index}]" if "plugs" in table else path for index in range(len(entries))
    ]
    choices = [list(_expand(entry, place)) for entry, place in zip(entries, places, strict=True)]
    for chosen in itertools.product(*choices):
        requests = tuple(request for request, _ in chosen)
        varied = ", ".join(label for _, label in chosen if label)
        own = f"{name}: {varied}" if varied else name
        yield Variant(name=own if name else " + ".join(map(str_of, requests)), plugs=requests)


def _expand(entry: Any, path: str) -> Iterator[tuple[Request, str]]:
    """Yield the requests that one plug's table stands for, each with what varies in it."""
    if isinstance(entry, str):
        yield _located(path, Request.parse, entry), ""
        return
    table = check_table(entry, path)
    check_keys(table, _PLUG, path)
    for module in _each(table.get("module"), str, join(path, "module")):
        factory = _located(join(path, "module"), _find_factory, module)
        axes = dict(_axes(table, hints_of(factory), path))
        if isinstance(table["module"], list):
            axes = {"module": [module], **axes}
        for values in itertools.product(*axes.values()):
            point = dict(zip(axes, values, strict=True))
            yield _make_request(module, table, point), _label(point, axes, table)


def _find_factory(module: str) -> Any:
    """Return the class of a key of the catalogue, or a class of the user's own."""
    return load_maker(module) if ":" in module else get_card(module).factory


def _axes(
    table: Mapping[str, Any], hints: Mapping[str, Any], path: str
) -> Iterator[tuple[str, list[Any]]]:
    """Yield the values that each field of a plug takes in the grid."""
    kinds = {"at": str, "start": Literal[get_args(Start)], "stages": tuple[int, ...], "every": int}
    for field, kind in kinds.items():
        if field in table:
            yield field, _each(table[field], kind, join(path, field))
    options = check_table(table.get("options", {}), join(path, "options"))
    check_keys(options, hints, join(path, "options"))
    for name, value in options.items():
        yield f"options.{name}", _each(value, hints[name], f"{path}.options.{name}")


def _each(value: Any, hint: Any, path: str) -> list[Any]:
    """Return the values of an axis: one that fits is one, a list of such is several."""
    if isinstance(value, list) and value and not fits(value, hint):
        return [check_value(item, hint, f"{path}[{index}]") for index, item in enumerate(value)]
    return [check_value(value, hint, path)]


def _make_request(module: str, table: Mapping[str, Any], point: Mapping[str, Any]) -> Request:
    options = {name: point[f"options.{name}"] for name in table.get("options", {})}
    fields = {name: point[name] for name in ("at", "start", "stages", "every") if name in point}
    return Request(module=module, options=options, **fields)


def _label(point: Mapping[str, Any], axes: Mapping[str, Any], table: Mapping[str, Any]) -> str:
    is_list = isinstance(table["module"], list)
    varied = [name for name in point if len(axes[name]) > 1 or (name == "module" and is_list)]
    return ", ".join(f"{name.removeprefix('options.')}={_text(point[name])}" for name in varied)


def str_of(request: Request) -> str:
    """Write a request as a command line would: the name of a variant that has none.

    >>> str_of(Request(module="cbam", at="stage", options={"reduction": 8}, stages=(2, 3)))
    'cbam@stage:reduction=8 stages=2,3'
    """
    text = request.module + (f"@{request.at}" if request.at else "")
    if request.options:
        text += ":" + ",".join(f"{name}={_text(value)}" for name, value in request.options.items())
    if request.start != "identity":
        text += f" start={request.start}"
    if request.stages is not None:
        text += f" stages={_text(request.stages)}"
    return text if request.every is None else f"{text} every={request.every}"


def _text(value: Any) -> str:
    return ",".join(map(str, value)) if isinstance(value, (list, tuple)) else str(value)
