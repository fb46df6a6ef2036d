"""What every measurement is stored with, and how."""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torchplug.comparison.environment import describe_environment


def describe() -> dict[str, Any]:
    """Return the versions and the hardware of a measurement, and what else the machine did."""
    load = [round(value, 1) for value in os.getloadavg()]
    return {**describe_environment("cpu"), "load before": load}


def publish(found: Mapping[str, Any], path: Path | None) -> None:
    """Print what was found as JSON, and store it where it was asked for."""
    text = json.dumps(found, indent=1) + "\n"
    print(text)
    if path is not None:
        path.write_text(text)
