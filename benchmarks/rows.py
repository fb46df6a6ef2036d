"""What is measured: one or more constructions of every system, at the sizes of its papers."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from torchplug import get_card


@dataclass(frozen=True)
class Row:
    """One construction of a module and the maps that it gets."""

    name: str
    key: str
    args: tuple[Any, ...]
    shapes: tuple[tuple[int, ...], ...]
    options: Mapping[str, Any] = field(default_factory=dict)
    train: bool = True
    """Whether a training step is measured; the largest maps are measured in evaluation only."""

    def build(self) -> nn.Module:
        return get_card(self.key).factory(*self.args, **self.options)


GATE = ((8, 256, 56, 56),)
HEAD = ((1, 2048, 60, 60),)

ROWS = (
    Row("se", "se", (256,), GATE),
    Row("scse", "scse", (256,), GATE),
    Row("scse add r16", "scse", (256,), GATE, {"fusion": "add", "reduction": 16}),
    Row("gc", "gc", (256,), GATE),
    Row("cbam", "cbam", (256,), GATE),
    Row("bam", "bam", (256,), GATE),
    Row("strippool", "strippool", (256,), ((2, 256, 32, 32),)),
    Row("nl", "nl", (512,), ((2, 512, 28, 28),)),
    Row("nl without pooling", "nl", (256,), ((1, 256, 64, 64),), {"subsample": "none"}),
    Row("cc r1", "cc", (512,), ((1, 512, 97, 97),), {"recurrence": 1}),
    Row("cc r2", "cc", (512,), ((1, 512, 97, 97),)),
    Row("sk", "sk", (128, 128), ((8, 128, 28, 28),)),
    Row("splat", "splat", (64, 64), ((8, 64, 56, 56),)),
    Row("acnet", "acnet", (64, 64), ((8, 64, 56, 56),)),
    Row("mixconv", "mixconv", (120,), ((8, 120, 28, 28),), {"kernel_sizes": (3, 5, 7)}),
    Row("dwconv", "dwconv", (128, 128), ((8, 128, 56, 56),), {"bias": False}),
    Row("blazeblock", "blazeblock", (48, 48), ((8, 48, 64, 64),)),
    Row("blazeblock wider", "blazeblock", (24, 48), ((8, 24, 64, 64),), {"stride": 2}),
    Row("aspp", "aspp", (512, 256), ((2, 512, 33, 33),)),
    Row("aspp separable", "aspp", (512, 256), ((2, 512, 33, 33),), {"atrous": "separable"}),
    Row("spp pools", "spp", (512, None), ((1, 512, 20, 20),), {"reduction": None}),
    Row("spp", "spp", (512, 512), ((1, 512, 20, 20),)),
    Row(
        "ppm 1x1",
        "ppm",
        (2048, 1024),
        HEAD,
        {"kernel_size": 1, "reduction": 1, "norm_layer": None, "branch_act_layer": None},
        train=False,
    ),
    Row("ppm 3x3", "ppm", (2048, 512), HEAD, train=False),
    Row("ppm small", "ppm", (512, 128), ((2, 512, 32, 32),)),
    Row("rfb", "rfb", (256, 256), ((2, 256, 38, 38),)),
    Row("ssh", "ssh", (256, 256), ((1, 256, 40, 40),)),
    Row("seb", "seb", (64, 128), ((4, 64, 64, 64), (4, 128, 32, 32))),
)
