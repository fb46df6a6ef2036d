"""Plug modules into a model, as one transaction: all of it holds, or the model is as before."""

import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence
from numbers import Integral
from typing import Any, get_args

import torch
from torch import nn

from torchplug.errors import PlugError, UsageError, explain, nearest
from torchplug.surgery.attach import find_plugs
from torchplug.surgery.build import Recipe, build_plug, read_recipe
from torchplug.surgery.choose import choose_sites, find_misfit, mode_of
from torchplug.surgery.leftover import describe_leftovers
from torchplug.surgery.memory import forget, remember
from torchplug.surgery.op_anchor import attach_at, detach_at
from torchplug.surgery.plan import Mode, Plan, PlannedPlug, Start
from torchplug.surgery.replace import Replacement, find_resting
from torchplug.surgery.report import PlugReport, count_parameters
from torchplug.surgery.scene import Scene
from torchplug.surgery.select import At
from torchplug.surgery.sites import Site
from torchplug.surgery.specimen import describe
from torchplug.surgery.trace import read_example
from torchplug.surgery.verify import Base, Step, verify


def plug(
    model: nn.Module,
    what: str | type[nn.Module] | Callable[[Site], nn.Module] | Plan,
    at: At | None = None,
    *,
    example: Any,
    start: Start = "identity",
    stages: int | Sequence[int] | None = None,
    every: int | None = None,
    within: str | None = None,
    where: Callable[[Site], bool] | None = None,
    seed: int = 0,
    name: str | None = None,
    mode: Mode | None = None,
    **options: Any,
) -> PlugReport:
    """Put modules into ``model``, in place, without renaming or changing any of its weights.

    The model runs a few times on ``example`` in evaluation mode: to find the places, to prove
    that the output is unchanged, that each plug runs, and that a backward pass works. If
    anything fails, the model is as it was.

    Args:
        model: the host. It must not be compiled, scripted or wrapped for distributed training
            yet: plug the inner module first.
        what: a key of the catalogue (``"cbam"``), a module class whose first argument is the
            number of channels (or that takes none), a factory ``(site) -> Module``, or a
            :class:`Plan` to repeat. A module gets maps (N, C, H, W) also from a host that keeps its
            channels last.
        at: where: a role (``"bottleneck"``, ``"stage"``, …: :func:`torchplug.sites` shows them),
            the id of a site, a module path, a glob (``"layer?.*.bn2"``; ``**`` crosses dots),
            ``"re:…"``, a module class, a predicate ``(path, module) -> bool`` or
            ``(site) -> bool``, or a list of these. ``"backbone[1]"`` is where the second of the
            maps is made that a module returns; ``"layer4.*!relu#1"`` is what the second call of an
            operation returns inside a module, and ``"layer4.*!conv2d#0.0"`` what the first receives
            as its first operand. ``None`` is the place in the module's paper.
        example: the shape of a small batch, a tensor, a tuple of arguments of the forward, a
            dict of keyword arguments, or a pair ``(args, kwargs)``.
        start: ``"identity"`` makes the plugged model compute what the base computed, by a
            learned gate of zero where the module itself does not start so; ``"paper"`` leaves
            the module as its authors start it. In the place of a convolution, ``"identity"`` keeps
            the old one running too (ACNet's square kernel is the old one, the others blend:
            ``old + gain * (new - old)``), ``"paper"`` puts it to rest, and ``"seeded"`` as well,
            with a module that starts from the old kernel as nearly as it can; the report tells
            how far the output moved.
        stages: keep only the sites in this stage or these, counted from 1 after the stem.
        every: keep every n-th site of each stage: ``2`` keeps the second, fourth, …
        within: keep only the sites below this path or glob: ``"backbone"``.
        where: keep only the sites for which this is true: ``lambda site: site.stride == 8``.
        seed: of the modules' own initial weights; the global generator is not touched.
        name: of the plug, in weight names and for :func:`unplug`; the key if not given.
        mode: how the plug meets its place: ``"attach"`` behind the host's module, ``"replace"`` in
            its place, ``"merge"`` at the entrance of a module that receives maps of several sizes.
            The card of a module says it; give it for a convolution of your own. In the place of a
            module a convolution, a block or a context module such as ASPP gets the channels that
            come in there and returns those that the replaced module gave.
        **options: the module's own options, such as ``reduction=8``.

    Returns:
        A report that prints what happened; its ``plan`` repeats it on another instance.

    Raises:
        UsageError: if ``what`` or an option is unknown, ``example`` cannot be read, or the model
            does not run on it.
        PlugError: if nothing matches, a module does not fit, or the proof fails. At the place of
            its own paper, what a replacement does not fit is skipped and reported.

    >>> import torchplug as tp
    >>> from torchplug.hosts import build_model
    >>> model = build_model("torchplug:resnet8", num_classes=10, in_channels=1)
    >>> report = tp.plug(model, "se", example=(1, 1, 8, 8))
    >>> report.max_difference, report.paths[0]
    (0.0, 'layer1.bn2')
    """
    check_host(model)
    stages = _read_numbers(stages, every, seed)
    scene = Scene(model, read_example(example, model))
    if isinstance(what, Plan):
        limits = {"stages": stages, "every": every, "within": within, "where": where}
        _check_nothing_else(at=at, **limits, name=name, mode=mode, **options)
        recipes = [read_recipe(p.module, p.name, p.options) for p in what.plugs]
        return _attach(what, _build(what, recipes, scene), scene)
    recipe = read_recipe(what, name, options)
    how = mode_of(recipe) if mode is None else mode
    _check_words(start, how)
    chosen = choose_sites(scene, recipe, how, at, stages, every, within=within, where=where)
    plan = _make_plan(scene, recipe, chosen, options, start, seed, how)
    if at is not None or how != "replace":
        return _attach(plan, _build(plan, [recipe] * len(chosen), scene), scene)
    steps, skipped = _build_fitting(plan, recipe, chosen, scene)
    plan = dataclasses.replace(plan, plugs=tuple(step.planned for step in steps))
    return _attach(plan, steps, scene, skipped)


