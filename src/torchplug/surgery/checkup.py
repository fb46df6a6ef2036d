"""Look whether the plugs of a model still are where they were put, and still run.

A conversion, a fusion or a pruning that makes new modules takes the plugs on the old ones away
without a word. What was planned is on the model (see ``memory``); what is left is compared with it.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from torchplug.errors import UsageError, count, explain
from torchplug.surgery.attach import HOLDER, Holder, find_plugs, is_plugged
from torchplug.surgery.manage import disabled, find_loose_norms, named_plug_parameters
from torchplug.surgery.memory import (
    Entry,
    describe_base,
    name_class,
    recall,
    recall_base,
    recall_merged,
)
from torchplug.surgery.op_anchor import find_carrier, weight_prefix
from torchplug.surgery.trace import Arguments, Trace, evaluating, read_example, record, tensors_in


@dataclass(frozen=True, kw_only=True)
class Problem:
    """One thing that is wrong, with the modules of the host it happened to."""

    kind: str
    """``none``, ``lost``, ``asleep``, ``changed``, ``off``, ``failed``, ``silent``, ``repeated``,
    ``reordered``, ``broken``, ``deaf``, ``loose`` or ``optimizer``."""

    paths: tuple[str, ...]
    text: str

    def __str__(self) -> str:
        return self.text


@dataclass(frozen=True, kw_only=True)
class Checkup:
    """What :func:`check` found; printing it tells the user."""

    planned: int
    """Plugs that should be there."""

    alive: int
    """Plugs that are attached and ran once."""

    problems: tuple[Problem, ...]
    notes: tuple[str, ...]
    """What is worth knowing and no fault."""

    difference: float | None
    """Largest change of the output on the example that all plugs together make."""

    merged: int = 0
    """Plugs that :func:`torchplug.merge_plugs` made weights of the model's own."""

    @property
    def ok(self) -> bool:
        """Whether nothing is wrong."""
        return not self.problems

    def __str__(self) -> str:
        merged = f"{count(self.merged, 'plug')} merged into the model's own convolutions"
        if self.planned:
            lines = [f"{self.alive} of {self.planned} plugs are attached and ran once"]
            if self.difference is not None:
                lines.append(f"  the plugs change the output by {self.difference:.3g} at most")
            lines += [f"  {merged}"] if self.merged else []
        else:
            lines = [f"{merged}; no other is plugged" if self.merged else "no plugs to check"]
        lines += [f"  problem  {problem}" for problem in self.problems]
        lines += [f"  note     {note}" for note in self.notes]
        return "\n".join(lines)

    __repr__ = __str__  # what a cell of a notebook shows


def check(
    model: nn.Module, example: Any, optimizer: torch.optim.Optimizer | None = None
) -> Checkup:
    """Find plugs that were removed, bypassed or switched off since they were plugged.

    The model runs on ``example`` in evaluation mode, with and without its plugs, and once
    backward; it is left as it was. Distributed and compiled wrappers are looked through.

    Args:
        model: a model that was plugged.
        example: the shape of a small batch, a tensor, or the arguments of the forward.
        optimizer: also look whether it holds the plugs' parameters: one that was made before
            plugging does not.

    Returns:
        A report: ``ok``, ``problems`` with the modules they concern, and ``notes``.

    Raises:
        UsageError: if ``model`` is no module or ``example`` cannot be read.

    >>> import torch, torchplug as tp
    >>> from torchplug.hosts import build_model
    >>> model = build_model("torchplug:resnet8")
    >>> _ = tp.plug(model, "se", example=(1, 3, 8, 8))
    >>> tp.check(model, (1, 3, 8, 8)).ok
    True
    >>> model.layer2.bn2 = torch.nn.BatchNorm2d(32)
    >>> print(tp.check(model, (1, 3, 8, 8)))
    2 of 3 plugs are attached and ran once
      the plugs change the output by 0 at most
      problem  lost at layer2.bn2: was replaced by another BatchNorm2d, and the plug ...
    """
    model = unwrap(model)
    arguments = read_example(example, model)
    planned, live = recall(model), find_plugs(model)
    merged = recall_merged(model)
    problems = find_losses(model, planned)
    if not (planned or live or merged):
        problems.append(Problem(kind="none", paths=(), text=_NO_PLUGS))
    trace, failure = _run(model, arguments)
    if trace is None:
        problems.append(failure)
        difference = None
    else:
        problems += [*_judge_runs(model, live, trace), *_find_deaf(model, arguments)]
        difference = _compare(model, arguments, trace)
    problems += _check_optimizer(model, optimizer)
    runs = {} if trace is None else trace.runs
    return Checkup(
        planned=max(len(planned), len(live)),
        alive=sum(runs.get(weight_prefix(path, name), 0) == 1 for path, name, _ in live),
        problems=tuple(problems),
        notes=tuple(_take_notes(model)),
        difference=difference,
        merged=len(merged),
    )


