"""Attention of one head: PyTorch's fused operator, or rows of it where that is faster.

On processors the fused operator gains in float32 and loses in half precision, where each of its
blocks is converted (python -m benchmarks nl): there the weights of some rows at a time are made by
plain products. A map of all pairs of positions is kept for the way back only where it is small.
"""

import functools
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from torchplug.kernels.eager import differentiate, is_free, is_transformed, learns

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
    if is_transformed():  # the fused operators know no forward derivatives
        return _attend_plainly(query, key, value, scale)
    if _loses_by_fusing(query):
        return _attend_by_rows(query, key, value, scale)
    # one head; the fused operators take rows without gaps only
    q, k, v = (rows[:, None].contiguous() for rows in (query, key, value))
    if learns(q, k, v) and is_free(q) and q.shape[-1] == v.shape[-1] and q.numel():
        return _Fused.apply(q, k, v, scale)[:, 0]
    return F.scaled_dot_product_attention(q, k, v, scale=scale)[:, 0]


class _Fused(torch.autograd.Function):
    """The fused operator of processors, whose backward pass can be differentiated again."""

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
        ctx.scale = scale
        out, logsum = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
            query, key, value, scale=scale
        )
        ctx.save_for_backward(query, key, value, out, logsum)
        return out

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        query, key, value, out, logsum = ctx.saved_tensors
        if torch.is_grad_enabled():
            plain = functools.partial(_attend_plainly, scale=ctx.scale)
            return *differentiate(plain, (query, key, value), (dy,)), None
        found = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward(
            dy.contiguous(), query, key, value, out, logsum, 0.0, False, scale=ctx.scale
        )
        return *found, None


def _loses_by_fusing(query: Tensor) -> bool:
    is_half = query.dtype in (torch.bfloat16, torch.float16)
    return query.device.type == "cpu" and is_half and not torch.compiler.is_compiling()


def _attend_by_rows(query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
    pairs = query.shape[0] * query.shape[1] * key.shape[1]
    learning = learns(query, key, value)
    if learning and pairs * query.element_size() <= ROOM:
        return _attend_plainly(query, key, value, scale)
    step = max(BLOCK // max(query.shape[0] * key.shape[1], 1), 1)
    blocks = torch.split(query, step, 1)
    if not learning:
        return torch.cat([_attend_plainly(rows, key, value, scale) for rows in blocks], 1)
    done = [  # the weights of a block are made again on the way back
        checkpoint(_attend_plainly, rows, key, value, scale, use_reentrant=False) for rows in blocks
    ]
    return torch.cat(done, 1)


def _attend_plainly(query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
    return torch.softmax((query * scale) @ key.mT, -1) @ value
