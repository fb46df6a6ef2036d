"""Keep plugs in a file of their own, and put them into a fresh model from there."""

import dataclasses
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from torchplug.errors import PlugError, TorchplugError, UsageError, count, explain
from torchplug.surgery.attach import HOLDER, find_plugs
from torchplug.surgery.fingerprint import join, take_fingerprint, to_plain
from torchplug.surgery.memory import recall_merged, remember
from torchplug.surgery.op_anchor import find_carrier, weight_prefix
from torchplug.surgery.plan import Plan
from torchplug.surgery.plug import attach_steps, check_host, unplug
from torchplug.surgery.plugfile import PlugFile, read_plug_file, read_tensors, write_plug_file
from torchplug.surgery.rebuild import Factories, build_empty, build_steps
from torchplug.surgery.report import Count, count_parameters
from torchplug.surgery.scene import Scene
from torchplug.surgery.specimen import rebuild
from torchplug.surgery.trace import read_example
from torchplug.surgery.verify import Base, Step, verify

OTHER_BASE = explain(
    "plugs compute the same only on the base weights that they were saved with",
    "a base with others",
    "load the base's own state_dict first, or store a base that trained along by "
    "torch.save(model.state_dict()) and load that after plugging",
)


@dataclass(frozen=True, kw_only=True)
class LoadReport(Count):
    """What :func:`torchplug.load` did; printing it tells the user."""

    tensors: int
    """Tensors of plugs that were read from the file."""

    same_base: bool
    """Whether the base has the very weights that it had when the file was saved."""

    versions: Mapping[str, str]
    """Versions of the libraries that wrote the file."""

    max_difference: float | None
    """Largest absolute difference that the plugs make to the output on the example."""

    def __str__(self) -> str:
        names = ", ".join(sorted({planned.module for planned in self.plan.plugs}))
        base = "the same as when saved" if self.same_base else "other than when saved"
        run = "not run: pass example= to have every plug checked"
        if self.max_difference is not None:
            run = f"every plug runs; they change the output by up to {self.max_difference:.3g}"
        lines = [
            f"loaded {names} into {self.plan.host} at {count(len(self.paths), 'place')}",
            f"  plug tensors       {self.tensors}",
            f"  parameters         {self.base_parameters:,} + {self.module_parameters:,} in modules"
            + (f" + {self.gate_parameters:,} in start gates" if self.gate_parameters else ""),
            f"  base weights       {base}",
            f"  check              {run}",
            f"  saved with         {', '.join(' '.join(item) for item in self.versions.items())}",
        ]
        return "\n".join(lines)

    __repr__ = __str__  # what a cell of a notebook shows


def save(model: nn.Module, path: str | Path) -> Path:
    """Write the plugs of ``model``, and nothing of the base, into one safetensors file.

    The file holds the plan, the plugs' parameters and buffers under their names in the model's
    state dict, and a fingerprint of the base, by which :func:`torchplug.load` knows whether
    another model fits. It is written whole or not at all.

    Args:
        model: a plugged model; it is not changed.
        path: the file, usually ``*.safetensors``; an existing one is replaced.

    Returns:
        The path of the file.

    Raises:
        PlugError: if the model has no plugs, or if it is wrapped or scripted.
        UsageError: if a plug cannot be stored, or the file cannot be written.
        MissingExtra: if safetensors is not installed.

    >>> import tempfile, torchplug as tp
    >>> from torchplug.hosts import build_model
    >>> model = build_model("torchplug:resnet8")
    >>> _ = tp.plug(model, "se", example=(1, 3, 32, 32))
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = tp.save(model, f"{folder}/se.safetensors")
    ...     _ = tp.unplug(model)
    ...     print(tp.load(model, path).paths[0])
    layer1.bn2
    """
    check_host(model)
    plan = read_plan_of(model)
    tensors = {
        join(weight_prefix(path, name), key): to_plain(join(weight_prefix(path, name), key), value)
        for path, name, module in find_plugs(model)
        for key, value in _tensors_of(module, path, name)
    }
    base = take_fingerprint(model, dict.fromkeys(planned.path for planned in plan.plugs))
    write_plug_file(Path(path), plan, base, tensors)
    return Path(path)


