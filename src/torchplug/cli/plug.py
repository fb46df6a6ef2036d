"""The commands that plug a model and check a file of plugs."""

import os
import re
import sys
import warnings
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from rich.table import Table
from torch import nn

from torchplug.cli.console import console
from torchplug.errors import PlugError, TorchplugError, UsageError, explain, import_extra
from torchplug.hosts import build_model
from torchplug.surgery import draw as draw_model
from torchplug.surgery import load, save
from torchplug.surgery import plug as plug_model
from torchplug.surgery.checkpoint import OTHER_BASE, LoadReport
from torchplug.surgery.drawing import check_path
from torchplug.surgery.plan import Plan
from torchplug.surgery.request import Request

MODEL_HELP = (
    "torchvision:NAME, timm:NAME, smp:NAME, package.module:factory or path/to/file.py:factory"
)
_Model = Annotated[str, typer.Argument(help=MODEL_HELP)]
_Shape = Annotated[str, typer.Option(help="shape of an example input")]
_Weights = Annotated[
    Path | None,
    typer.Option(help="the base's weights: a .safetensors file, or a state dict of torch.save"),
]


def plug(
    model: _Model,
    plug: Annotated[
        list[str],
        typer.Option(help="MODULE, MODULE@PLACE or MODULE@PLACE:option=value; repeat for more"),
    ],
    at: Annotated[
        str | None, typer.Option(help="place of the modules that name none of their own")
    ] = None,
    stages: Annotated[str | None, typer.Option(help="only these stages, such as 2,3")] = None,
    every: Annotated[int | None, typer.Option(help="every n-th site of a stage")] = None,
    start: Annotated[
        str,
        typer.Option(
            help="identity: the output is unchanged; seeded: from the old kernel; "
            "paper: as the authors start it"
        ),
    ] = "identity",
    seed: Annotated[int, typer.Option(help="of the modules' initial weights")] = 0,
    shape: _Shape = "1,3,224,224",
    weights: _Weights = None,
    save_as: Annotated[
        Path | None, typer.Option("--save", help="write the plugs into this .safetensors file")
    ] = None,
    draw: Annotated[
        Path | None, typer.Option(help="draw the plugged model into this .svg file")
    ] = None,
) -> None:
    """Put modules into a model, and print what happened.

    The file of --save holds the plan and the plugs' weights, nothing of the model:
    torchplug.load(model, file) in Python, or the command check, puts them into a fresh one.
    """
    requests = [Request.parse(text) for text in plug]
    numbers = None if stages is None else read_numbers(stages, "stages", "2,3")
    example = read_shape(shape)
    _check_targets(save_as, draw)
    host = _build(model, weights)
    reports = [
        plug_model(
            host,
            request.module,
            request.at or at,
            example=example,
            start=start,  # type: ignore[arg-type]
            stages=numbers,
            every=every,
            seed=seed,
            **request.options,
        )
        for request in requests
    ]
    for report in reports:
        console.print(str(report), highlight=False, markup=False, soft_wrap=True)
    if save_as is not None:
        path = save(host, save_as)
        console.print(f"saved {path} ({path.stat().st_size:,} bytes)", highlight=False)
    if draw is not None:
        draw_model(host, example, path=draw)
        console.print(f"drew {draw}", highlight=False)


def _check_targets(save_as: Path | None, draw: Path | None) -> None:
    """Refuse what could not be written in the end, before a model is built and plugged."""
    if save_as is not None:
        _import_safetensors("--save")
    for path in (path for path in (save_as, draw) if path is not None):
        fix = "name a file in a folder that exists and can be written"
        if path.is_dir() or not path.parent.is_dir():
            got = "a folder" if path.is_dir() else f"no folder {path.parent}"
            raise UsageError(explain(f"{path} must be writable", got, fix))
        if not os.access(path if path.exists() else path.parent, os.W_OK):
            raise UsageError(explain(f"{path} must be writable", "a refusal", fix))
    if save_as is not None and draw is not None and save_as.resolve() == draw.resolve():
        fix = "name two files"
        raise UsageError(explain("--save and --draw write a file each", str(draw), fix))
    if draw is not None:
        check_path(draw)


def _import_safetensors(purpose: str) -> Any:
    return import_extra("safetensors.torch", extra="files", purpose=purpose)


def check(
    model: _Model,
    file: Annotated[Path, typer.Argument(help="a file that plug --save or torchplug.save wrote")],
    shape: _Shape = "1,3,224,224",
    weights: _Weights = None,
) -> None:
    """Load a file of plugs into a fresh model, run it, and print what is there.

    Ends with status 1 if the file is damaged, fits another model, or does not run.
    """
    example = read_shape(shape)
    _import_safetensors("a file of plugs")
    host = _build(model, weights)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", re.escape(OTHER_BASE))  # the report has a line of it
            report = load(host, file, example=example)
    except (UsageError, PlugError) as error:
        print(f"torchplug: {' '.join(str(error).split())}", file=sys.stderr)
        raise typer.Exit(1) from None
    text = "\n".join([str(report), *_explain_base(report, weights)])
    console.print(text, highlight=False, markup=False, soft_wrap=True)
    console.print(_list_plugs(report.plan))


def _explain_base(report: LoadReport, weights: Path | None) -> list[str]:
    """Say what other base weights mean where this command built the base itself."""
    if report.same_base or weights is not None:
        return []
    text = "a model that is built by its name has random weights, so other ones are expected; pass"
    return [f"  note               {text} --weights to compare the base's own"]


def _list_plugs(plan: Plan) -> Table:
    table = Table(box=None, header_style="bold", pad_edge=False)
    for column in ("place", "name", "module", "channels", "start", "options"):
        table.add_column(column, justify="right" if column == "channels" else "left", no_wrap=True)
    for planned in plan.plugs:
        options = ", ".join(f"{name}={value!r}" for name, value in planned.options.items())
        cells = (planned.path, planned.name, planned.module, str(planned.channels), planned.start)
        table.add_row(*cells, options or "-")
    return table


def _build(name: str, weights: Path | None) -> nn.Module:
    state = None if weights is None else _read_weights(weights)
    model = build_model(name)
    if state is not None:
        try:
            model.load_state_dict(state, strict=True)
        except (RuntimeError, AttributeError, TypeError) as error:
            got = " ".join(str(error).split())
            fix = "name the model that these weights are of"
            raise UsageError(explain(f"{weights} must fit {name}", got, fix)) from error
    return model


def _read_weights(path: Path) -> Any:
    try:
        if path.suffix == ".safetensors":
            return _import_safetensors("a .safetensors file").load_file(path)
        return torch.load(path, map_location="cpu", weights_only=True)
    except TorchplugError:
        raise
    except Exception as error:  # the two readers raise types of their own
        got = f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else path}"
        fix = "name a .safetensors file or a state dict that torch.save wrote"
        raise UsageError(explain(f"the weights {path} must be readable", got, fix)) from error


def read_shape(text: str) -> tuple[int, ...]:
    """Read ``1,3,224,224`` or ``1x3x224x224``."""
    return read_numbers(text.replace("x", ","), "a shape", "1,3,224,224")


def read_numbers(text: str, what: str, example: str) -> tuple[int, ...]:
    """Read numbers with commas between them."""
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError:
        fix = f"write it like {example}"
        raise UsageError(explain(f"{what} is a list of numbers", repr(text), fix)) from None
