"""Weights of other implementations are read whole or refused."""

from functools import partial
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

import torchplug as tp
from tests.contract.cases import CARDS, ROOT, oracle
from tests.modules.test_against_libraries import CASES
from tests.oracles import Golden, weights_of
from torchplug.card import Card, CheckpointFormat

FORMATS = [(card, known) for card in CARDS for known in card.formats]
STATES = [
    (card, golden)
    for card in CARDS
    for golden in oracle(card).GOLDENS
    if golden.source != "darknet"  # whose layers have no weights
]
# what one implementation varies itself
VARIED = {
    *("reduction", "hidden_channels", "min_hidden", "kernel_size", "kernel_sizes", "rates", "bins"),
    *(
        "stride",
        "dilation",
        "padding",
        "padding_mode",
        "groups",
        "cardinality",
        "radix",
        "branches",
    ),
    *("recurrence", "pools", "pooling", "pairwise", "scale", "variant", "dilated", "act_layer"),
    *("image_pooling", "atrous", "residual", "wiring", "split", "gate_layer", "fusion"),
}


def named(value: object) -> str | None:
    if isinstance(value, Card):
        return value.key
    return getattr(value, "source", None) if isinstance(value, CheckpointFormat) else None


def load(golden: Golden) -> dict[str, Tensor]:
    tensors = load_file(ROOT / "tests" / "golden" / f"{golden.name}.safetensors")
    return weights_of(golden, tensors)


def same(ours: Any, theirs: Any) -> bool:
    if isinstance(ours, partial) and isinstance(theirs, partial):
        return (ours.func, ours.args) == (theirs.func, theirs.args)
    return bool(ours == theirs)


@pytest.mark.parametrize(("card", "known"), FORMATS, ids=named)
def test_a_format_names_the_options_that_were_tried(card: Card, known: CheckpointFormat) -> None:
    """Those of a recording or a library, but for what that implementation varies itself."""
    goldens = [golden for golden in oracle(card).GOLDENS if golden.source == known.source]
    tried = [golden.options for golden in goldens]
    tried += [case[4] for case in CASES.values() if case[:2] == (card.key, known.source)]
    fitting = [
        options
        for options in tried
        if all(same(options.get(name, ...), value) for name, value in known.options.items())
        and set(options) - set(known.options) <= VARIED
    ]
    of_pieces = any(golden.factory is not None for golden in goldens)
    assert fitting or of_pieces or known.source == "official_head"


@pytest.mark.parametrize(("card", "golden"), STATES, ids=lambda v: getattr(v, "name", None))
def test_anything_else_is_refused(card: Card, golden: Golden) -> None:
    state = load(golden)
    inside = {f"layer1.0.slot.{name}": tensor for name, tensor in state.items()}
    with pytest.raises(tp.UsageError, match=r"pass the entries below 'layer1.0.slot.' without"):
        card.convert(inside, golden.source)
    with pytest.raises(tp.UsageError, match=r"got .*'classifier.weight'.*; "):
        card.convert({**state, "classifier.weight": torch.zeros(1)}, golden.source)
    with pytest.raises(tp.UsageError, match="an empty state"):
        card.convert({}, golden.source)


def test_a_source_that_fits_is_named() -> None:
    state = load(next(golden for card, golden in STATES if golden.source == "timm"))
    with pytest.raises(tp.UsageError, match=r"names of source='timm'"):
        tp.convert_state_dict(state, "cbam", source="official")


@pytest.mark.parametrize("state", [torch.nn.ReLU(), "weights.pth", None])
def test_what_is_no_state_dict_is_refused(state: Any) -> None:
    with pytest.raises(tp.UsageError, match=r"a state dict: got .*; pass module.state_dict"):
        tp.convert_state_dict(state, "cbam", source="official")


def test_a_plugged_network_is_told_where_its_entries_are() -> None:
    names = (
        "conv1.weight",
        "layer1.0.bn1.weight",
        "layer1.0.se.fc1.weight",
        "layer1.0.se.fc2.bias",
    )
    with pytest.raises(tp.UsageError, match=r"below 'layer1.0.se.'"):
        tp.convert_state_dict(dict.fromkeys(names, torch.zeros(1)), "se", source="timm")
