"""The command that runs one trial again."""

from pathlib import Path
from typing import Annotated

import typer

from torchplug.cli.display import print_line


def repeat(
    run: Annotated[Path, typer.Argument(help="directory of a run, such as runs/demo")],
    variant: Annotated[str, typer.Argument(help="an arm of the run: se, baseline, …")],
    seed: Annotated[int, typer.Argument(help="one of the run's seeds")],
    out: Annotated[
        Path | None, typer.Option(help="a new folder; beside the run if not named")
    ] = None,
) -> None:
    """Train one trial of a run again, and compare its record with the first one."""
    from torchplug.comparison.repeat import repeat_trial

    folder = out or run.with_name(f"{run.name}-repeat-{seed}")
    repetition = repeat_trial(run, variant, seed, folder)
    value = repetition.record.get("value")
    print_line(f"{variant}, seed {seed}: {repetition.record['status']}, {value}")
    if repetition.differs:
        print_line(f"not as before: {', '.join(repetition.differs)}")
        raise typer.Exit(1)
    print_line(f"equal to the first record, byte by byte: {repetition.folder / 'record.json'}")
