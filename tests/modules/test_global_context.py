"""What no recording of a trained block shows."""

import pytest

from torchplug import GlobalContext


def test_the_mask_is_drawn_as_the_authors_do() -> None:
    mask = GlobalContext(8192).mask
    assert float(mask.weight.detach().std()) == pytest.approx((2 / 8192) ** 0.5, rel=0.05)
    assert not mask.bias.any()


def test_without_its_norm_the_bottleneck_may_have_one_channel() -> None:
    block = GlobalContext(8, hidden_channels=1, layer_norm=False)
    assert not [name for name in block.state_dict() if "norm" in name]
    with pytest.raises(ValueError, match="at least 1 hidden channel: got hidden_channels=0"):
        GlobalContext(8, hidden_channels=0, layer_norm=False)


@pytest.mark.parametrize(("pooling", "fusion"), [("attn", "add"), ("average", "mul")])
def test_an_unknown_choice_is_refused(pooling: str, fusion: str) -> None:
    with pytest.raises(ValueError, match=r"(pooling|fusion) is one of .*: got '(attn|mul)'; "):
        GlobalContext(32, pooling=pooling, fusion=fusion)
