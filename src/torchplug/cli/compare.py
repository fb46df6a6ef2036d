"""The commands that run and report comparisons."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.progress import (
    BarColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Table

if TYPE_CHECKING:
    from torchplug.comparison import ComparisonResult, Event

console = Console()


def compare(
    model: Annotated[
        str,
        typer.Option(
            help="torchplug:resnet8, torchvision:NAME, timm:NAME, package.module:factory or "
            "path/to/file.py:factory"
        ),
    ],
    plug: Annotated[
        list[str],
        typer.Option(help="MODULE, MODULE@PLACE or MODULE@PLACE:option=value; repeat for more"),
    ],
    data: Annotated[
        str, typer.Option(help="digits, cifar10:ROOT, cifar100:ROOT, or a folder of images")
    ] = "digits",
    seeds: Annotated[int, typer.Option(help="5 for a screen, 10 for a verdict")] = 5,
    name: Annotated[str | None, typer.Option(help="of the run: its directory in --out")] = None,
    out: Annotated[Path, typer.Option(help="where runs are kept")] = Path("runs"),
    recipe: Annotated[Path | None, typer.Option(help="TOML file of training settings")] = None,
    epochs: Annotated[int | None, typer.Option(help="instead of the recipe's")] = None,
    image_size: Annotated[
        int | None, typer.Option(help="side to which images of a folder are resized")
    ] = None,
    margin: Annotated[
        float | None, typer.Option(help="smallest difference worth having, in points")
    ] = None,
    device: Annotated[str, typer.Option(help="where to train")] = "cpu",
    workers: Annotated[int, typer.Option(help="trials at once, one process and thread each")] = 1,
) -> None:
    """Train a model with and without modules on paired seeds, and say what was found.

    A run that was interrupted goes on where it was when the same command is given again.
    """
    # the statistics and figures take seconds to import, which `torchplug list` need not wait for
    from torchplug.comparison import Recipe
    from torchplug.comparison import compare as run_comparison
    from torchplug.reporting import write_report

    settings = Recipe.load(recipe) if recipe is not None else Recipe()
    if epochs is not None:
        settings = Recipe.from_dict({**vars(settings), "epochs": epochs})
    directory = out / (name or _name_run(model, plug, data))
    with _ProgressDisplay() as display:
        result = run_comparison(
            model,
            plug,
            data=data,
            seeds=seeds,
            recipe=settings,
            out=directory,
            image_size=image_size,
            margin=margin,
            device=device,
            workers=workers,
            on_event=display.show,
        )
    print_result(result)
    console.print(f"report: {write_report(directory)}", soft_wrap=True, highlight=False)


def report(
    run: Annotated[Path, typer.Argument(help="directory of a run, such as runs/demo")],
) -> None:
    """Write a run's report.html again and print its table."""
    from torchplug.comparison import load_run
    from torchplug.reporting import write_report

    path = write_report(run)
    print_result(load_run(run).result)
    console.print(f"report: {path}", soft_wrap=True, highlight=False)


def _name_run(model: str, plugs: list[str], data: str) -> str:
    parts = [model.rpartition(":")[2], *plugs, Path(data.rpartition(":")[2]).name]
    text = "-".join(parts)
    return "".join(letter if letter.isalnum() or letter in "-_.@=" else "_" for letter in text)


class _ProgressDisplay:
    """A bar over the epochs of all trials, with the trial that runs and the time left."""

    def __init__(self) -> None:
        self._progress = Progress(
            TextColumn("[bold]{task.fields[done]}[/bold]/{task.fields[trials]} trials"),
            BarColumn(bar_width=30),
            TextColumn("{task.fields[running]}"),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            console=console,
        )
        self._task: TaskID | None = None
        self._epochs = 1

    def __enter__(self) -> "_ProgressDisplay":
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    def show(self, event: "Event") -> None:
        """Follow one event of the comparison."""
        if event.kind == "begin":
            self._begin(event)
        elif self._task is None:
            return
        elif event.kind == "redo":
            self._progress.console.print(f"{event.trial}: its record is not usable, run again")
        elif event.kind in {"start", "epoch", "end"}:
            done = event.done * self._epochs + (event.epoch if event.kind == "epoch" else 0)
            self._progress.update(self._task, completed=done, done=event.done, running=event.trial)
        if event.kind == "end" and event.status != "finished":
            self._progress.console.print(f"{event.trial}: {event.status}")

    def _begin(self, event: "Event") -> None:
        if event.done:
            console.print(f"{event.done} of {event.total} trials are there from an earlier run")
        self._epochs = max(event.epochs, 1)
        self._task = self._progress.add_task(
            "",
            total=event.total * self._epochs,
            completed=event.done * self._epochs,
            done=event.done,
            trials=event.total,
            running="",
        )
        self._progress.start()


def print_result(result: "ComparisonResult") -> None:
    """Print the table, the verdicts, and what the sample can show."""
    table = Table(box=None, header_style="bold", pad_edge=False)
    for column in ("variant", "plugged", "params", "MFLOPs", "accuracy %", "difference", "p"):
        numeric = column in {"params", "MFLOPs", "p"}
        table.add_column(column, justify="right" if numeric else "left")
    for row in result.rows:
        d = row.difference
        table.add_row(
            row.variant,
            row.places,
            f"{row.parameters:,}",
            f"{row.flops / 1e6:.2f}",
            f"{row.mean:.2f} [{row.interval.low:.2f}, {row.interval.high:.2f}]",
            f"{d.mean:+.2f} [{d.interval.low:+.2f}, {d.interval.high:+.2f}]" if d else "-",
            f"{d.p_corrected:.2g}" if d else "-",
        )
    console.print()
    console.print(table)
    console.print(
        "[dim]accuracy and difference in points with 95 % intervals, over "
        f"{len(result.seeds)} paired seeds; p corrected by Holm[/dim]\n"
    )
    for row in result.rows:
        if row.verdict is not None:
            console.print(f"[bold]{row.variant}[/bold]  {row.verdict.sentence}", highlight=False)
    for seed, reason in result.dropped.items():
        console.print(f"seed {seed} was left out for all variants: {reason}", highlight=False)
    console.print(f"\n{result.note}\n", highlight=False)