def _attach(
    plan: Plan, steps: list[Step], scene: Scene, skipped: Sequence[tuple[str, str]] = ()
) -> PlugReport:
    """Attach all modules and prove the result, or leave the model as it was."""
    model = scene.model
    base = Base(model)
    try:
        attach_steps(model, steps, plan)
        change, flops, notes = verify(model, steps, scene.arguments, scene.trace.output, base)
    except BaseException:
        unplug(model, steps=[(step.planned.path, step.planned.name) for step in steps])
        raise
    remember(model, [(step.planned, step.module) for step in steps])
    added, gates = count_parameters([step.module for step in steps])
    return PlugReport(
        plan=plan,
        base_tensors=len(base.state),
        base_parameters=base.parameters,
        module_parameters=added,
        gate_parameters=gates,
        max_difference=change.absolute,
        max_relative_difference=change.relative,
        flops=(scene.flops, flops),
        idle_parameters=_count_idle(model, steps),
        skipped=tuple(skipped),
        notes=notes + _warn_of_folding(scene, steps) + describe_leftovers(scene.trace, steps),
    )


def _warn_of_folding(scene: Scene, steps: Sequence[Step]) -> tuple[str, ...]:
    """A host that folds parallel branches makes a new convolution, without plugs."""
    inside = [step.planned.path for step in steps if step.planned.path in scene.foldable]
    if not inside:
        return ()
    text = f"{len(inside)} of {len(steps)} plugs lie in sums of branches that the host may fold"
    return (f"{text} into one convolution, such as {inside[0]}: folding would lose them",)


def _count_idle(model: nn.Module, steps: Sequence[Step]) -> int:
    """Count the parameters of the base that a replacement has put to rest."""
    hosts = [
        model.get_submodule(step.planned.path)
        for step in steps
        if isinstance(step.module, Replacement) and not step.module.runs_host
    ]
    return sum(p.numel() for host in hosts for p in find_resting(host).values())


def unplug(
    model: nn.Module,
    name: str | None = None,
    *,
    steps: Sequence[tuple[str, str]] | None = None,
) -> int:
    """Take plugs out again: classes, weight names and output are those of the base.

    Args:
        model: the plugged host; it is changed in place.
        name: take out the plugs of this name only; ``None`` takes out all.
        steps: take out these (path, name) pairs only, where they are attached.

    Returns:
        How many plugs were taken out. Merged ones are weights of the base and stay.

    Raises:
        PlugError: if no plug has this name.

    >>> import torchplug as tp
    >>> from torchplug.hosts import build_model
    >>> model = build_model("torchplug:resnet8", num_classes=10, in_channels=1)
    >>> _ = tp.plug(model, "se", example=(1, 1, 8, 8))
    >>> tp.unplug(model)
    3
    """
    plugs = [(path, plug_name) for path, plug_name, _ in find_plugs(model)]
    wanted = [plug for plug in plugs if name in {None, plug[1]}]
    if steps is not None:
        wanted = [plug for plug in wanted if plug in set(steps)]
    elif name is not None and not wanted:
        names = sorted({plug_name for _, plug_name in plugs})
        fix = nearest(name, names) if names else "the model has no plugs"
        raise PlugError(explain("unplug takes the name of a plug", repr(name), fix))
    for path, plug_name in wanted:
        detach_at(model, path, plug_name)
    forget(model, name, steps)
    return len(wanted)


def attach_steps(model: nn.Module, steps: Sequence[Step], plan: Plan) -> None:
    """Attach every built plug, each with its own part of the plan."""
    for step in steps:
        own = dataclasses.replace(plan, plugs=(step.planned,))
        attach_at(model, step.planned.path, step.planned.name, step.module, own)


_WRAPPERS = {"DataParallel", "DistributedDataParallel", "FullyShardedDataParallel"} | {
    "OptimizedModule"
}


