"""SPP: recordings of darknet's C code, of ultralytics and of YOLOX."""

from functools import partial

import torch
from torch import Tensor, nn

from tests.oracles import Golden
from tests.oracles.naive_layers import run
from torchplug.modules import SpatialPyramidPooling

_BARE = {"reduction": None, "order": "map_last"}

GOLDENS = (
    Golden("spp__darknet__cfg_13x19", "darknet", (5, None), _BARE),
    Golden("spp__darknet__cfg_6x7_smaller_than_kernel", "darknet", (3, None), _BARE),
    Golden("spp__ultralytics__spp_5_9_13", "ultralytics", (16, 12)),
    Golden("spp__ultralytics__spp_3_7", "ultralytics", (10, 12), {"kernel_sizes": (3, 7)}),
    Golden(
        "spp__yolox__lrelu_5_9_13",
        "yolox",
        (16, 12),
        {"act_layer": partial(nn.LeakyReLU, 0.1)},
    ),
)


def reference(module: SpatialPyramidPooling, x: Tensor) -> Tensor:
    """Every window cut out of the map, one sample at a time."""
    return torch.stack([pool_pyramid(module, sample) for sample in x])


def pool_pyramid(module: SpatialPyramidPooling, sample: Tensor) -> Tensor:
    hidden = run(module.reduce or nn.Identity(), sample)
    maps = [hidden, *(largest(hidden, size) for size in module.kernel_sizes)]
    if module.order == "map_last":
        maps.reverse()
    return run(module.project or nn.Identity(), torch.cat(maps))


def largest(sample: Tensor, size: int) -> Tensor:
    reach = size // 2
    result = torch.empty_like(sample)
    for h in range(sample.shape[1]):
        for w in range(sample.shape[2]):
            rows = slice(max(h - reach, 0), h + reach + 1)
            columns = slice(max(w - reach, 0), w + reach + 1)
            result[:, h, w] = sample[:, rows, columns].flatten(1).amax(1)
    return result
