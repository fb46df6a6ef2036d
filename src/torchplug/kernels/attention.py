"""Attention of one head: PyTorch's fused operator, or rows of it where that is faster.

On processors the fused operator gains in float32 and loses in half precision, where each of its
blocks is converted (python -m benchmarks nl): there the weights of some rows at a time are made by
plain products. A map of all pairs of positions is kept for the way back only where it is small.
"""

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

ROOM = 1 << 26
"""Bytes of the weights of all pairs below which they are kept for the backward pass."""

BLOCK = 1 << 22
"""Elements of the weights of one block of rows."""


def attend(query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
    """Return ``softmax(scale * query @ key.mT) @ value``.

    Args:
        query: ``(N, positions, width)``.
        key: ``(N, others, width)``.
        value: ``(N, others, values)``.
        scale: of the logits.

    >>> rows = torch.ones(1, 3, 2)
    >>> attend(rows, rows, rows, 1.0).unique()
    tensor([1.])
    """
    if _loses_by_fusing(query):
        return _attend_by_rows(query, key, value, scale)
    # one head; the fused operators take rows without gaps only
    query, key, value = (rows[:, None].contiguous() for rows in (query, key, value))
    return F.scaled_dot_product_attention(query, key, value, scale=scale)[:, 0]


def _loses_by_fusing(query: Tensor) -> bool:
    is_half = query.dtype in (torch.bfloat16, torch.float16)
    return query.device.type == "cpu" and is_half and not torch.compiler.is_compiling()


def _attend_by_rows(query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
    pairs = query.shape[0] * query.shape[1] * key.shape[1]
    learns = torch.is_grad_enabled() and any(t.requires_grad for t in (query, key, value))
    if learns and pairs * query.element_size() <= ROOM:
        return _attend_plainly(query, key, value, scale)
    step = max(BLOCK // max(query.shape[0] * key.shape[1], 1), 1)
    blocks = torch.split(query, step, 1)
    if not learns:
        return torch.cat([_attend_plainly(rows, key, value, scale) for rows in blocks], 1)
    done = [  # the weights of a block are made again on the way back
        checkpoint(_attend_plainly, rows, key, value, scale, use_reentrant=False) for rows in blocks
    ]
    return torch.cat(done, 1)


def _attend_plainly(query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
    return torch.softmax((query * scale) @ key.mT, -1) @ value
