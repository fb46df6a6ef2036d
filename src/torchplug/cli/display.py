"""What is shown while a comparison runs, and what is printed at its end."""

from typing import TYPE_CHECKING, Any

from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text

from torchplug.cli.console import console

if TYPE_CHECKING:
    from torchplug.comparison import ComparisonResult, Event
    from torchplug.comparison.result import Row

_BAR_WIDTH = 30


def show_time(seconds: float | None) -> str:
    """Write a duration.

    >>> show_time(None), show_time(42), show_time(3 * 3600 + 125)
    ('-', '0:42', '3:02:05')
    """
    if seconds is None:
        return "-"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


class ProgressDisplay:
    """A bar over the epochs of all trials, with a trial that runs and the time left."""

    def __init__(self) -> None:
        self._progress = Progress(
            TextColumn("[bold]{task.fields[done]}[/bold]/{task.fields[trials]} trials"),
            BarColumn(bar_width=_BAR_WIDTH),
            TextColumn("{task.fields[running]}", markup=False),
            TimeElapsedColumn(),
            TextColumn("left {task.fields[left]}"),
            console=console,
        )
        self._task: TaskID | None = None
        self._partial: dict[str, int] = {}

    def __enter__(self) -> "ProgressDisplay":
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    def show(self, event: "Event") -> None:
        """Follow one event of the comparison."""
        if self._task is None:
            self._begin(event)
        if event.kind == "epoch":
            self._partial[event.trial] = event.epoch
        elif event.kind == "end":
            self._partial.pop(event.trial, None)
        self._say(event)
        self._update(event)

    def _begin(self, event: "Event") -> None:
        if event.done:
            text = f"{event.done} of {event.total} trials are there from an earlier run"
            console.print(text, highlight=False)
        self._task = self._progress.add_task("", done=0, trials=0, running="", left="-")
        self._progress.start()

    def _update(self, event: "Event") -> None:
        if self._task is None:
            return
        epochs = max(event.epochs, 1)
        done = event.done * epochs + sum(min(each, epochs) for each in self._partial.values())
        shown: Any = {"running": event.trial} if event.kind in {"start", "epoch"} else {}
        self._progress.update(
            self._task,
            total=event.total * epochs,
            completed=done,
            done=event.done,
            trials=event.total,
            left=show_time(event.left),
            **shown,
        )

    def _say(self, event: "Event") -> None:
        from torchplug.comparison.progress import describe_step  # its package is slow to import

        if text := describe_step(event):
            self._progress.console.print(Text(text))


def print_result(result: "ComparisonResult") -> None:
    """Print the table, the controls, the verdicts, and what the sample can show."""
    console.print()
    console.print(_make_table(result, [row for row in result.rows if row.control is None]))
    unit = "percent, differences in points" if result.unit else result.metric
    console.print(
        Text(
            f"{unit}, with 95 % intervals over {len(result.seeds)} paired seeds; p corrected by "
            f"Holm over the variants; the margin is {result.margin:.3g}"
            f"{' points' if result.unit else ''}",
            style="dim",
        )
    )
    if result.controls:
        console.print(Text("\ncontrols", style="bold"))
        console.print(_make_table(result, result.controls))
    console.print()
    for row in result.rows:
        if row.verdict is not None and row.control is None:
            console.print(Text.assemble((row.variant, "bold"), "  ", row.verdict.sentence))
    for row in result.controls:
        if row.control == "again" and row.verdict is not None:
            console.print(Text.assemble((row.variant, "bold"), "  ", say_again(row)))
    for seed, reason in result.dropped.items():
        console.print(Text(f"seed {seed} was left out for all variants: {reason}"))
    console.print(Text(f"\n{result.note}\n"))


def _make_table(result: "ComparisonResult", rows: "list[Row] | tuple[Row, ...]") -> Table:
    table = Table(box=None, header_style="bold", pad_edge=False)
    names = ("variant", "plugged", "params", "MFLOPs", result.metric, "difference", "p")
    for name in names:
        numeric = name in {"params", "MFLOPs", "p"}
        # names that are cut could not be told apart
        table.add_column(Text(name), justify="right" if numeric else "left", overflow="fold")
    table.add_column("runs", justify="right")
    for row in rows:
        cells = [*result.cells(row), _describe_runs(row)]
        table.add_row(*map(Text, cells))
    return table


def _describe_runs(row: "Row") -> str:
    others = [f"{count} {status}" for status, count in row.statuses.items() if status != "finished"]
    finished = str(row.statuses.get("finished", 0))
    told = ", ".join([finished, *others])
    return f"{told} ({row.stopped})" if row.stopped else told


def say_again(row: "Row") -> str:
    """Say what the baseline against itself shows of the comparison as a whole."""
    from torchplug.comparison.verdict import judge_again

    d = row.difference
    shown = "fair" if d is None else judge_again(d)
    if d is None or shown == "fair":
        return "is not told from itself, as it should be"
    if shown == "open":
        return (
            f"differs from itself by the t test (p = {d.p:.2g}), not by the exact one (p = "
            f"{d.p_flip:.2g}): trust the verdicts above less, more seeds would tell"
        )
    return (
        f"differs from itself with other seeds (p = {d.p_corrected:.2g}), which happens by chance "
        "in 1 of 20 comparisons: trust the verdicts above less"
    )


def print_line(text: str) -> None:
    """Print one line as it is, however long."""
    console.print(text, soft_wrap=True, highlight=False, markup=False)
