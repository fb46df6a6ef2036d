"""Modules whose information is cut: same parameters, nearly the same work, nothing learned of x.

Each class below is a module of the catalogue with one step changed, and an instance becomes its
placebo by changing its class: weights, their names and their initial values stay.
"""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm

from torchplug.modules import (
    ASPP,
    BAM,
    CBAM,
    ChannelGate,
    ConcurrentSE,
    CrissCross,
    GlobalContext,
    NonLocal,
    PyramidPooling,
    SelectiveKernel,
    SemanticEmbedding,
    SpatialExcite,
    SpatialGate,
    SplitAttention,
    SqueezeExcite,
    StripPooling,
)


def make_even(x: Tensor) -> Tensor:
    """Return a map of ones of the shape of ``x``: it says nothing of the image."""
    return torch.ones_like(x, requires_grad=False)


def make_texture(x: Tensor) -> Tensor:
    """Return a fixed map of the shape of ``x``, the same for every image and every call.

    Its values lie between 0.5 and 1.5 and differ from position to position and channel to
    channel, so that an attention has something to weigh and all of its weights learn.
    """
    generator = torch.Generator().manual_seed(0)
    values = torch.rand(x.shape[1:], generator=generator) + 0.5
    return values.to(device=x.device, dtype=x.dtype).expand_as(x)


class _Cut(nn.Module):
    """A module whose norms on the cut path only scale and shift.

    What does not change from image to image has no variance to normalize by: these batch norms
    keep their initial statistics, mean 0 and variance 1, also in training.
    """

    def find_cut(self) -> Iterable[nn.Module | None]:
        """Return the parts that see no image any more."""
        return [self]

    def train(self, mode: bool = True) -> Any:
        """Set the mode of all parts but those norms."""
        super().train(mode)
        for part in self.find_cut():
            for layer in part.modules() if part is not None else ():
                if isinstance(layer, _BatchNorm):
                    layer.training = False
        return self


class _Gate(_Cut):
    """The gate of a map of ones, applied to the real map: ``y = x * f(1)``, since f(1) = 1 * g."""

    def forward(self, x: Tensor) -> Tensor:
        """Return ``x`` scaled by a gate that does not depend on it."""
        return x * super().forward(make_even(x))


class _Fixed(nn.Module):
    """A module that keeps a fixed map from call to call; it is no part of its state."""

    def _fix(self, x: Tensor) -> Tensor:
        """Return the fixed map in the shape of ``x``."""
        key = (*x.shape[1:], x.device, x.dtype)
        if self.__dict__.get("_texture_key") != key:
            self.__dict__["_texture_key"] = key
            self.__dict__["_texture"] = make_texture(x[:1])
        return self.__dict__["_texture"].expand_as(x)


class _Context(_Fixed):
    """What a fixed map would gain, added to the real one: ``y = x + (f(c) - c)``."""

    def forward(self, x: Tensor) -> Tensor:
        """Return ``x`` plus something that does not depend on it."""
        fixed = self._fix(x)
        return x + (super().forward(fixed) - fixed)


class SqueezeExcitePlacebo(_Gate, SqueezeExcite):
    """A gate of each channel from averages of ones."""


class SpatialExcitePlacebo(_Gate, SpatialExcite):
    """A gate of each position from ones."""


class ConcurrentSEPlacebo(_Gate, ConcurrentSE):
    """Both gates from ones."""


class ChannelGatePlacebo(_Gate, ChannelGate):
    """A gate of each channel from pools of ones."""


class SpatialGatePlacebo(_Gate, SpatialGate):
    """A gate of each position from statistics of ones."""


class CBAMPlacebo(_Gate, CBAM):
    """Both gates from ones."""


class BAMPlacebo(_Gate, BAM):
    """Both branches from ones."""


class StripPoolingPlacebo(_Gate, StripPooling):
    """A gate of each element from rows and columns of ones."""


class NonLocalPlacebo(_Context, NonLocal):
    """What the positions of a fixed map gather from each other."""


