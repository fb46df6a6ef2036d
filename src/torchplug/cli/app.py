"""The application and its commands about modules and models."""

from typing import Annotated

import typer
from rich.table import Table

from torchplug._version import __version__
from torchplug.card import Card
from torchplug.catalog import cards, get_card
from torchplug.cli.compare import compare, report
from torchplug.cli.console import console
from torchplug.cli.plug import MODEL_HELP, check, plug, read_shape
from torchplug.cli.repeat import repeat
from torchplug.errors import UsageError, count, explain
from torchplug.hosts import build_model
from torchplug.surgery import find_sites

COST_WIDTHS = (64, 256, 512)
COST_SIZE = 28

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    help="Put a module from the literature into a network that already exists, and learn "
    "honestly whether it helped.",
)


def _print_version(value: bool) -> None:
    if value:
        print(__version__)
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="and exit")
    ] = False,
) -> None:
    pass


@app.command("list", epilog="Example: [bold]torchplug list[/bold]")
def list_modules() -> None:
    """List the modules of the catalogue."""
    table = Table(box=None, header_style="bold", pad_edge=False)
    for column in ("key", "module", "kind", "where its paper puts it", "published"):
        table.add_column(column)
    for card in cards().values():
        published = f"{card.paper.venue} {card.paper.year}"
        table.add_row(card.key, card.title, card.kind, str(card.place), published)
    console.print(table)


@app.command(epilog="Example: [bold]torchplug show cbam[/bold]")
def show(key: Annotated[str, typer.Argument(help="a key of the catalogue")]) -> None:
    """Show what a module is, where its paper puts it, and what it costs."""
    card = get_card(key)
    facts = Table.grid(padding=(0, 2))
    facts.add_column(style="bold", no_wrap=True)
    facts.add_column()
    start = "the identity" if card.identity_at_start else "not the identity: plug adds a gate of 0"
    for name, value in (
        ("class", f"torchplug.{card.factory.__name__}"),
        ("what it does", card.summary),
        ("equation", card.equation),
        (
            "paper",
            f"{card.paper.authors}: {card.paper.title}, {card.paper.venue} {card.paper.year}",
        ),
        ("", card.paper.url),
        ("official code", card.paper.code),
        ("where", f"{card.place} ({card.place.note})"),
        ("starts as", start),
        ("least width", f"{count(card.min_channels, 'channel')} with default options"),
        *((("deviation"), deviation) for deviation in card.deviations),
    ):
        facts.add_row(name, value, style=None)
    console.print(f"[bold]{card.key}[/bold]  {card.title}")
    console.print(facts, highlight=False, markup=False)
    console.print(_cost_table(card))


def _cost_table(card: Card) -> Table:
    title = f"cost on a map of {COST_SIZE} x {COST_SIZE}, batch 1, default options"
    table = Table(title=title, title_justify="left", box=None, header_style="bold", pad_edge=False)
    for column in ("channels", "parameters", "MFLOPs (2 per multiply-add)"):
        table.add_column(column, justify="right")
    for channels in COST_WIDTHS:
        args = (channels,) * len(card.samples[0].args)
        module = card.factory(*args, device="meta")
        parameters = sum(p.numel() for p in module.parameters())
        flops = card.flops(module, (1, channels, COST_SIZE, COST_SIZE))
        table.add_row(f"{channels}", f"{parameters:,}", f"{flops / 1e6:,.2f}")
    return table


@app.command(epilog="Example: [bold]torchplug sites torchvision:resnet50[/bold]")
def sites(
    model: Annotated[
        str,
        typer.Argument(help=MODEL_HELP),
    ],
    shape: Annotated[str, typer.Option(help="shape of an example input")] = "1,3,224,224",
    role: Annotated[str | None, typer.Option(help="show the sites of one role only")] = None,
) -> None:
    """Show the places of a model where a module can go, by role."""
    found = find_sites(build_model(model), read_shape(shape))
    if role is not None:
        if role not in found.roles:
            known = ", ".join(found.roles)
            raise UsageError(explain("a role must have a site", repr(role), f"choose from {known}"))
        found = found.with_role(role)
    table = Table(box=None, header_style="bold", pad_edge=False)
    for column in ("role", "path", "stage", "channels", "stride", "H x W", "runs", "source"):
        numeric = column in {"stage", "channels", "stride", "runs"}
        table.add_column(column, justify="right" if numeric else "left", no_wrap=True)
    for site in found:
        size = f"{site.size[0]} x {site.size[1]}"
        stage = "-" if site.stage is None else str(site.stage)
        cells = (stage, str(site.channels), str(site.stride), size, str(site.runs))
        table.add_row(site.role, site.path, *cells, site.source)
    console.print(table)


_PLUG = "torchplug plug torchvision:resnet50 --plug se --plug bam@stage --save plugs.safetensors"
app.command(epilog=f"Example: [bold]{_PLUG}[/bold]")(plug)
_CHECK = "torchplug check torchvision:resnet50 plugs.safetensors"
app.command(epilog=f"Example: [bold]{_CHECK}[/bold]")(check)
_COMPARE = "torchplug compare --model torchplug:resnet8 --plug se --plug cbam@stage --seeds 5"
app.command(epilog=f"Example: [bold]{_COMPARE}[/bold]")(compare)
app.command(epilog="Example: [bold]torchplug report runs/demo[/bold]")(report)
app.command(epilog="Example: [bold]torchplug repeat runs/demo se 0[/bold]")(repeat)
