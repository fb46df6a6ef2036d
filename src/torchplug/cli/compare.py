"""The commands that run, watch and report comparisons."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from torchplug.cli.display import ProgressDisplay, print_line, print_result
from torchplug.cli.watching import watch as watch_run
from torchplug.errors import UsageError, explain

if TYPE_CHECKING:
    from torchplug.comparison import Comparison
    from torchplug.comparison.search import Search
    from torchplug.comparison.studyfile import EngineSettings

_COMPARED = "what is compared"
_RUN = "how it is run"
_LOOK = "look, do not run"

_RunName = Annotated[
    str | None, typer.Option(help="of the run: its directory in --out", rich_help_panel=_RUN)
]


def _what(text: str, *names: str) -> Any:
    return typer.Option(*names, help=text, rich_help_panel=_COMPARED)


def _how(text: str, *names: str) -> Any:
    return typer.Option(*names, help=text, rich_help_panel=_RUN)


def compare(
    study: Annotated[
        Path | None, typer.Argument(help="a study file (TOML); or use the options below")
    ] = None,
    model: Annotated[
        str | None,
        _what(
            "torchplug:resnet8, torchvision:NAME, timm:NAME, smp:NAME, package.module:factory or "
            "path/to/file.py:factory"
        ),
    ] = None,
    plug: Annotated[
        list[str] | None,
        _what("MODULE, MODULE@PLACE or MODULE@PLACE:option=value, several with ' + '; repeat"),
    ] = None,
    data: Annotated[
        str | None,
        _what(
            "digits, a folder, torch/cifar10:ROOT, hfds/PATH, wds/SHARDS, voc/, yolo/, coco/PATH"
        ),
    ] = None,
    task: Annotated[str | None, _what("classification, segmentation or detection")] = None,
    metric: Annotated[
        str | None, _what("the one that decides; of a command its place: {out}/metrics.json:map50")
    ] = None,
    goal: Annotated[str | None, _what("max or min of the metric")] = None,
    seeds: Annotated[
        str | None, _what("how many, or which (3,5,8): 5 for a screen, 10 for a verdict")
    ] = None,
    base: Annotated[str | None, _what("scratch, trained, or the path of a checkpoint")] = None,
    recipe: Annotated[Path | None, _what("TOML file of training settings")] = None,
    epochs: Annotated[int | None, _what("instead of the recipe's")] = None,
    image_size: Annotated[int | None, _what("side to which images are resized")] = None,
    margin: Annotated[float | None, _what("smallest difference worth having")] = None,
    controls: Annotated[
        str | None, _what("for every variant, not winners only: parameters,latency,placebo")
    ] = None,
    futility: Annotated[
        bool | None, _what("stop a variant that can no longer reach the margin", "--futility")
    ] = None,
    budget: Annotated[float | None, _what("hours after which no trial is begun")] = None,
    command: Annotated[
        str | None,
        _what("a program that is the trial: 'python t.py --seed {seed} --plan {plan} --out {out}'"),
    ] = None,
    metric_file: Annotated[str | None, _what("where it leaves the metric")] = None,
    device: Annotated[str | None, _what("where to train: cpu, cuda")] = None,
    devices: Annotated[int | None, _what("of one trial, by DDP")] = None,
    rungs: Annotated[
        str | None,
        _what("search a learning rate for every arm first, on validation: epochs, such as 2,6"),
    ] = None,
    name: _RunName = None,
    out: Annotated[Path, _how("where runs are kept")] = Path("runs"),
    engine: Annotated[str | None, _how("auto, inline, pool, ray or slurm")] = None,
    address: Annotated[str | None, _how("of a Ray cluster")] = None,
    workers: Annotated[int | None, _how("trials at once, one thread or GPU each")] = None,
    lang: Annotated[str, _how("of the report: en or zh")] = "en",
    dry_run: Annotated[
        bool,
        typer.Option(
            "--dry-run",
            help="print trials, time and what can be detected",
            rich_help_panel=_LOOK,
        ),
    ] = False,
    watch: Annotated[
        Path | None,
        typer.Option(help="follow a run in a second terminal", rich_help_panel=_LOOK),
    ] = None,
    once: Annotated[
        bool, typer.Option("--once", help="with --watch: one look", rich_help_panel=_LOOK)
    ] = False,
) -> None:
    """Train a model with and without modules on paired seeds, and say what was found.

    A run that was interrupted goes on where it was when the same command is given again.
    """
    options = dict(locals())
    if watch is not None:
        _check_alone(options)
        watch_run(watch, once=once)
        return
    if lang != "en":  # which is always there; to ask for another takes seconds
        from torchplug.reporting.language import load_wording

        load_wording(lang)
    # the statistics and figures take seconds to import, which `torchplug list` need not wait for
    from torchplug.comparison.search import read_search
    from torchplug.comparison.studyfile import read_study

    content = _read(options)
    comparison, settings = read_study(content)
    search = read_search(content)
    directory = out / (name or _name_run(study, comparison))
    if dry_run:
        from torchplug.cli.preview import preview

        preview(comparison, settings, directory, search)
        return
    _run(comparison, settings, directory, lang, search)


def report(
    run: Annotated[Path, typer.Argument(help="directory of a run, such as runs/demo")],
    lang: Annotated[str, typer.Option(help="en or zh")] = "en",
) -> None:
    """Write a run's report again, and print its table."""
    from torchplug.comparison import load_run
    from torchplug.reporting import write_report

    path = write_report(run, lang)
    print_result(load_run(run).result)
    print_line(f"report: {path}")