_NO_PLUGS = "the model has no plugs and remembers none; plug it first"


def unwrap(model: Any) -> nn.Module:
    """Return the model inside ``torch.compile`` and (distributed) data parallel wrappers.

    Raises:
        UsageError: if there is no model.
    """
    if not isinstance(model, nn.Module):
        text = explain("this works on a model", type(model).__name__, "pass an nn.Module")
        raise UsageError(text)
    inside = {"OptimizedModule": "_orig_mod", "DataParallel": "module"} | {
        "DistributedDataParallel": "module",
    }
    while (name := inside.get(type(model).__name__)) is not None:
        model = getattr(model, name)
    return model


def find_losses(model: nn.Module, planned: list[Entry]) -> list[Problem]:
    """Compare what was plugged with what is attached now; nothing runs."""
    modules = dict(model.named_modules(remove_duplicate=False))
    base = recall_base(model)
    found: dict[tuple[str, str], list[str]] = {}
    for entry in planned:
        reason = _find_loss(entry, modules, base)
        if reason is not None:
            found.setdefault(reason, []).append(entry["path"])
    problems = [_problem(kind, paths, text) for (kind, text), paths in found.items()]
    loose = len(find_loose_norms(model))
    if loose:
        norms = count(loose, "batch norm")
        text = f"{norms} of the frozen base would train again; run tp.repair(model)"
        problems.append(Problem(kind="loose", paths=(), text=f"loose: {text}"))
    return problems


_LOST = "plug again, and convert, fuse or prune before plugging"


def _find_loss(
    entry: Entry, modules: dict[str, nn.Module], base: dict[str, str]
) -> tuple[str, str] | None:
    """Return kind and reason if a planned plug is not attached as it was."""
    carrier = entry["path"].partition("!")[0]  # of an operation: the module that executes it
    module = modules.get(carrier)
    if module is None:
        return "lost", f"is not in the model any more; {_LOST}"
    holder = module._modules.get(HOLDER)
    now, was = name_class(module), base.get(carrier, "?").split()[0]
    change = f"another {now}" if now == was else f"{now} (was {was})"
    if not isinstance(holder, Holder):
        return "lost", f"was replaced by {change}, and the plug went with it; {_LOST}"
    plug = holder._modules.get(weight_prefix(entry["path"], entry["name"]).rpartition(".")[2])
    if plug is None:
        return "lost", f"has lost the plug {entry['name']!r} from its holder; {_LOST}"
    if not is_plugged(module):
        return "asleep", f"became {change}, which does not run its plug; run tp.repair(model)"
    if type(plug).__qualname__ != entry["type"]:
        got = type(plug).__qualname__
        return "changed", f"carries {got} as {entry['name']!r}, not {entry['type']}; plug again"
    if holder.disabled:
        return "off", "has its plugs switched off; leave tp.disabled first"
    return None


def _problem(kind: str, paths: Iterable[str], text: str) -> Problem:
    paths = tuple(dict.fromkeys(paths))
    return Problem(kind=kind, paths=paths, text=f"{kind} at {shorten(paths)}: {text}")


def shorten(paths: tuple[str, ...], most: int = 4) -> str:
    """Return the first paths of many, and how many more there are."""
    shown = ", ".join(paths[:most])
    return shown if len(paths) <= most else f"{shown} and {len(paths) - most} more"


def _run(model: nn.Module, arguments: Arguments) -> tuple[Trace | None, Any]:
    try:
        return record(model, arguments), None
    except Exception as error:
        line = (str(error) or "no message").splitlines()[0]
        text = f"failed: the model does not run on the example: {type(error).__name__}: {line}"
        return None, Problem(kind="failed", paths=(), text=text)


def _judge_runs(
    model: nn.Module, live: list[tuple[str, str, nn.Module]], trace: Trace
) -> list[Problem]:
    problems = []
    bypassed = "ran without its plug: its forward was replaced; give it its own forward back"
    skipped = "was not called at all; the host goes around it, so plug the module that is called"
    groups: dict[str, list[str]] = {}
    for path, name, _ in live:
        runs = trace.runs[weight_prefix(path, name)]
        carrier: Any = find_carrier(model, path)
        holder = carrier._modules[HOLDER]
        if runs == 0 and not holder.disabled:
            groups.setdefault(
                bypassed if trace.runs[path.partition("!")[0]] else skipped, []
            ).append(path)
        elif runs > 1:
            text = f"ran its plug {runs} times; plug the module around it"
            groups.setdefault(text, []).append(path)
    for text, paths in groups.items():
        kind = "repeated" if "times" in text else "silent"
        problems.append(_problem(kind, paths, text))
    moved = _find_reordered(model, live)
    if moved:
        text = "was fused with the norm behind its plug, which now acts before it; fuse, then plug"
        problems.append(_problem("reordered", moved, text))
    return problems