def read_plan_of(model: nn.Module) -> Plan:
    """Return the plan of all plugs in ``model``, checked so that a file of it can be read again.

    A plan has one seed: the first plug's. The others' initial weights differ from a repetition
    if they were made with another.

    Raises:
        PlugError: if the model has no plugs, or one that was attached without a plan.
        UsageError: if an option of a plug is no JSON.
    """
    plugs = find_plugs(model)
    if not plugs:
        raise PlugError(_explain_no_plugs(model))
    plans: list[Plan] = []
    for path, name, _ in plugs:
        holder: Any = find_carrier(model, path)._modules[HOLDER]
        key = weight_prefix(path, name).rpartition(".")[2]
        if key not in holder.plans:
            got = f"{name!r} at {path}, which was attached by hand"
            fix = "attach it with torchplug.plug, or save the whole model with torch.save"
            raise PlugError(explain("a plug to save needs a plan", got, fix))
        # a module that was plugged and then put elsewhere is named by where it is now
        (planned,) = holder.plans[key].plugs
        own = dataclasses.replace(planned, path=path, name=name)
        plans.append(dataclasses.replace(holder.plans[key], plugs=(own,)))
    entries = tuple(plan.plugs[0] for plan in plans)
    example = next((plan.example for plan in plans if plan.example is not None), None)
    whole = Plan(host=_class(model), plugs=entries, seed=plans[0].seed, example=example)
    return Plan.from_json(whole.to_json())


def _explain_no_plugs(model: nn.Module) -> str:
    got, fix = f"a bare {_class(model)}", "plug something first with torchplug.plug"
    if merged := recall_merged(model):
        got = f"a {_class(model)} with {count(len(merged), 'plug')} merged into its own weights"
        fix = (
            "store them with torch.save(model.state_dict(), path), and load that into a model that "
            "was plugged and merged alike: merged convolutions have biases"
        )
    return explain("there must be plugs to save", got, fix)


def _class(model: nn.Module) -> str:
    return type(model).__name__


def _tensors_of(module: nn.Module, path: str, name: str) -> list[tuple[str, Tensor]]:
    state = module.state_dict()
    for key, value in state.items():
        if not isinstance(value, Tensor):
            got = f"{key} of {name!r} at {path}, a {type(value).__name__}"
            fix = "keep such state in code, or save the whole model with torch.save"
            raise UsageError(explain("the state of a plug must be tensors", got, fix))
    return list(state.items())


def load(
    model: nn.Module,
    path: str | Path,
    *,
    example: Any = None,
    factories: Factories | None = None,
) -> LoadReport:
    """Put the plugs of a file into a fresh model, with their weights.

    Everything is checked before the model is touched: that the file is whole, that the base has
    the same tensors and the same classes at the plugged places, that each module is of the
    catalogue and accepts its options, and that the tensors are exactly those that the modules
    need. Nothing that a file names is imported or run. If anything fails, the model is as it was.

    Args:
        model: a fresh instance of the host, with the weights of its own already loaded. Other
            weights than when the file was saved are allowed; a warning and the report say so.
        path: a file that :func:`torchplug.save` wrote.
        example: the shape of a small batch, a tensor, or the arguments of the forward. With it
            the model runs, and each plug must run once and a backward pass must work. A file
            whose places show themselves only in a run holds the shapes of its own.
        factories: modules of your own, by the name in the plan (``"package.module:Class"``): the
            class or function ``(site) -> Module`` that was plugged.

    Returns:
        A report that prints what was loaded.

    Raises:
        UsageError: if the file is damaged, or is no file of plugs.
        PlugError: if the file is for another model, or the check on the example fails.
        MissingExtra: if safetensors is not installed.

    >>> import tempfile, torchplug as tp
    >>> from torchplug.hosts import build_model
    >>> model, fresh = build_model("torchplug:resnet8"), build_model("torchplug:resnet8")
    >>> _ = fresh.load_state_dict(model.state_dict())  # the file has no weight of the base
    >>> _ = tp.plug(model, "cbam", "stage", example=(1, 3, 32, 32))
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     _ = tp.save(model, f"{folder}/cbam.safetensors")
    ...     report = tp.load(fresh, f"{folder}/cbam.safetensors", example=(1, 3, 32, 32))
    >>> report.same_base, report.max_difference
    (True, 0.0)
    """
    check_host(model)
    arguments = None if example is None else read_example(example, model)
    file = read_plug_file(Path(path))
    same_base = _check_base(model, file)
    if arguments is None and file.plan.example is not None:
        arguments = rebuild(file.plan.example, model)
    scene = None if arguments is None else Scene(model, arguments)
    empty = build_empty(file.plan, factories or {}, model, scene)
    _check_tensors(file, empty)
    tensors = read_tensors(file)
    steps = build_steps(file.plan, factories or {}, model, scene)
    for step in steps:
        prefix = weight_prefix(step.planned.path, step.planned.name) + "."
        own = {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}
        step.module.load_state_dict(own, strict=True)
    difference = _attach(model, steps, file.plan, scene)
    added, gates = count_parameters([step.module for step in steps])
    if not same_base:
        warnings.warn(OTHER_BASE, stacklevel=2)
    return LoadReport(
        plan=file.plan,
        tensors=len(tensors),
        base_parameters=sum(p.numel() for p in model.parameters()) - added - gates,
        module_parameters=added,
        gate_parameters=gates,
        same_base=same_base,
        versions=file.versions,
        max_difference=difference,
    )