def check_host(model: Any) -> None:
    """Refuse what cannot carry plugs: no module, a scripted one, or one that is wrapped."""
    if not isinstance(model, nn.Module):
        fix = "pass the model itself; torchplug.hosts.build_model makes one from a name"
        raise UsageError(explain("a host is an nn.Module", type(model).__name__, fix))
    if isinstance(model, torch.jit.ScriptModule):
        fix = "plug the Python model, then script or export it"
        raise PlugError(explain("a scripted model cannot be changed", type(model).__name__, fix))
    is_sharded = any(base.__name__ == "FSDPModule" for base in type(model).__mro__)
    if is_sharded or type(model).__name__ in _WRAPPERS:
        fix = "plug the inner module first, then compile or distribute it"
        raise PlugError(explain("a host must not be wrapped yet", type(model).__name__, fix))


def _check_nothing_else(**given: Any) -> None:
    extra = [name for name, value in given.items() if value is not None]
    if extra:
        text = explain(
            "a plan already says what goes where",
            ", ".join(extra),
            "pass the plan and example alone, or edit the plan",
        )
        raise UsageError(text)


def _read_numbers(stages: Any, every: Any, seed: Any) -> tuple[int, ...] | None:
    """Check the numbers of a call, and return the stages, of which one may stand alone."""
    if every is not None and not (isinstance(every, Integral) and int(every) >= 1):
        raise UsageError(explain("every counts from 1", f"every={every!r}", "pass 1 for all sites"))
    if not isinstance(seed, Integral):
        raise UsageError(explain("a seed is a whole number", f"seed={seed!r}", "pass 0, say"))
    if stages is None or isinstance(stages, Integral):
        return None if stages is None else (int(stages),)
    numbers = tuple(stages) if isinstance(stages, Iterable) else (stages,)
    if not all(isinstance(number, Integral) for number in numbers):
        rule = "stages are whole numbers, counted from 1 after the stem"
        raise UsageError(explain(rule, f"stages={stages!r}", "pass one, or a list such as [3, 4]"))
    return numbers


def _check_words(start: str, mode: str) -> None:
    if mode not in get_args(Mode):
        fix = "choose 'attach', 'replace' or 'merge', or leave it to the module's card"
        raise UsageError(explain("mode is one of three words", repr(mode), fix))
    if start in {"identity", "paper"} or (start == "seeded" and mode == "replace"):
        return
    fix = "choose 'identity' or 'paper', or 'seeded' in the place of a convolution"
    raise UsageError(explain("start is one of three words", repr(start), fix))


def _make_plan(
    scene: Scene,
    recipe: Recipe,
    chosen: list[Site],
    options: Mapping[str, Any],
    start: Start,
    seed: int,
    mode: Mode,
) -> Plan:
    plugs = tuple(
        PlannedPlug(
            path=site.anchor if mode == "attach" else site.path,
            name=recipe.name,
            module=recipe.module,
            shape=site.shape,
            channels=site.channels,
            options=dict(options),
            start=start,
            role=site.role,
            stage=site.stage,
            mode=mode,
            layout="NHWC" if site.layout == "NHWC" else "NCHW",
        )
        for site in chosen
    )
    host = type(scene.model).__name__
    example = describe(scene.arguments) if needs_run(scene.model, plugs) else None
    return Plan(host=host, plugs=plugs, seed=seed, example=example)


def needs_run(model: nn.Module, plugs: Sequence[PlannedPlug]) -> bool:
    """Whether layers do not tell what a plug must be built with: in the place of a block, say."""
    return any(
        planned.mode == "merge"
        or (
            planned.mode == "replace"
            and not isinstance(model.get_submodule(planned.path), nn.Conv2d)
        )
        for planned in plugs
    )


def _build(plan: Plan, recipes: Sequence[Recipe], scene: Scene) -> list[Step]:
    """Build every module before anything is attached."""
    steps = []
    for planned, recipe in zip(plan.plugs, recipes, strict=True):
        place = scene.find_place(planned, plan)
        scene.take(planned)
        steps.append(Step(planned, place.site, build_plug(recipe, place, planned, plan.seed)))
    return steps


def _build_fitting(
    plan: Plan, recipe: Recipe, chosen: Sequence[Site], scene: Scene
) -> tuple[list[Step], list[tuple[str, str]]]:
    """Build the modules that fit at their paper's place; say which do not and why."""
    steps: list[Step] = []
    skipped = []
    for planned, site in zip(plan.plugs, chosen, strict=True):
        reason = find_misfit(recipe, site, scene)
        try:
            if not reason:
                steps += _build(dataclasses.replace(plan, plugs=(planned,)), [recipe], scene)
        except PlugError as error:
            reason = str(error)
        if reason:
            skipped.append((planned.path, reason))
    if not steps:
        path, reason = skipped[0]
        text = explain(
            f"{recipe.module} must fit at one place of its paper at least",
            f"{len(skipped)} that it does not fit; {path}: {reason}",
            "name places with at=, or change its options",
        )
        raise PlugError(text)
    return steps, skipped
