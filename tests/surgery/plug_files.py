"""Take files of plugs apart and put them together again, as a stranger could."""

import copy
import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors
from torch import nn

from torchplug.surgery.plugfile import CONTENT, make_header


def snapshot(model: nn.Module) -> list[object]:
    """All that a failing call must leave as it was: values, identity, classes, hooks, modes."""
    hooks = ("_forward_hooks", "_forward_pre_hooks", "_state_dict_hooks", "_backward_hooks")
    state = model.state_dict(keep_vars=True)
    return [
        *((name, type(module), module.training) for name, module in model.named_modules()),
        *((name, sorted(module.__dict__)) for name, module in model.named_modules()),
        *((name, id(tensor)) for name, tensor in state.items()),
        hash_state(model),
        *(len(getattr(module, hook)) for module in model.modules() for hook in hooks),
    ]


def hash_state(model: nn.Module) -> str:
    digest = hashlib.sha256()
    for name, tensor in model.state_dict().items():
        values = tensor.contiguous().reshape(-1).view(torch.uint8).numpy()
        digest.update(name.encode() + values.tobytes())
    return digest.hexdigest()


class Parts:
    """The content of a file of plugs, to be changed and written with right checksums."""

    def __init__(self, file: bytes) -> None:
        length = int.from_bytes(file[:8], "little")
        listed = json.loads(file[8 : 8 + length])
        self.content: dict[str, Any] = json.loads(listed.pop("__metadata__")[CONTENT])
        self.tensors = load_tensors(file)

    @property
    def plugs(self) -> list[dict[str, Any]]:
        return self.content["plan"]["plugs"]

    def pack(self) -> bytes:
        packed = save_tensors(self.tensors)
        length = int.from_bytes(packed[:8], "little")
        entries, data = json.loads(packed[8 : 8 + length]), packed[8 + length :]
        self.content["data"] = hashlib.sha256(data).hexdigest()
        return make_header(json.dumps(self.content), entries) + data


def forge(file: bytes, change: Callable[[Parts], object]) -> bytes:
    """The file after a change by somebody who knows how to write checksums."""
    parts = Parts(file)
    change(parts)
    return copy.copy(parts).pack()


def write(path: Path, data: bytes) -> Path:
    path.write_bytes(data)
    return path
