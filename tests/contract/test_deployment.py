"""Every module compiles without a graph break and exports with dynamic batch and size."""

import io
import warnings
from typing import Any

import onnxruntime
import pytest
import torch
from torch import nn
from torch.export import Dim, ExportedProgram

from tests.contract.cases import SAMPLES, build, draw_inputs, relative_error, sample_id
from torchplug.card import Card, Sample

each_sample = pytest.mark.parametrize(("card", "sample"), SAMPLES, ids=sample_id)
# sides of 2 and 3 are left out: a pool makes them 1, and a side of 1 is another graph
HEIGHT, WIDTH = Dim("height", min=4, max=512), Dim("width", min=4, max=512)
BATCH = Dim("batch", max=64)


def dynamic_shapes(sample: Sample) -> tuple[Any, ...]:
    """Batch and sizes vary; further inputs, a forward's ``*others``, have sizes of their own."""
    first = {0: BATCH, 2: HEIGHT, 3: WIDTH}
    others = tuple(
        {
            0: BATCH,
            2: Dim(f"height_{index}", min=2, max=512),
            3: Dim(f"width_{index}", min=2, max=512),
        }
        for index, _ in enumerate(sample.other_shapes)
    )
    return (first, others) if others else (first,)


def other_inputs(sample: Sample) -> tuple[torch.Tensor, ...]:
    """Inputs with another batch, height and width than the traced ones."""
    size = (sample.shape[2] + 4, sample.shape[3] + 7)
    return draw_inputs(sample, dtype=torch.float32, seed=2, batch=3, size=size)


@each_sample
def test_compile_finds_one_graph_forward_and_backward(card: Card, sample: Sample) -> None:
    torch._dynamo.reset()
    module = build(card, sample, dtype=torch.float32)
    inputs = [x.requires_grad_() for x in draw_inputs(sample, dtype=torch.float32)]
    compiled = torch.compile(module, fullgraph=True, backend="aot_eager")
    output = compiled(*inputs)
    gradients = torch.autograd.grad(output.square().sum(), inputs)
    expected = torch.autograd.grad(module(*inputs).square().sum(), inputs)
    assert relative_error(output, module(*inputs)) < 1e-5
    for got, wanted in zip(gradients, expected, strict=True):
        assert relative_error(got, wanted) < 1e-4


_PROGRAMS: dict[tuple[str, str | None], ExportedProgram] = {}


def export(card: Card, sample: Sample, module: nn.Module) -> ExportedProgram:
    """Export a sample with every size open, once for all tests."""
    name = card.key, sample_id(sample)
    if name not in _PROGRAMS:
        inputs = draw_inputs(sample, dtype=torch.float32)
        shapes = dynamic_shapes(sample)
        _PROGRAMS[name] = torch.export.export(module, inputs, dynamic_shapes=shapes)
    return _PROGRAMS[name]


@each_sample
def test_export_is_dynamic_in_batch_and_size(card: Card, sample: Sample) -> None:
    module = build(card, sample, dtype=torch.float32)
    inputs = other_inputs(sample)
    program = export(card, sample, module).module()
    assert relative_error(program(*inputs), module(*inputs)) < 1e-5


@each_sample
def test_onnx_gives_the_same_output_in_onnxruntime(card: Card, sample: Sample) -> None:
    module = build(card, sample, dtype=torch.float32)
    file = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(export(card, sample, module), (), file, dynamo=True, verbose=False)
    session = onnxruntime.InferenceSession(file.getvalue(), providers=["CPUExecutionProvider"])
    inputs = other_inputs(sample)
    feeds = {place.name: x.numpy() for place, x in zip(session.get_inputs(), inputs, strict=True)}
    (output,) = session.run(None, feeds)
    assert relative_error(torch.from_numpy(output), module(*inputs).detach()) < 1e-4
