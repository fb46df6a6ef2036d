"""What no recording of a trained block shows."""

import pytest

from torchplug import GlobalContext


def test_the_mask_is_drawn_as_the_authors_do() -> None:
    mask = GlobalContext(8192).mask
    assert float(mask.weight.detach().std()) == pytest.approx((2 / 8192) ** 0.5, rel=0.05)
    assert not mask.bias.any()


@pytest.mark.parametrize(("pooling", "fusion"), [("attn", "add"), ("average", "mul")])
def test_an_unknown_choice_is_refused(pooling: str, fusion: str) -> None:
    with pytest.raises(ValueError, match=r"(pooling|fusion) is one of .*: got '(attn|mul)'; "):
        GlobalContext(32, pooling=pooling, fusion=fusion)