def _find_reordered(model: nn.Module, live: list[tuple[str, str, nn.Module]]) -> list[str]:
    """Plugged convolutions whose norm is gone: folding put it before the plug."""
    then, now = recall_base(model), describe_base(model)
    gone = {
        path.rpartition(".")[0]
        for path, text in then.items()
        if "Norm" in text.split()[0] and now.get(path, "Identity").startswith("Identity")
    }
    return [
        path
        for path, _, _ in live
        if path.rpartition(".")[0] in gone and _is_convolution(model.get_submodule(path))
    ]


def _is_convolution(module: nn.Module) -> bool:
    weight = module._parameters.get("weight")
    return weight is not None and weight.dim() == 4


def _compare(model: nn.Module, arguments: Arguments, trace: Trace) -> float:
    """Largest change that the plugs make to the output; infinite where its form changes."""
    with disabled(model), evaluating(model), torch.no_grad():
        plain = tensors_in(model(*arguments[0], **arguments[1]))
    plugged = tensors_in(trace.output)
    if [t.shape for t in plain] != [t.shape for t in plugged]:
        return float("inf")
    pairs = [(a.double(), b.double()) for a, b in zip(plugged, plain, strict=True) if a.numel()]
    # equal infinities differ by NaN: they are no change
    return max((float((a - b).abs().nan_to_num(0).max()) for a, b in pairs), default=0.0)


def _find_deaf(model: nn.Module, arguments: Arguments) -> list[Problem]:
    """Plugs that hold numbers that are none, and plugs that no gradient reaches."""
    named = named_plug_parameters(model)
    broken = [n for n, p in named if p.is_floating_point() and not bool(p.isfinite().all())]
    problems = []
    if broken:
        paths = [_host_of(name) for name in broken]
        problems.append(_problem("broken", paths, "holds NaN or infinite weights; load good ones"))
    trainable = [(name, value) for name, value in named if value.requires_grad]
    with evaluating(model), torch.enable_grad():
        results = [t for t in tensors_in(model(*arguments[0], **arguments[1])) if t.requires_grad]
        if not results or not trainable:
            return problems
        try:
            total: Any = sum(result.float().sum() for result in results)
            grads = torch.autograd.grad(total, [p for _, p in trainable], allow_unused=True)
        except RuntimeError as error:
            text = f"failed: backward does not run: {str(error).splitlines()[0]}"
            return [*problems, Problem(kind="failed", paths=(), text=text)]
    deaf = [name for (name, _), grad in zip(trainable, grads, strict=True) if grad is None]
    hosts = [_host_of(name) for name in deaf]
    hosts = [path for path in hosts if not _is_asleep(model, path)]
    if hosts:
        text = "gets no gradient for its plug on this example; its output is not used"
        problems.append(_problem("deaf", hosts, text))
    return problems


def _host_of(name: str) -> str:
    """Return the path of the module that carries the plug of a parameter."""
    return f".{name}".partition(f".{HOLDER}.")[0].removeprefix(".")


def _is_asleep(model: nn.Module, path: str) -> bool:
    return not is_plugged(find_carrier(model, path))


def _check_optimizer(model: nn.Module, optimizer: torch.optim.Optimizer | None) -> list[Problem]:
    if optimizer is None:
        return []
    held = {id(p) for group in optimizer.param_groups for p in group["params"]}
    missing = [n for n, p in named_plug_parameters(model) if p.requires_grad and id(p) not in held]
    strange = len(held - {id(p) for p in model.parameters()})
    problems = []
    if missing:
        paths = tuple(dict.fromkeys(_host_of(name) for name in missing))
        lack = f"{count(len(missing), 'parameter')} of plugs at {shorten(paths)}"
        fix = "make it after plugging, or call add_param_group with tp.plug_parameters(model)"
        text = f"optimizer: it lacks {lack}; {fix}"
        problems.append(Problem(kind="optimizer", paths=paths, text=text))
    if strange:
        held_too = f"{count(strange, 'parameter')} that the model does not have"
        text = f"optimizer: it holds {held_too}; make a new one"
        problems.append(Problem(kind="optimizer", paths=(), text=text))
    return problems


def _take_notes(model: nn.Module) -> list[str]:
    then, now = recall_base(model), describe_base(model)
    gone = tuple(path for path in then if path not in now)
    changed = tuple(path for path in then if path in now and now[path] != then[path])
    frozen = tuple(name for name, p in named_plug_parameters(model) if not p.requires_grad)
    notes = []
    if gone:
        notes.append(f"{len(gone)} modules of the base are gone since plugging: {shorten(gone)}")
    if changed:
        notes.append(f"{len(changed)} modules of the base have changed: {shorten(changed)}")
    if frozen:
        notes.append(f"{len(frozen)} parameters of plugs do not train: {shorten(frozen)}")
    return notes
