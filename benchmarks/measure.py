"""Measure one row: agreement first, then time and memory, forward and training step."""

import argparse
import copy
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.contest import run_contest
from benchmarks.floor import find_floor, make_references
from benchmarks.memory import find_kept, find_peak
from benchmarks.peers import Peer, find_peers
from benchmarks.rows import Row
from torchplug.analysis import count_flops

Record = dict[str, Any]


def measure_row(row: Row, dtype: str, layout: str, options: argparse.Namespace) -> Iterator[Record]:
    """Yield a record of the forward pass and one of the training step."""
    torch.manual_seed(0)
    kind, device = getattr(torch, dtype), options.device
    ours = row.build()
    _draw(ours)
    peers = [Peer("ours", ours, kind="ours"), *find_peers(row, ours)]
    inputs = [torch.randn(shape, device=device) for shape in row.shapes]
    for peer in peers:
        peer.module.to(device)
    _check_agreement(row, peers, inputs)
    flops = count_flops(row.build().to(device), tuple(inputs))
    form = torch.channels_last if layout == "channels_last" else torch.contiguous_format
    for peer in peers:
        peer.module.to(kind).to(memory_format=form)
    inputs = [x.to(kind).to(memory_format=form) for x in inputs]
    bodies = {"forward": _forward, **({"step": _step} if row.train else {})}
    if options.compile:
        bodies["compiled"] = _compiled
    references = make_references(device, kind)
    for mode, make in bodies.items():
        record = {"row": row.name, "key": row.key, "dtype": dtype, "layout": layout, "mode": mode}
        steps, kept = {}, {}
        for peer in peers:
            if mode == "step" and peer.name == "merged":
                continue  # a merged form computes the same in evaluation only
            steps[peer.name], kept[peer.name] = make(peer.module, inputs)
        rates = {name: reference.step for name, reference in references.items()}
        timings = run_contest(steps, device=device, seconds=options.seconds, beside=rates)
        floor = find_floor(
            flops * (3 if mode == "step" else 1),
            _compulsory_bytes(peers[0].module, inputs, mode),
            references,
            timings,
        )
        yield record | {
            "floor_ms": round(floor * 1e3, 4),
            "times": {
                name: {
                    "ms": round(timing.median * 1e3, 4),
                    "best_ms": round(timing.best * 1e3, 4),
                    "spread": round(timing.spread, 3),
                    "peak_mb": find_peak(steps[name], device) / 1e6,
                    "kept_mb": kept[name] / 1e6,
                }
                for name, timing in timings.items()
                if name in steps
            },
            "kinds": {peer.name: peer.kind for peer in peers if peer.name in steps},
        }


def _draw(module: nn.Module) -> None:
    """Move every parameter off its start, so that no branch is zero."""
    for parameter in module.parameters():
        parameter.data.add_(torch.randn_like(parameter), alpha=0.1)


def _check_agreement(row: Row, peers: list[Peer], inputs: list[Tensor]) -> None:
    for peer in peers:
        if peer.twin is None:
            continue
        with torch.no_grad():
            wanted = copy.deepcopy(peer.twin).to(inputs[0].device).eval()(*inputs)
            got = peer.module.eval()(*inputs)
        error = ((got - wanted).norm() / wanted.norm()).item()
        if not error < 1e-4:
            raise AssertionError(f"{row.name}: {peer.name} differs by {error:.1e}")


def _forward(module: nn.Module, inputs: list[Tensor]) -> tuple[Callable[[], object], int]:
    module = copy.deepcopy(module).eval()

    def run() -> Tensor:
        with torch.no_grad():
            return module(*inputs)

    return run, 0


def _compiled(module: nn.Module, inputs: list[Tensor]) -> tuple[Callable[[], object], int]:
    torch.compiler.reset()
    module = torch.compile(copy.deepcopy(module).eval(), fullgraph=True)

    def run() -> Tensor:
        with torch.no_grad():
            return module(*inputs)

    return run, 0


def _step(module: nn.Module, inputs: list[Tensor]) -> tuple[Callable[[], object], int]:
    module = copy.deepcopy(module).train()
    inputs = [x.detach().requires_grad_() for x in inputs]
    parameters = list(module.parameters())
    with torch.no_grad():
        gradient = torch.randn_like(module(*inputs))

    def run() -> None:
        for tensor in (*inputs, *parameters):
            tensor.grad = None
        module(*inputs).backward(gradient)

    return run, find_kept(lambda: module(*inputs), [*inputs, *parameters])


def _compulsory_bytes(module: nn.Module, inputs: list[Tensor], mode: str) -> int:
    """Maps and weights read and written once; a step also reads the maps and the gradient again,
    and writes a gradient of every map and weight.
    """
    with torch.no_grad():
        out = module.eval()(*inputs)
    given = sum(t.nbytes for t in (*inputs, *module.parameters()))
    forward = given + out.nbytes
    return forward if mode != "step" else forward + out.nbytes + 2 * given
