"""SSH: recordings of a port of the authors' network, of RetinaFace and of a copied part."""

from functools import partial

import torch
from torch import Tensor, nn

from tests.oracles import Golden
from tests.oracles.naive_layers import run
from torchplug.modules import SSH

GOLDENS = (
    Golden("ssh__caffe_port__M2_in16_det16_ctx8", "official", (16, 32)),
    Golden("ssh__caffe_port__M2_in10_det12_ctx6", "official", (10, 24)),
    Golden(
        "ssh__retinaface_pytorch__in10_out24",
        "retinaface",
        (10, 24),
        {"norm_layer": nn.BatchNorm2d, "act_layer": partial(nn.LeakyReLU, 0.1)},
    ),
    Golden(
        "ssh__seed__context_c9",
        "ebook",
        (9, 8),
        {"context_only": True, "norm_layer": nn.BatchNorm2d},
    ),
)


def reference(module: SSH, x: Tensor) -> Tensor:
    """Figures 3 and 4 with the five convolutions taken apart again, one sample at a time."""
    return torch.stack([look(module, sample) for sample in x])


def look(module: SSH, sample: Tensor) -> Tensor:
    half, quarter = module.detection_channels, module.context_channels
    context = run(module.act, run(module.field3, sample)[half:])
    seen5 = run(module.field5, context)[:quarter]
    seen7 = run(module.field7, run(module.act, run(module.field5, context)[quarter:]))
    return torch.cat([run(module.field3, sample)[:half], seen5, seen7]).clamp(min=0)
