"""The command line: each command a thin call of the library."""

import sys

from torchplug.errors import TorchplugError, import_extra


def main() -> None:
    """Run the command that ``sys.argv`` names; errors of use end with one line and status 2."""
    try:
        import_extra("typer", extra="cli", purpose="the command line")
        from torchplug.cli.app import app

        app()
    except TorchplugError as error:
        print(f"torchplug: {error}", file=sys.stderr)
        raise SystemExit(2) from None
