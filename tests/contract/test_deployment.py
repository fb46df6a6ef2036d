"""Every module compiles without a graph break and exports with dynamic batch and size."""

import io
import warnings

import onnxruntime
import pytest
import torch
from torch.export import Dim

from tests.contract.cases import SAMPLES, build, draw_input, relative_error, sample_id
from torchplug.card import Card, Sample

each_sample = pytest.mark.parametrize(("card", "sample"), SAMPLES, ids=sample_id)
# sides of 2 and 3 are left out: a pool makes them 1, and a side of 1 is another graph
HEIGHT, WIDTH = Dim("height", min=4, max=512), Dim("width", min=4, max=512)
DYNAMIC = ({0: Dim("batch", max=64), 2: HEIGHT, 3: WIDTH},)


def other_input(sample: Sample) -> torch.Tensor:
    """An input with another batch, height and width than the traced one."""
    shape = (3, sample.shape[1], sample.shape[2] + 4, sample.shape[3] + 7)
    return torch.randn(shape, generator=torch.Generator().manual_seed(2))


@each_sample
def test_compile_finds_one_graph_forward_and_backward(card: Card, sample: Sample) -> None:
    torch._dynamo.reset()
    module = build(card, sample, dtype=torch.float32)
    x = draw_input(sample, dtype=torch.float32).requires_grad_()
    compiled = torch.compile(module, fullgraph=True, backend="aot_eager")
    output = compiled(x)
    (gradient,) = torch.autograd.grad(output.square().sum(), x)
    (expected,) = torch.autograd.grad(module(x).square().sum(), x)
    assert relative_error(output, module(x)) < 1e-5
    assert relative_error(gradient, expected) < 1e-4


@each_sample
def test_export_is_dynamic_in_batch_and_size(card: Card, sample: Sample) -> None:
    module = build(card, sample, dtype=torch.float32)
    program = torch.export.export(
        module, (draw_input(sample, dtype=torch.float32),), dynamic_shapes=DYNAMIC
    )
    x = other_input(sample)
    assert relative_error(program.module()(x), module(x)) < 1e-5


@each_sample
def test_onnx_gives_the_same_output_in_onnxruntime(card: Card, sample: Sample) -> None:
    module = build(card, sample, dtype=torch.float32)
    file = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            module,
            (draw_input(sample, dtype=torch.float32),),
            file,
            dynamo=True,
            dynamic_shapes=DYNAMIC,
            verbose=False,
        )
    session = onnxruntime.InferenceSession(file.getvalue(), providers=["CPUExecutionProvider"])
    x = other_input(sample)
    (output,) = session.run(None, {session.get_inputs()[0].name: x.numpy()})
    assert relative_error(torch.from_numpy(output), module(x).detach()) < 1e-4
