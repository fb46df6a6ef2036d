"""Sum maps by weights of their channels."""

from collections.abc import Sequence

import torch
from torch import Tensor


def weighted_sum(maps: Sequence[Tensor], weights: Sequence[Tensor]) -> Tensor:
    """Return the sum of ``weight * map`` over all pairs, in the type of the maps.

    Products are added as they are made, so no map of all branches is ever stacked.

    Args:
        maps: one or more, each ``(N, C, H, W)``.
        weights: one for each map, ``(N, C, 1, 1)``.

    >>> maps = [torch.ones(1, 2, 3, 5), torch.full((1, 2, 3, 5), 10.0)]
    >>> weighted_sum(maps, [torch.full((1, 2, 1, 1), w) for w in (0.5, 0.1)]).unique()
    tensor([1.5000])
    """
    dtype = maps[0].dtype  # autocast gives weights of a softmax in float32
    total = weights[0].to(dtype) * maps[0]
    for weight, feature in zip(weights[1:], maps[1:], strict=True):
        total = torch.addcmul(total, weight.to(dtype), feature)
    return total
