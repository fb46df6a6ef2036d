"""The file of plugs: a safetensors file whose header says what the tensors are for.

    {"__metadata__": {"format": "pt", "torchplug": <JSON text>, "torchplug.digest": <SHA-256>},
     "layer1.0.bn2.torchplug.se.reduce.weight": {"dtype": "F32", "shape": …, "data_offsets": …}, …}

The JSON text holds the plan, the fingerprint of the base, a hash of the data, and versions. The
digest covers the text and the list of tensors. Both find damage, not malice: whoever writes a file
can compute them, so everything else is checked as well, and nothing from a file is ever run.
"""

import dataclasses
import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor

from torchplug._version import __version__
from torchplug.errors import UsageError, explain, import_extra
from torchplug.surgery.fingerprint import Fingerprint
from torchplug.surgery.plan import Plan
from torchplug.surgery.strict_json import parse_json

FORMAT = 1
LARGEST_HEADER = 10_000_000
CONTENT, DIGEST = "torchplug", "torchplug.digest"
DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "C64": torch.complex64,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}


@dataclass(frozen=True)
class Entry:
    """One tensor as the header announces it."""

    dtype: torch.dtype
    shape: tuple[int, ...]
    begin: int
    end: int


@dataclass(frozen=True, kw_only=True)
class PlugFile:
    """The checked header of a file of plugs; its tensors have not been read yet."""

    path: Path
    plan: Plan
    base: Fingerprint
    versions: Mapping[str, str]
    entries: Mapping[str, Entry]
    data_hash: str
    header: bytes
    """The file up to the first tensor, to know it again."""


def write_plug_file(
    path: Path, plan: Plan, base: Fingerprint, tensors: Mapping[str, Tensor]
) -> None:
    """Write the file whole or not at all; equal content gives equal bytes.

    Raises:
        UsageError: if the folder cannot be written, or a tensor cannot be stored.
        MissingExtra: if safetensors is not installed.
    """
    safetensors = _import_safetensors()
    unknown = [name for name, tensor in tensors.items() if tensor.dtype not in DTYPES.values()]
    if unknown:
        got = f"{unknown[0]} of type {tensors[unknown[0]].dtype}"
        fix = "convert the plug to a usual type first"
        raise UsageError(explain("a file of plugs holds usual types of numbers", got, fix))
    packed: bytes = safetensors.save({name: tensors[name].clone() for name in tensors})
    length = int.from_bytes(packed[:8], "little")
    entries, data = json.loads(packed[8 : 8 + length]), packed[8 + length :]
    content = {
        "format": FORMAT,
        "plan": json.loads(plan.to_json()),
        "base": dataclasses.asdict(base),
        "data": hashlib.sha256(data).hexdigest(),
        "versions": {"torchplug": __version__, "torch": torch.__version__},
    }
    header = make_header(json.dumps(content), entries)
    if len(header) > LARGEST_HEADER:
        fix = "plug fewer places, or save the whole model with torch.save"
        got = f"{len(header):,} bytes"
        raise UsageError(explain(f"a header has at most {LARGEST_HEADER:,} bytes", got, fix))
    _write_whole(path, header + data)


def make_header(content: str, entries: Mapping[str, Any]) -> bytes:
    """Return the start of a file: the length of the header and the header."""
    metadata = {"format": "pt", CONTENT: content, DIGEST: _digest(content, entries)}
    text = json.dumps({"__metadata__": metadata, **entries}, separators=(",", ":"))
    text += " " * (-len(text) % 8)  # json.dumps writes ASCII; safetensors aligns the data to 8
    return len(text).to_bytes(8, "little") + text.encode()


def _digest(content: str, entries: Mapping[str, Any]) -> str:
    text = content + "\0" + json.dumps(entries, sort_keys=True)
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def _write_whole(path: Path, data: bytes) -> None:
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:
        fix = "name a file in a folder that exists and can be written"
        raise UsageError(explain(f"{path} must be writable", str(error), fix)) from error
    finally:
        _remove(temporary)


def _remove(path: Path) -> None:
    try:
        path.unlink(missing_ok=True)
    except OSError:  # the folder is not one, or cannot be written: nothing lies there
        return


def read_plug_file(path: Path) -> PlugFile:
    """Read and check the header of a file of plugs; nothing that it names is imported or run.

    Raises:
        UsageError: if it is no whole, undamaged file of plugs.
    """
    try:
        if path.exists() and not path.is_file():
            raise ValueError("there is a folder or a device of this name")  # noqa: TRY301
        with path.open("rb") as file:
            header = _read_header(file)
            size = path.stat().st_size
        return _parse_header(path, header, size)
    except OSError as error:
        fix = "name a file that torchplug.save wrote"
        raise UsageError(explain("a file of plugs must be readable", str(error), fix)) from error
    except (AttributeError, KeyError, TypeError, ValueError, RecursionError) as error:
        if isinstance(error, UsageError):
            raise
        got = f"{path.name}, where {type(error).__name__}: {error}"
        raise UsageError(explain(_RULE, got, _FIX)) from error


