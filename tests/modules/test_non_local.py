"""What the contract's four-dimensional inputs do not reach."""

from collections.abc import Callable
from functools import partial

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from tests.contract.cases import randomize, relative_error
from tests.oracles.non_local import reference
from torchplug import NonLocal, convert_state_dict, get_card


@pytest.mark.parametrize(("dimension", "shape"), [(1, (2, 8, 9)), (3, (2, 8, 3, 5, 6))])
@pytest.mark.parametrize("pairwise", ["embedded_gaussian", "dot_product", "concatenation"])
def test_sequences_and_video_give_the_same_as_an_image_of_their_positions(
    dimension: int, shape: tuple[int, ...], pairwise: str
) -> None:
    block = NonLocal(8, dimension=dimension, pairwise=pairwise, subsample="none").double().eval()
    nn.init.ones_(block.norm.weight)
    nn.init.normal_(block.expand.weight)
    image = NonLocal(8, pairwise=pairwise, subsample="none").double().eval()
    state = block.state_dict()
    image.load_state_dict(
        {
            name: value.reshape(*value.shape[:2], 1, 1) if value.ndim > 2 else value
            for name, value in state.items()
        }
    )
    x = torch.randn(shape, dtype=torch.float64)
    torch.testing.assert_close(block(x).flatten(2), image(x.flatten(2)[..., None]).flatten(2))
    assert not torch.equal(block(x), x)


@pytest.mark.parametrize("subsample", ["before", "after", "none"])
@pytest.mark.parametrize(
    "pairwise", ["embedded_gaussian", "gaussian", "dot_product", "concatenation"]
)
def test_every_pair_of_choices_equals_the_naive_reference(pairwise: str, subsample: str) -> None:
    block = NonLocal(6, pairwise=pairwise, subsample=subsample, dtype=torch.float64).eval()
    randomize(block, seed=0)
    x = torch.randn(2, 6, 5, 4, dtype=torch.float64)
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        output = block(x)
    assert relative_error(output, reference(block, x)) < 1e-12
    assert get_card("nl").flops(block, x.shape) == counter.get_total_flops()


def test_weights_are_drawn_as_the_authors_do() -> None:
    block = NonLocal(256)
    for layer in (block.query, block.key, block.value, block.expand):
        assert float(layer.weight.detach().std()) == pytest.approx(0.01, rel=0.05)
        assert not layer.bias.any()


def test_time_is_not_pooled() -> None:
    video = torch.randn(1, 8, 5, 4, 4)
    assert NonLocal(8, dimension=3)._pool(video).shape == (1, 8, 5, 2, 2)


def test_a_side_of_one_is_not_pooled() -> None:
    torch.manual_seed(0)
    line = NonLocal(8, dimension=1).double().eval()
    image = NonLocal(8).double().eval()
    nn.init.ones_(line.norm.weight)
    state = line.state_dict()
    image.load_state_dict({k: v[..., None] if v.ndim > 2 else v for k, v in state.items()})
    x = torch.randn(2, 8, 7, dtype=torch.float64)
    torch.testing.assert_close(image(x[:, :, None])[:, :, 0], line(x), rtol=0, atol=1e-14)
    assert line._pool(x).shape == (2, 8, 3)


@pytest.mark.parametrize(
    "norm_layer",
    [
        None,
        nn.BatchNorm2d,
        partial(nn.BatchNorm2d, affine=False),
        nn.InstanceNorm2d,
        partial(nn.GroupNorm, 4),
    ],
)
def test_it_starts_as_the_identity_with_any_norm(
    norm_layer: Callable[..., nn.Module] | None,
) -> None:
    x = torch.randn(2, 8, 5, 7)
    assert torch.equal(NonLocal(8, norm_layer=norm_layer)(x), x)


@pytest.mark.parametrize("norm", [True, False])
def test_weights_of_a_sub_sampling_copy_are_read(norm: bool) -> None:
    block = NonLocal(8, subsample="after", norm_layer=nn.BatchNorm2d if norm else None)
    theirs = {"query": "theta", "key": "phi.0", "value": "g.0", "expand": "W", "norm": "W.1"}
    if norm:
        theirs["expand"] = "W.0"
    state = {}
    for name, tensor in block.state_dict().items():
        layer, _, rest = name.partition(".")
        state[f"{theirs[layer]}.{rest}"] = tensor
    block.load_state_dict(convert_state_dict(state, "nl", source="alexhex7"))


def test_attention_keeps_no_map_of_all_pairs_for_backward() -> None:
    """The memory that softmax attention saves grows with the positions, not with their square."""

    def saved_bytes(size: int) -> int:
        kept: dict[int, int] = {}

        def pack(tensor: torch.Tensor) -> torch.Tensor:
            kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        block = NonLocal(16, subsample="none")
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            block(torch.randn(1, 16, size, size, requires_grad=True))
        return sum(kept.values())

    assert saved_bytes(48) < 5 * saved_bytes(24)


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"pairwise": "cosine"}, "pairwise is one of .*: got 'cosine'; choose one"),
        ({"subsample": "befor"}, "did you mean 'before'"),
        ({"dimension": 4}, "dimension is 1, 2 or 3"),
        ({"reduction": 16}, "got channels=8 and reduction=16"),
    ],
)
def test_impossible_options_are_refused(options: dict[str, object], text: str) -> None:
    with pytest.raises(ValueError, match=text):
        NonLocal(8, **options)


def test_a_sequence_of_any_length_can_be_exported() -> None:
    block = NonLocal(6, dimension=1).double().eval()
    nn.init.ones_(block.norm.weight)
    dynamic = torch.export.Dim.DYNAMIC
    x = torch.randn(2, 6, 11, dtype=torch.float64)
    program = torch.export.export(block, (x,), dynamic_shapes=({0: dynamic, 2: dynamic},))
    longer = torch.randn(3, 6, 18, dtype=torch.float64)
    assert relative_error(program.module()(longer), block(longer)) < 1e-12


def test_forward_derivatives_go_through_the_attention() -> None:
    block = NonLocal(6).double().eval()
    nn.init.ones_(block.norm.weight)
    x, way = torch.randn(2, 2, 6, 5, 4, dtype=torch.float64)
    _, found = torch.func.jvp(block, (x,), (way,))
    wanted = (block(x + 1e-6 * way) - block(x - 1e-6 * way)) / 2e-6
    assert relative_error(found, wanted) < 1e-6


@pytest.mark.parametrize("dimension", [1, 2, 3])
def test_a_projection_with_a_hook_is_called(dimension: int) -> None:
    block = NonLocal(6, dimension=dimension, pairwise="concatenation").double().eval()
    nn.init.ones_(block.norm.weight)
    x, calls = torch.randn(2, 6, *(4, 5, 3)[:dimension], dtype=torch.float64), []
    expected = block(x)
    block.project.register_forward_hook(lambda *_: calls.append(1))
    assert relative_error(block(x), expected) < 1e-12
    assert calls == [1]