_FLAGS = ("model", "plug", "data", "task", "metric", "goal", "seeds", "base", "recipe", "epochs",
          "image_size", "margin", "controls", "futility", "budget", "command", "metric_file",
          "device", "devices", "rungs")  # fmt: skip
_SETTINGS = ("engine", "address", "workers")
_SAME = ("task", "metric", "goal", "margin", "futility", "command", "metric_file", "device",
         "devices")  # fmt: skip


def _given(options: Mapping[str, Any], names: tuple[str, ...]) -> dict[str, Any]:
    return {name: options[name] for name in names if options[name] not in (None, [])}


def _check_alone(options: Mapping[str, Any]) -> None:
    others = [*_given(options, ("study", *_FLAGS, *_SETTINGS)), *["dry_run"] * options["dry_run"]]
    if others:
        got = ", ".join(f"--{name.replace('_', '-')}" for name in others)
        fix = "name the run alone: torchplug compare --watch runs/demo"
        raise UsageError(explain("--watch only looks", got, fix))


def _read(options: Mapping[str, Any]) -> dict[str, Any]:
    """Return the content of a study file, or of one that would say what the options say."""
    from torchplug.comparison.studyfile import load_content

    given = _given(options, _FLAGS)
    if options["study"] is None:
        return _set_engine(_to_content(given), options)
    if given:
        got = ", ".join(f"--{name.replace('_', '-')}" for name in given)
        fix = "write it into the study file"
        raise UsageError(explain("a study file says what is compared", got, fix))
    return _set_engine(load_content(options["study"]), options)


def _set_engine(content: dict[str, Any], options: Mapping[str, Any]) -> dict[str, Any]:
    """Let options say where it runs, whatever the study file says."""
    given = _rename(_given(options, _SETTINGS), engine="name", address="address", workers="workers")
    table = content.get("engine", {})
    table = {"name": table} if isinstance(table, str) else table
    return content | {"engine": {**table, **given}} if given else content


def _to_content(given: Mapping[str, Any]) -> dict[str, Any]:
    """Write options as a study file would."""
    from torchplug.comparison.typed import read_toml

    content: dict[str, Any] = {name: given[name] for name in _SAME if name in given}
    content["variants"] = given.get("plug", [])
    if "model" in given:
        content["model"] = {"name": given["model"], **_rename(given, base="base")}
    if "data" in given or "image_size" in given:
        content["data"] = {"name": "digits", **_rename(given, data="name", image_size="image_size")}
    if "recipe" in given or "epochs" in given:
        recipe = read_toml(given["recipe"], "epochs = 20") if "recipe" in given else {}
        content["recipe"] = recipe | _rename(given, epochs="epochs")
    if "seeds" in given:
        content["seeds"] = _read_numbers(given["seeds"], "seeds")
    if "rungs" in given:
        rungs = _read_numbers(given["rungs"], "rungs")
        content["search"] = {"rungs": rungs if isinstance(rungs, list) else [rungs]}
    if "controls" in given:
        content["controls"] = [word.strip() for word in given["controls"].split(",")]
    if "budget" in given:
        content["budget"] = {"hours": given["budget"]}
    return content


def _rename(given: Mapping[str, Any], **names: str) -> dict[str, Any]:
    return {new: given[old] for old, new in names.items() if old in given}


def _read_numbers(text: str, what: str) -> int | list[int]:
    try:
        numbers = [int(part) for part in text.split(",")]
    except ValueError as error:
        fix = "write 5, or 3,5,8"
        raise UsageError(explain(f"{what} are a number or a list", repr(text), fix)) from error
    return numbers if "," in text else numbers[0]


def _name_run(study: Path | None, comparison: "Comparison") -> str:
    if study is not None:
        return study.stem
    plugs = [variant.name for variant in comparison.variants]
    ends = (comparison.model.rpartition(":")[2], Path(comparison.data.rpartition(":")[2]).name)
    text = "-".join([ends[0], *plugs, ends[1]])
    return "".join(letter if letter.isalnum() or letter in "-_.@=" else "_" for letter in text)


def _run(
    comparison: "Comparison",
    settings: "EngineSettings",
    directory: Path,
    lang: str,
    search: "Search | None",
) -> None:
    from torchplug.comparison.run import run_comparison
    from torchplug.reporting import write_report

    place = settings.place
    if search is not None:
        from torchplug.comparison.search import tune
        from torchplug.comparison.session import Inputs

        study = Inputs(comparison.model, comparison).make_study(check=True)
        beside = directory.with_name(f"{directory.name}.search")
        comparison = tune(study, search, beside, print_line)
    with ProgressDisplay() as display:
        result = run_comparison(comparison, directory, place, on_event=display.show)
    print_result(result)
    print_line(f"report: {write_report(directory, lang)}")
