"""Semantic embedding branches where a decoder receives the maps of its encoder."""

from typing import Any

import pytest
import segmentation_models_pytorch as smp
import torch
from torch import nn

import torchplug as tp
from tests.surgery.replacing import (
    EXAMPLE,
    assert_close,
    draw,
    fingerprint,
    step,
    unet,
    wake,
)


def test_semantic_embedding_refines_what_a_decoder_receives() -> None:
    model = unet().eval()
    before, expected = fingerprint(model), model(draw())
    report = tp.plug(model, "seb", example=EXAMPLE)
    assert report.paths == ("decoder",)
    assert torch.equal(model(draw()), expected)
    # four encoder maps have coarser ones above them; the image is no encoder map
    assert report.gate_parameters == 4
    received: list[Any] = []
    decoder = model.decoder
    wake(model)
    handle = decoder.torchplug.seb.register_forward_hook(
        lambda module, args, output: received.append((args[0][0], output[0][0]))
    )
    active = model(draw())
    handle.remove()
    (old, new), *_ = received
    gain, embed = decoder.torchplug.seb.gain, decoder.torchplug.seb.embeddings
    assert torch.equal(new[0], old[0])
    assert torch.equal(new[-1], old[-1])
    wanted = old[1] + gain[0] * (embed[0](old[1], old[2], old[3], old[4], old[5]) - old[1])
    assert_close(new[1], wanted)
    assert not torch.equal(active, expected)
    tp.unplug(model)
    assert [type(m) for m in model.modules()] == [type(m) for m in unet().modules()]
    assert len(before) == len(fingerprint(model))


def test_semantic_embedding_leaves_out_what_a_decoder_does_not_read() -> None:
    model = smp.DeepLabV3Plus("resnet18", encoder_weights=None)
    report = tp.plug(model, "seb", example=EXAMPLE)
    assert report.gate_parameters == 1
    assert {f"decoder.torchplug.seb.{name}" for name in ("gain",)} <= step(model.train())


class ReadsTheImage(nn.Module):
    """A decoder that looks at the image too."""

    def forward(self, maps: list[torch.Tensor]) -> torch.Tensor:
        return sum(nn.functional.interpolate(x, 16).mean(1) for x in maps)


class Pyramid(nn.Module):
    """Two maps and the image go into the decoder."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 4, 3, stride=2, padding=1)
        self.second = nn.Conv2d(4, 8, 3, stride=2, padding=1)
        self.decoder = ReadsTheImage()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.first(x)
        return self.decoder([x, y, self.second(y)])


def test_the_image_is_no_map_to_refine() -> None:
    model = Pyramid()
    assert tp.plug(model, "seb", example=(2, 3, 16, 16)).gate_parameters == 1
    assert model.decoder.torchplug.seb.embeddings[0].high_channels == (8,)


def test_semantic_embedding_goes_where_it_is_told() -> None:
    model = smp.FPN("resnet18", encoder_weights=None).eval()
    paths = tp.plug(model, "seb", "decoder.p?", example=EXAMPLE).paths
    assert paths == ("decoder.p4", "decoder.p3", "decoder.p2")
    with pytest.raises(tp.PlugError, match="got 'encoder'; name one of these with at=: decoder"):
        tp.plug(model, "seb", "encoder", example=EXAMPLE)
