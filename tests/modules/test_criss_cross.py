"""What criss-cross attention sees, keeps in memory and refuses."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from torchplug import CrissCross


def wake(block: CrissCross) -> CrissCross:
    """Let the attention reach the output."""
    nn.init.ones_(block.gamma)
    return block


@pytest.mark.parametrize(("recurrence", "seen"), [(1, 9 + 7 - 1), (2, 9 * 7)])
def test_one_pass_sees_a_cross_and_two_see_everything(recurrence: int, seen: int) -> None:
    block = wake(CrissCross(16, recurrence=recurrence)).double()
    x = torch.randn(1, 16, 9, 7, dtype=torch.float64, requires_grad=True)
    block(x)[0, :, 2, 3].square().sum().backward()
    assert int((x.grad.abs().amax(1) > 0).sum()) == seen


def test_the_weights_of_one_position_sum_to_one() -> None:
    block = CrissCross(8, dtype=torch.float64)
    nn.init.zeros_(block.value.weight)
    nn.init.ones_(block.value.bias)
    gathered = block.gather(torch.randn(2, 8, 5, 6, dtype=torch.float64))
    torch.testing.assert_close(gathered, torch.ones_like(gathered), rtol=0, atol=1e-14)


def kept_bytes(function: Callable[[Tensor], Tensor], shape: tuple[int, ...]) -> int:
    """Bytes that autograd keeps for backward, without parameters, counted on the meta device."""
    kept = []

    def pack(tensor: Tensor) -> Tensor:
        kept.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        function(torch.empty(shape, device="meta", requires_grad=True))
    storages = {
        t.untyped_storage()._cdata: t.untyped_storage().nbytes()
        for t in kept
        if not isinstance(t, nn.Parameter)
    }
    return sum(storages.values())


def test_a_pass_keeps_less_than_a_fifth_of_what_dense_attention_keeps() -> None:
    block = CrissCross(512, recurrence=1, device="meta")

    def attend_to_all_pairs(x: Tensor) -> Tensor:
        layers = (block.query, block.key, block.value)
        query, key, value = (layer(x).flatten(2) for layer in layers)
        weights = torch.bmm(query.mT, key).softmax(-1)
        return x + block.gamma * torch.bmm(value, weights.mT).view_as(x)

    shape = (1, 512, 97, 97)
    ours, dense = kept_bytes(block, shape), kept_bytes(attend_to_all_pairs, shape)
    assert 5 * ours <= dense


def test_a_pass_keeps_each_of_its_maps_once_in_batches_too() -> None:
    """Input, query, key, value, weights and what was gathered: no second copy for the columns."""
    batch, channels, hidden, height, width = 4, 64, 8, 11, 9
    block = CrissCross(channels, recurrence=1, device="meta")
    floats = 3 * channels + 2 * hidden + height + width
    mask = height * height
    got = kept_bytes(block, (batch, channels, height, width))
    assert got <= 4 * batch * height * width * floats + mask


def test_half_precision_works() -> None:
    block = wake(CrissCross(16)).half()
    output = block(torch.randn(1, 16, 5, 7).half())
    assert output.dtype == torch.float16
    assert output.isfinite().all()


def test_autocast_keeps_the_type_of_the_map() -> None:
    block = wake(CrissCross(16))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        for dtype in (torch.bfloat16, torch.float32):
            assert block(torch.randn(1, 16, 5, 7).to(dtype)).dtype == dtype


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"recurrence": 0}, "recurrence must be at least 1: got recurrence=0"),
        ({"reduction": 32}, "got channels=16 and reduction=32; pass hidden_channels=1"),
    ],
)
def test_impossible_options_are_refused(options: dict[str, int], text: str) -> None:
    with pytest.raises(ValueError, match=text):
        CrissCross(16, **options)


def test_an_empty_batch_passes() -> None:
    assert CrissCross(16)(torch.randn(0, 16, 4, 5)).shape == (0, 16, 4, 5)