def _check_base(model: nn.Module, file: PlugFile) -> bool:
    """Refuse another model; say whether the weights are the same too."""
    for path, name, _ in find_plugs(model):
        if any((path, name) == (planned.path, planned.name) for planned in file.plan.plugs):
            got = f"a second {name!r} at {path}"
            fix = "load into a fresh model, or take the first one out with unplug"
            raise PlugError(explain("each plug at one place needs a name of its own", got, fix))
    present = take_fingerprint(model, file.base.classes)
    missing = {planned.path for planned in file.plan.plugs} - file.base.classes.keys()
    difference = file.base.find_difference(present)
    if missing or difference:
        text = explain(
            f"the file is for a {file.base.host} of the same form as when it was saved",
            difference or f"a plug at {min(missing)}, a place that the file does not describe",
            "build the model as it was built then, with the same options",
        )
        raise PlugError(text)
    return present.values == file.base.values


def _check_tensors(file: PlugFile, needed: Mapping[str, Tensor]) -> None:
    """Refuse a file whose tensors are not exactly those that the modules need."""
    for name, tensor in needed.items():
        entry = file.entries.get(name)
        wanted = f"{tensor.dtype} of shape {tuple(tensor.shape)}"
        got = "none" if entry is None else f"{entry.dtype} of shape {entry.shape}"
        if got != wanted:
            fix = "build the model as it was built then, in the same type"
            raise PlugError(explain(f"{name} must be a tensor, {wanted}", got, fix))
    extra = sorted(file.entries.keys() - needed.keys())
    if extra:
        fix = "save the file again with the version of torchplug that reads it"
        raise PlugError(explain("a file holds the tensors of its plugs only", extra[0], fix))


def _attach(model: nn.Module, steps: list[Step], plan: Plan, scene: Scene | None) -> float | None:
    """Attach all plugs; with an example check that they run. All of it holds, or nothing."""
    base = Base(model)
    try:
        attach_steps(model, steps, plan)
        remember(model, [(step.planned, step.module) for step in steps])
        if scene is None:
            return None
        # trained plugs change the output: only new ones can be held to the identity
        trained = [
            dataclasses.replace(step, planned=dataclasses.replace(step.planned, start="paper"))
            for step in steps
        ]
        return verify(model, trained, scene.arguments, scene.trace.output, base)[0].absolute
    except BaseException as error:
        unplug(model, steps=[(step.planned.path, step.planned.name) for step in steps])
        if isinstance(error, TorchplugError) or not isinstance(error, Exception):
            raise
        got = f"{type(error).__name__}: {error}"
        fix = "pass an example like the one that the plugs were made with"
        raise PlugError(explain("loaded plugs must run on the example", got, fix)) from error
