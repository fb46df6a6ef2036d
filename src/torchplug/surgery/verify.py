"""Prove that a plugged model is what was asked for."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from torchplug.errors import PlugError, explain
from torchplug.surgery.attach import Holder
from torchplug.surgery.measure import Change, counting_flops, measure_change
from torchplug.surgery.op_anchor import parse_anchor, weight_prefix
from torchplug.surgery.plan import PlannedPlug
from torchplug.surgery.rest import describe_rest, watching
from torchplug.surgery.sites import Site
from torchplug.surgery.trace import Arguments, Trace, evaluating, record, tensors_in


@dataclass(frozen=True)
class Step:
    """One planned plug with its site and its built module."""

    planned: PlannedPlug
    site: Site
    module: nn.Module


class Base:
    """The host's own tensors before plugging, to be found again afterwards."""

    def __init__(self, model: nn.Module) -> None:
        self.state: dict[str, Tensor] = model.state_dict(keep_vars=True)
        self.parameters = sum(p.numel() for p in model.parameters())


def verify(
    model: nn.Module, steps: list[Step], arguments: Arguments, expected: Any, base: Base
) -> tuple[Change, int, tuple[str, ...]]:
    """Check base tensors, runs, output and backward.

    Return the change of the output, the cost of a forward, and what is worth knowing.

    Raises:
        PlugError: naming the first check that failed.
    """
    _check_base(model, base)
    with counting_flops() as counter:
        trace = record(model, arguments)
    for step in steps:
        path = weight_prefix(step.planned.path, step.planned.name)
        if trace.runs[path] != 1:
            text = explain(
                "each plug must run once in a forward",
                f"{trace.runs[path]} runs of the plug at {step.planned.path}",
                "choose another place: the host does not call this module in the usual way",
            )
            raise PlugError(text)
    _check_used(trace, steps)
    change = measure_change(trace.output, expected)
    starts = {step.planned.start for step in steps}
    if starts == {"identity"} and change.absolute != 0:
        text = explain(
            "with an identity start the output must equal the base's bit for bit",
            f"a difference of {change.absolute:.3g}",
            "the host may be random in evaluation mode; start='paper' skips this proof",
        )
        raise PlugError(text)
    with watching(steps) as zeros:
        unmoved = _check_backward(model, steps, arguments)
    notes = describe_rest(model, steps, unmoved, zeros)
    return change, int(counter.get_total_flops()), notes


def _check_used(trace: Trace, steps: list[Step]) -> None:
    """A host that works in place may go on with its own tensor and drop what a plug returns."""
    listed = {value for group in trace.groups for value in group.values} | trace.returned
    for value in trace.values:
        used = value.users or value.producers or value in listed
        if value.op == Holder.apply_one.__name__ and not used:
            places = [step.planned.path for step in steps if parse_anchor(step.planned.path)]
            text = explain(
                "what a plug at an operation returns must be used by the host",
                f"a result that the host drops, among {', '.join(places)}",
                "the host works in place there: plug a module instead",
            )
            raise PlugError(text)


def _check_base(model: nn.Module, base: Base) -> None:
    state = model.state_dict(keep_vars=True)
    for name, tensor in base.state.items():
        if state.get(name) is not tensor:
            raise PlugError(f"the base tensor {name} was renamed or replaced by plugging")


def _check_backward(model: nn.Module, steps: list[Step], arguments: Arguments) -> set[int]:
    """Run one backward: a host that works in place may overwrite what a plug has saved.

    Return the weights (by id) that got no gradient.
    """
    weights = [p for step in steps for p in step.module.parameters() if p.requires_grad]
    with evaluating(model), torch.enable_grad():
        output = model(*arguments[0], **arguments[1])
        results = [t for t in tensors_in(output) if t.requires_grad]
        if not results or not weights:
            return set()
        try:
            total = sum(result.float().sum() for result in results)
            grads = torch.autograd.grad(total, weights, allow_unused=True)  # type: ignore[arg-type]
        except RuntimeError as error:
            text = explain(
                "a plugged model must be able to run backward",
                str(error).splitlines()[0],
                "the host works in place on the plug's output: use start='identity', which is "
                "safe, or another place",
            )
            raise PlugError(text) from error
    pairs = zip(weights, grads, strict=True)
    return {id(weight) for weight, grad in pairs if grad is None or not bool(grad.any())}