_RULE = "a file of plugs is a whole safetensors file that torchplug.save wrote"
_FIX = "fetch or save the file again"


def _read_header(file: BinaryIO) -> bytes:
    start = file.read(8)
    length = int.from_bytes(start, "little")
    if len(start) < 8 or length < 2:
        raise ValueError("the file ends before its header")
    if length > LARGEST_HEADER:
        raise ValueError(f"the header claims {length:,} bytes, more than {LARGEST_HEADER:,}")
    header = file.read(length)
    if len(header) != length:
        raise ValueError("the file ends within its header")
    return start + header


def _parse_header(path: Path, header: bytes, size: int) -> PlugFile:
    listed = parse_json(header[8:].decode("utf-8"))
    metadata = listed.pop("__metadata__", None) or {}
    if CONTENT not in metadata:
        raise ValueError("the header has no plan: these are other weights")
    entries = {name: _read_entry(name, listed[name]) for name in listed}
    _check_layout(entries, size - len(header))
    if metadata.get(DIGEST) != _digest(metadata[CONTENT], listed):
        raise ValueError("the header is not as it was written")
    content = parse_json(metadata[CONTENT])
    if content["format"] != FORMAT:
        raise ValueError(f"format {content['format']!r} is unknown to torchplug {__version__}")
    return PlugFile(
        path=path,
        plan=Plan.from_json(json.dumps(content["plan"])),
        base=_read_fingerprint(content["base"]),
        versions={str(name): str(version) for name, version in content["versions"].items()},
        entries=entries,
        data_hash=content["data"],
        header=header,
    )


def _read_entry(name: str, entry: dict[str, Any]) -> Entry:
    if entry.keys() != {"dtype", "shape", "data_offsets"}:
        raise ValueError(f"{name} has the fields {sorted(entry)}")
    if entry["dtype"] not in DTYPES:
        raise ValueError(f"{name} has the unknown type {entry['dtype']!r}")
    begin, end = entry["data_offsets"]
    if not all(type(size) is int and 0 <= size < 2**48 for size in (*entry["shape"], begin, end)):
        raise ValueError(f"{name} has sizes that are no natural numbers, or far too large")
    dtype = DTYPES[entry["dtype"]]
    if end - begin != prod(entry["shape"]) * dtype.itemsize:
        raise ValueError(f"{name} has {end - begin} bytes, which its shape does not need")
    return Entry(dtype, tuple(entry["shape"]), begin, end)


def _check_layout(entries: Mapping[str, Entry], size: int) -> None:
    """Check that the tensors fill the rest of the file, without a gap and without an overlap."""
    reached = 0
    for name, entry in sorted(entries.items(), key=lambda item: (item[1].begin, item[1].end)):
        if entry.begin != reached:
            raise ValueError(f"{name} begins at byte {entry.begin}, not at {reached}")
        reached = entry.end
    if reached != size:
        raise ValueError(f"the tensors need {reached:,} bytes and the file has {size:,}")


def _read_fingerprint(content: dict[str, Any]) -> Fingerprint:
    tensors = {str(name): tuple(map(int, shape)) for name, shape in content["tensors"].items()}
    classes = {str(path): str(name) for path, name in content["classes"].items()}
    host, values = str(content["host"]), str(content["values"])
    return Fingerprint(host=host, classes=classes, tensors=tensors, values=values)


def read_tensors(file: PlugFile) -> dict[str, Tensor]:
    """Read the tensors of a file whose header was checked.

    Raises:
        UsageError: if the file has changed since, or its data are damaged.
        MissingExtra: if safetensors is not installed.
    """
    safetensors = _import_safetensors()
    expected = max((entry.end for entry in file.entries.values()), default=0)
    with file.path.open("rb") as opened:
        content = opened.read(len(file.header) + expected + 1)
    data = content[len(file.header) :]
    is_same = content.startswith(file.header) and hashlib.sha256(data).hexdigest() == file.data_hash
    if not is_same:
        got = f"{file.path.name}, whose weights are not as they were written"
        raise UsageError(explain(_RULE, got, _FIX))
    return dict(safetensors.load(content))


def _import_safetensors() -> Any:
    return import_extra("safetensors.torch", extra="files", purpose="a file of plugs")
