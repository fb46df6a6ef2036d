"""Parameters and floating-point operations, and what arms of a comparison cost side by side."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from torchplug.analysis.latency import measure_latency
from torchplug.analysis.memory import measure_memory
from torchplug.surgery.measure import counting_flops
from torchplug.surgery.trace import evaluating, read_example


def count_parameters(model: nn.Module) -> int:
    """Return the number of learned values, shared ones once.

    >>> count_parameters(nn.Linear(3, 2))
    8
    """
    return sum(p.numel() for p in model.parameters())


def count_flops(model: nn.Module, example: Any) -> int:
    """Return the floating-point operations of one forward, two for each multiply-add.

    Convolutions and matrix products count, as ``torch.utils.flop_counter`` defines them; norms,
    activations and pools count nothing. Papers mostly print multiply-adds: half of this.

    Args:
        model: any module; it is left as it was.
        example: the shape of a batch, a tensor, or the arguments of the forward.

    >>> count_flops(nn.Conv2d(3, 8, 1), (1, 3, 4, 4))
    768
    """
    args, kwargs = read_example(example, model)
    with evaluating(model), torch.no_grad(), counting_flops() as counter:
        model(*args, **kwargs)
    return int(counter.get_total_flops())


def measure_costs(
    models: Mapping[str, nn.Module], example: Any, *, repeats: int = 11, seconds: float = 0.02
) -> dict[str, dict[str, Any]]:
    """Return what each model costs: parameters, FLOPs, memory for backward, latency.

    Args:
        models: by name; latencies are compared with the first. Each is left as it was.
        example: the shape of a batch, a tensor, or the arguments of the forward: everything but
            the parameters is of this whole batch.
        repeats: rounds of the measurement of latency.
        seconds: least time of one model in one round.

    Returns:
        By name ``{"parameters": int, "flops": int, "memory": bytes, "latency": {"milliseconds",
        "ratio", "low", "high"}}``; see :func:`measure_latency` and :func:`measure_memory`.

    >>> costs = measure_costs({"one": nn.Linear(4, 4)}, (2, 4), seconds=0.0)
    >>> costs["one"]["parameters"], costs["one"]["flops"], costs["one"]["memory"]
    (20, 64, 32)
    """
    latencies = measure_latency(models, example, repeats=repeats, seconds=seconds)
    return {
        name: {
            "parameters": count_parameters(model),
            "flops": count_flops(model, example),
            "memory": measure_memory(model, example),
            "latency": dataclasses.asdict(latencies[name]),
        }
        for name, model in models.items()
    }
