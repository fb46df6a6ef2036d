"""Run the program of a trial as a process of its own, and leave none behind."""

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from torchplug.comparison.lease import identify_machine, is_running, read_start
from torchplug.comparison.store import read_json, write_json
from torchplug.errors import explain

_PROCESS = "process.json"
_PATIENCE_SECONDS = 5.0
_LONGEST = 300
_GUARD = f"""
import os, signal, sys, time
sys.stdin.buffer.read()  # until the process that runs the program is gone
for number in (signal.SIGTERM, signal.SIGKILL):
    try:
        os.killpg(int(sys.argv[1]), number)
    except OSError:
        break
    time.sleep({_PATIENCE_SECONDS})
"""
_SETTINGS = {
    # as the built-in training: the number of threads changes sums, and trials run side by side
    "OMP_NUM_THREADS": "1",
    "PYTHONHASHSEED": "0",
    "CUBLAS_WORKSPACE_CONFIG": ":4096:8",
}


def run_process(words: list[str], folder: Path) -> str:
    """Run a program to its end; return what went wrong.

    It and its children end when this process does, however that ends.

    Args:
        words: of the command.
        folder: of the trial; what is printed goes to ``logs/``.
    """
    logs = folder / "logs"
    environment = {**_SETTINGS, **os.environ}
    with (logs / "stdout.txt").open("wb") as out, (logs / "stderr.txt").open("wb") as err:
        try:
            process = subprocess.Popen(
                words,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=err,
                env=environment,
                start_new_session=True,  # its own children end with it
            )
        except OSError as error:
            fix = "check the first word of the command"
            return explain("a program must start", f"{words[0]}: {error.strerror}", fix)
        try:
            _note(process.pid, folder)
            with _guarded(process.pid):
                code = process.wait()
        finally:
            _end_group(process.pid, process)
            (folder / _PROCESS).unlink(missing_ok=True)
    return "" if code == 0 else _explain_end(code, logs / "stderr.txt")


@contextlib.contextmanager
def _guarded(pid: int) -> Iterator[None]:
    """Let a process of its own end the program's group if this one is killed.

    A pool or a cluster kills its workers, which have no time to end anything.
    """
    words = [sys.executable, "-I", "-S", "-c", _GUARD, str(pid)]
    with subprocess.Popen(words, stdin=subprocess.PIPE, start_new_session=True) as guard:
        try:
            yield
        finally:
            guard.kill()  # before its pipe closes, which is what it waits for
            guard.wait()


def _explain_end(code: int, stderr: Path) -> str:
    lines = stderr.read_text(encoding="utf-8", errors="replace").split("\n")
    last = next((line.strip() for line in reversed(lines) if line.strip()), "nothing on stderr")
    how = f"exit code {code}" if code > 0 else f"signal {signal.Signals(-code).name}"
    got = f"{how} ({last[-_LONGEST:]})"
    fix = "see logs/stderr.txt in the trial's folder"
    return explain("a program ends with exit code 0", got, fix)


def _note(pid: int, folder: Path) -> None:
    """Write down which process it is: if the driver is killed, the next one ends it."""
    content = {"pid": pid, "started": read_start(pid), "machine": identify_machine()}
    write_json(folder / _PROCESS, content, sync=False)


def end_orphan(folder: Path) -> None:
    """End the program of a driver that was killed: two must not write into one folder."""
    noted = read_json(folder / _PROCESS)
    if isinstance(noted, dict) and noted.get("machine") == identify_machine():
        pid = int(noted["pid"])
        if noted["started"] and is_running(pid, noted["started"]):
            _end_group(pid)
    (folder / _PROCESS).unlink(missing_ok=True)


def _end_group(pid: int, process: subprocess.Popen[bytes] | None = None) -> None:
    """End a program and its children: kindly, then by force."""
    deadline = time.monotonic() + _PATIENCE_SECONDS
    for number in (signal.SIGTERM, signal.SIGKILL):
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(pid, number)
            while number == signal.SIGTERM and time.monotonic() < deadline:
                if process is not None:
                    process.poll()
                os.killpg(pid, 0)  # raises when nobody is left
                time.sleep(0.05)
