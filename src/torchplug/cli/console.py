"""Where every command prints."""

from rich.console import Console

console = Console()