class CrissCrossPlacebo(_Context, CrissCross):
    """What the positions of a fixed map gather from their rows and columns."""


class GlobalContextPlacebo(_Context, GlobalContext):
    """The context of a fixed map, added to the real one or scaling it."""

    def forward(self, x: Tensor) -> Tensor:
        """Return ``x`` with a context that does not depend on it."""
        return GlobalContext.forward(self, x)

    def _pool(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return x, GlobalContext._pool(self, self._fix(x))[1]


class SelectiveKernelPlacebo(_Cut, SelectiveKernel):
    """The branches see the map; what weighs them sees ones."""

    def find_cut(self) -> Iterable[nn.Module | None]:
        """Return the norm of the selection."""
        return [self.norm]

    def find_weights(self, means: Any) -> tuple[Tensor, ...]:
        """Return weights that are the same for every image."""
        return super().find_weights([make_even(mean) for mean in means])


class SplitAttentionPlacebo(_Cut, SplitAttention):
    """The splits see the map; what weighs them sees ones."""

    def find_cut(self) -> Iterable[nn.Module | None]:
        """Return the norm of the selection."""
        return [self.hidden_norm]

    def find_weights(self, means: Tensor) -> tuple[Tensor, ...]:
        """Return weights that are the same for every image."""
        return super().find_weights(make_even(means))


class PyramidPoolingPlacebo(_Cut, _Fixed, PyramidPooling):
    """The pyramid is one of a fixed map; the map itself passes to the last convolution.

    A pyramid of ones would be a constant, which the norm after the convolution takes out again.
    """

    def find_cut(self) -> Iterable[nn.Module | None]:
        """Return the pooled branches."""
        return [self.branches]

    def find_pyramid(self, x: Tensor) -> list[Tensor]:
        """Return the pyramid of a fixed map."""
        return super().find_pyramid(self._fix(x))


class ASPPPlacebo(_Cut, ASPP):
    """The image as a whole is one of ones; the branches' kernels see their centre only.

    What the image adds is then a constant, and rests where a batch norm takes constants out.
    """

    def find_cut(self) -> Iterable[nn.Module | None]:
        """Return the branch of the whole image."""
        return [self.image]

    def _see_image(self, x: Tensor, layers: Any) -> Tensor:
        return super()._see_image(make_even(x), layers)


class SemanticEmbeddingPlacebo(SemanticEmbedding):
    """The fine map passes; the coarser ones are ones."""

    def forward(self, low: Tensor, *higher: Tensor) -> Tensor:
        """Return ``low`` times what maps of ones say."""
        return super().forward(low, *(make_even(high) for high in higher))


class CentreConv(nn.Conv2d):
    """A convolution all of whose taps see the centre of their window.

    The same kernel and the same multiply-adds, and no context: what comes out at a position
    depends on that position alone.

    >>> conv, x = nn.Conv2d(2, 3, 3, padding=1, stride=2), torch.randn(1, 2, 5, 7)
    >>> shape, _ = conv(x).shape, setattr(conv, "__class__", CentreConv)
    >>> conv(x).shape == shape
    True
    """

    def forward(self, x: Tensor) -> Tensor:
        """Return what the kernel makes of each position, repeated over its taps."""
        for axis in (0, 1):
            x = x.index_select(axis + 2, self._find_centres(x, axis))
            x = x.repeat_interleave(self.kernel_size[axis], axis + 2)
        return F.conv2d(x, self.weight, self.bias, stride=self.kernel_size, groups=self.groups)

    def _find_centres(self, x: Tensor, axis: int) -> Tensor:
        size, kernel = x.shape[axis + 2], self.kernel_size[axis]
        reach = self.dilation[axis] * (kernel - 1)
        border, stride = int(self.padding[axis]), self.stride[axis]
        count = (size + 2 * border - reach - 1) // stride + 1
        centres = torch.arange(count, device=x.device) * stride - border + reach // 2
        return centres.clamp(0, size - 1)
