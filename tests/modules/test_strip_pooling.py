"""Strip pooling's other two classes, and what all three refuse."""

import io
import warnings
from collections.abc import Callable
from functools import partial

import onnxruntime
import pytest
import torch
from torch import Tensor, nn
from torch.export import Dim

from tests.contract.cases import randomize, relative_error
from torchplug import MixedPooling, StripPooling, StripPoolingHead, convert_state_dict

SIZES = {0: Dim("batch", max=64), 2: Dim("height", min=4, max=512), 3: Dim("width", min=4, max=512)}

each_class = pytest.mark.parametrize(
    "build",
    [
        partial(StripPooling, 16),
        partial(MixedPooling, 16, bins=(5, 3)),
        partial(StripPoolingHead, 32, 5, bins=(4, 1)),
    ],
    ids=lambda build: build.func.__name__,
)
Build = Callable[..., nn.Module]


def draw(build: Build) -> tuple[nn.Module, Tensor]:
    module = build()
    randomize(module, seed=0)
    return module.eval(), torch.randn(2, build.args[0], 9, 7)


@pytest.mark.parametrize(
    ("build", "parameters"),
    [
        (partial(StripPooling, 256), 460_032),
        (partial(StripPooling, 512), 1_837_568),
        (partial(MixedPooling, 1024), 4_397_568),
        (partial(StripPoolingHead, 2048, 150), 15_690_902),
    ],
)
def test_parameters_are_those_of_the_released_network(build: Build, parameters: int) -> None:
    assert sum(p.numel() for p in build(device="meta").parameters()) == parameters


@each_class
def test_channels_last_is_kept(build: Build) -> None:
    module, x = draw(build)
    output = module(x.to(memory_format=torch.channels_last))
    assert output.is_contiguous(memory_format=torch.channels_last)
    assert relative_error(output, module(x)) < 1e-5


@each_class
def test_half_precision_follows_full_precision(build: Build) -> None:
    module, x = draw(build)
    expected = module(x)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert relative_error(module(x).float(), expected) < 0.05
    output = module.bfloat16()(x.bfloat16())
    assert output.dtype == torch.bfloat16
    assert relative_error(output.float(), expected) < 0.1


@each_class
def test_training_compiles_and_exports_with_every_size_dynamic(build: Build) -> None:
    torch._dynamo.reset()
    module, x = draw(build)
    module.train()
    torch.compile(module, fullgraph=True, backend="aot_eager")(x)
    program = torch.export.export(module, (x,), dynamic_shapes=(SIZES,))
    other = torch.randn(5, x.shape[1], 12, 5)
    assert program.module()(other).shape[2:] == (12, 5)


@each_class
def test_onnx_gives_the_same_output_in_onnxruntime(build: Build) -> None:
    module, x = draw(build)
    file = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(module, (x,), file, dynamo=True, dynamic_shapes=(SIZES,), verbose=False)
    session = onnxruntime.InferenceSession(file.getvalue(), providers=["CPUExecutionProvider"])
    other = torch.randn(3, x.shape[1], 13, 14)
    (output,) = session.run(None, {session.get_inputs()[0].name: other.numpy()})
    assert relative_error(torch.from_numpy(output), module(other)) < 1e-4


@each_class
@pytest.mark.parametrize("size", [(1, 1), (2, 3), (30, 5)])
def test_small_and_odd_maps_work(build: Build, size: tuple[int, int]) -> None:
    module, x = draw(build)
    output = module(torch.randn(2, x.shape[1], *size))
    assert output.shape[2:] == size
    assert output.isfinite().all()


def test_the_gate_of_a_position_depends_on_its_row_and_column_and_their_neighbors() -> None:
    module = StripPooling(4).double().eval()
    randomize(module, seed=0)
    x = torch.randn(1, 4, 9, 8, dtype=torch.float64, requires_grad=True)
    module.find_gate(x)[0, :, 4, 3].sum().backward()
    seen = x.grad.abs().amax((0, 1)) > 0
    expected = torch.zeros(9, 8, dtype=torch.bool)
    expected[3:6] = True
    expected[:, 2:5] = True
    assert torch.equal(seen, expected)


def test_weights_of_the_authors_head_are_read() -> None:
    head = StripPoolingHead(32, 5)
    theirs = {
        f"strip_pool{i + 1}.{authors}.{number}": f"context.{i}.{ours}.{layer}"
        for i in range(2)
        for ours, authors in {
            "local": "conv2_0",
            "grids.0": "conv2_1",
            "grids.1": "conv2_2",
            "strips.vertical": "conv2_3",
            "strips.horizontal": "conv2_4",
            "near": "conv2_5",
            "far": "conv2_6",
            "expand": "conv3",
        }.items()
        for number, layer in enumerate(("conv", "norm"))
    }
    for ours, authors in (("reduce", "trans_layer"), ("mix", "score_layer")):
        theirs |= {f"{authors}.{i}": f"{ours}.{layer}" for i, layer in enumerate(("conv", "norm"))}
    theirs["score_layer.4"] = "classify"
    own = {name: torch.randn(t.shape).to(t.dtype) for name, t in head.state_dict().items()}
    state = {
        name + entry.removeprefix(ours): tensor
        for name, ours in theirs.items()
        for entry, tensor in own.items()
        if entry.startswith(ours + ".")
    }
    for i in range(2):  # the authors have two stems where we have one layer
        for number, layer in enumerate(("conv", "norm")):
            prefix = f"context.{i}.stem.{layer}."
            for entry in [name for name in own if name.startswith(prefix)]:
                halves = own[entry].chunk(2) if own[entry].ndim else [own[entry]] * 2
                for path, half in enumerate(halves, start=1):
                    name = f"strip_pool{i + 1}.conv1_{path}.{number}."
                    state[name + entry.removeprefix(prefix)] = half
    head.load_state_dict(convert_state_dict(state, "strippool", source="official_head"))
    assert all(torch.equal(head.state_dict()[name], own[name]) for name in own)


def test_a_grid_of_one_cell_refuses_to_train_on_one_image_and_says_what_to_do() -> None:
    block = MixedPooling(16, bins=(1,))
    with pytest.raises(ValueError, match=r"mixed pooling .* needs 2 images .*norm_layer="):
        block(torch.randn(1, 16, 5, 5))
    assert block.eval()(torch.randn(1, 16, 5, 5)).isfinite().all()


def test_strips_of_one_position_refuse_to_train_on_one_image() -> None:
    with pytest.raises(ValueError, match=r"strip pooling .* needs 2 images"):
        StripPooling(8)(torch.randn(1, 8, 1, 5))
    assert StripPooling(8)(torch.randn(1, 8, 2, 5)).isfinite().all()


@pytest.mark.parametrize(
    ("build", "text"),
    [
        (lambda: StripPooling(0), "channels must be at least 1"),
        (lambda: StripPooling(8, reduction=16), "at least 1 hidden channel"),
        (lambda: StripPooling(8, kernel_size=2), "kernel_size must be odd: got kernel_size=2"),
        (lambda: MixedPooling(3), "got channels=3 and reduction=4; pass hidden_channels=1"),
        (lambda: MixedPooling(8, bins=(3, 0)), r"a grid needs a cell: got bins=\(3, 0\)"),
        (lambda: StripPoolingHead(6, 2), "at least 4 hidden channels: got channels=6"),
        (lambda: StripPoolingHead(64, 0), "out_channels must be at least 1"),
    ],
)
def test_impossible_options_are_refused(build: Callable[[], nn.Module], text: str) -> None:
    with pytest.raises(ValueError, match=text):
        build()
