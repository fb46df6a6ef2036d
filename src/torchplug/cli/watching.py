"""The view of a run in a second terminal."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from torchplug.cli.console import console
from torchplug.cli.display import show_time

if TYPE_CHECKING:
    from torchplug.comparison.watch import RunState

_LOOK_SECONDS = 1.0
_MOST_LINES = 8
_BAR_WIDTH = 60
_STATES = ("finished", "diverged", "failed", "running", "waiting")


def watch(run: Path, *, once: bool = False) -> None:
    """Show how far a run is until it is over; ``once`` prints one picture."""
    from torchplug.comparison.watch import Watcher

    watcher = Watcher(run)
    state = watcher.look()
    if once:
        console.print(draw(state))
        return
    follow(watcher.look, state)


def follow(look: "Callable[[], RunState]", state: "RunState") -> None:
    """Draw one state after the other until the run is over."""
    with Live(draw(state), console=console, refresh_per_second=4) as live:
        while not state.is_over:
            time.sleep(_LOOK_SECONDS)
            state = look()
            live.update(draw(state))


def draw(state: "RunState") -> RenderableType:
    """Return the picture of one moment."""
    parts: list[RenderableType] = [_head(state)]
    bar = Table.grid()  # by itself a bar does not end its line
    bar.add_row(ProgressBar(total=max(state.total, 1), completed=state.done, width=_BAR_WIDTH))
    parts.append(bar)
    parts.append(_table(state))
    for trial in state.running[:_MOST_LINES]:
        of = f"epoch {trial.epoch}/{trial.epochs}" if trial.epochs else "running"
        parts.append(Text(f"  {trial.name}  {of}  {show_time(trial.seconds)}"))
    parts += [Text(f"  {text}", style="red") for text in state.failures[-_MOST_LINES:]]
    return Group(*parts)


def _head(state: "RunState") -> Text:
    if state.is_over:
        end = "over"
    elif state.drivers == 0:
        end = "nobody works on it: run the same torchplug compare again to go on"
    else:
        workers = f"{state.drivers} driver{'s' if state.drivers > 1 else ''}"
        end = f"{len(state.running)} running, {workers}, left {show_time(state.left)}"
    return Text.assemble((state.name, "bold"), f"  {state.done} of {state.total} trials, {end}")


def _table(state: "RunState") -> Table:
    table = Table(box=None, header_style="bold", pad_edge=False)
    table.add_column("arm", overflow="fold")  # names that are cut could not be told apart
    shown = [
        name for name in _STATES if name in {"finished", "running", "waiting"} or _any(state, name)
    ]
    for name in shown:
        table.add_column(name, justify="right")
    for arm, counts in state.arms.items():
        cells = [str(counts.get(name, 0)) for name in shown]  # type: ignore[call-overload]
        table.add_row(Text(arm), *cells)
    return table


def _any(state: "RunState", name: str) -> bool:
    return any(counts.get(name, 0) for counts in state.arms.values())  # type: ignore[call-overload]
