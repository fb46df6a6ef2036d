"""What the contract's four-dimensional inputs do not reach."""

import pytest
import torch
from torch import nn

from torchplug import NonLocal


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


def test_time_is_not_pooled() -> None:
    video = torch.randn(1, 8, 5, 4, 4)
    assert NonLocal(8, dimension=3)._pool(video).shape == (1, 8, 5, 2, 2)


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
        ({"pairwise": "cosine"}, "pairwise is one of .*: got 'cosine'; choose from"),
        ({"subsample": "befor"}, "did you mean 'before'"),
        ({"dimension": 4}, "dimension is 1, 2 or 3"),
        ({"reduction": 16}, "got channels=8 and reduction=16"),
    ],
)
def test_impossible_options_are_refused(options: dict[str, object], text: str) -> None:
    with pytest.raises(ValueError, match=text):
        NonLocal(8, **options)
