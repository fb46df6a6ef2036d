"""Weights that all arms start from: of a checkpoint, or of a baseline trained once."""

import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from torchplug.errors import UsageError, explain, import_extra

_INSIDE = ("state_dict", "model_state_dict", "model", "state_dict_ema", "model_ema")
_PREFIXES = ("module.", "model.", "_orig_mod.")
_SHOWN = 3


def read_weights(path: str | Path) -> dict[str, Tensor]:
    """Read the weights of a checkpoint: ``.safetensors``, or what ``torch.save`` wrote.

    Nothing is executed: a file of ``torch.save`` is read with ``weights_only=True``. Weights may
    lie under ``state_dict`` or ``model``, as training scripts store them.

    Raises:
        UsageError: if the file is not there, is damaged, or holds other things than weights.
    """
    file = Path(path)
    try:
        if file.suffix == ".safetensors":
            library = import_extra(
                "safetensors.torch", extra="files", purpose=f"reading {file.name}"
            )
            content: Any = library.load_file(str(file))
        else:
            content = torch.load(file, map_location="cpu", weights_only=True)
    except (OSError, RuntimeError, EOFError, pickle.UnpicklingError, ValueError) as error:
        raise UsageError(_explain_unreadable(file, error)) from error
    except Exception as error:
        if type(error).__name__ != "SafetensorError":
            raise
        raise UsageError(_explain_unreadable(file, error)) from error
    weights = _find_weights(content)
    if not weights:
        text = explain(
            "a checkpoint holds weights by name",
            f"{file} without any",
            "save model.state_dict(), by torch.save or safetensors",
        )
        raise UsageError(text)
    return weights


def _explain_unreadable(file: Path, error: Exception) -> str:
    reason = (str(error).strip().splitlines() or [""])[0]
    return explain(
        "base is 'scratch', 'trained' or the path of a checkpoint that can be read safely",
        f"{str(file)!r} ({type(error).__name__}: {reason})",
        "save model.state_dict(), by torch.save or safetensors",
    )


def _find_weights(content: Any) -> dict[str, Tensor]:
    if not isinstance(content, Mapping):
        return {}
    for name in _INSIDE:
        if isinstance(content.get(name), Mapping):
            return _find_weights(content[name])
    return {str(name): value for name, value in content.items() if isinstance(value, Tensor)}


def load_base(model: nn.Module, weights: Mapping[str, Tensor] | str | Path) -> tuple[str, ...]:
    """Put weights into a base, in place, and return the names of those that it keeps of its own.

    All names must be there. A layer that only has another number of outputs is a new head for
    other classes: it keeps its initial weights, the same for every arm.

    Raises:
        UsageError: if names or shapes differ otherwise, before anything is changed.
    """
    given = read_weights(weights) if isinstance(weights, str | Path) else dict(weights)
    own = model.state_dict()
    given = _strip(given, own)
    missing, foreign = sorted(set(own) - set(given)), sorted(set(given) - set(own))
    if missing or foreign:
        text = explain(
            "the weights of a base have the names of the model",
            f"no {_list(missing)} in the checkpoint, no {_list(foreign)} in the model",
            "name the model that was saved, with the same options",
        )
        raise UsageError(text)
    kept = [name for name, value in own.items() if given[name].shape != value.shape]
    wrong = [name for name in kept if not _is_head(given[name], own[name])]
    if wrong or len(kept) == len(own):
        name = (wrong or kept)[0]
        text = explain(
            "the weights of a base have the shapes of the model, but for the classes of its head",
            f"{tuple(given[name].shape)} for {name}, which is {tuple(own[name].shape)}",
            "name the model that was saved, with the same options",
        )
        raise UsageError(text)
    loaded = {name: value for name, value in given.items() if name not in kept}
    model.load_state_dict(loaded, strict=False)
    return tuple(kept)


def _strip(given: dict[str, Tensor], own: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Drop what a wrapper (DDP, Lightning, ``torch.compile``) put before every name."""
    for prefix in _PREFIXES:
        if all(name.startswith(prefix) for name in given) and not set(given) <= set(own):
            given = {name.removeprefix(prefix): value for name, value in given.items()}
    return given


def _is_head(given: Tensor, own: Tensor) -> bool:
    return given.ndim == own.ndim >= 1 and given.shape[1:] == own.shape[1:]


def _list(names: list[str]) -> str:
    shown = ", ".join(names[:_SHOWN]) or "name"
    return shown + (f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else "")
