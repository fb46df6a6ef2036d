"""What a comparison ran on: versions and hardware, for the report."""

import os
import platform
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

_PACKAGES = (
    "torchplug",
    "torch",
    "torchvision",
    "lightning",
    "torchmetrics",
    "timm",
    "numpy",
    "scipy",
    "statsmodels",
)


def describe_environment(device: str) -> dict[str, str]:
    """Return versions and hardware as names and texts; nothing here decides a number."""
    found = {
        "python": sys.version.split()[0],
        **{name: _version(name) for name in _PACKAGES},
        "system": f"{platform.system()} {platform.machine()}",
        "processor": _processor(),
        "cores": str(os.cpu_count()),
        "device": device,
        "threads a trial": "1",
        "deterministic algorithms": "yes",
    }
    if not device.startswith("cpu"):
        # kernels without a deterministic form are used as they are, see seeds.deterministic
        found["deterministic algorithms"] = "where the device has them"
    if device.startswith("cuda"):
        found["gpu"] = torch.cuda.get_device_name(device)
    commit = _git_commit()
    return found | ({"git commit of the working folder": commit} if commit else {})


def merge_environments(first: dict[str, str] | None, now: dict[str, str]) -> dict[str, str]:
    """Return the environment of a run; what differed when it was resumed is kept beside it.

    >>> merge_environments({"torch": "2.9"}, {"torch": "2.10"})
    {'torch': '2.9', 'changed on resuming': 'torch: 2.9 -> 2.10'}
    """
    if first is None:
        return now
    note = "changed on resuming"
    changes = [
        f"{name}: {first.get(name, 'none')} -> {value}"
        for name, value in now.items()
        if first.get(name) != value
    ]
    told = [text for text in first.get(note, "").split("; ") if text]
    told += [change for change in changes if change not in told]
    return first | ({note: "; ".join(told)} if told else {})


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "not installed"


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() or "unknown"
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or "unknown"


def _git_commit() -> str | None:
    command = ["git", "describe", "--always", "--dirty", "--abbrev=12"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip() or None
