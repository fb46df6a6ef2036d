"""TensorFlow's padding, which PyTorch's convolutions lack where the stride is not one."""

from torch import Tensor, nn
from torch.nn import functional as F


class SamePad2d(nn.Module):
    """Pad a map as TensorFlow's ``SAME``: the strided layer then gives ``ceil(size / stride)``.

    As much as possible goes to both sides alike; what is left over goes to the right and the
    bottom. Symmetric padding samples other positions where the size is a multiple of the stride,
    so weights trained with the one are not good for the other.

    Args:
        kernel_size: of the layer that follows, which itself must not pad.
        stride: of that layer.
        dilation: of that layer.
        value: what the border holds; ``-inf`` before a max pool.

    Shape:
        ``(N, C, H, W) -> (N, C, H + rows, W + columns)``.

    >>> import torch
    >>> SamePad2d(3, 2)(torch.ones(1, 1, 2, 3))[0, 0]
    tensor([[0., 1., 1., 1., 0.],
            [0., 1., 1., 1., 0.],
            [0., 0., 0., 0., 0.]])
    """

    def __init__(
        self, kernel_size: int, stride: int, dilation: int = 1, value: float = 0.0
    ) -> None:
        super().__init__()
        self.kernel_size, self.stride, self.dilation = kernel_size, stride, dilation
        self.value = value

    def forward(self, x: Tensor) -> Tensor:
        """Return ``x`` with its border."""
        top, bottom = self._share(x.shape[-2])
        left, right = self._share(x.shape[-1])
        return F.pad(x, (left, right, top, bottom), value=self.value)

    def _share(self, size: int) -> tuple[int, int]:
        reach = self.dilation * (self.kernel_size - 1)
        total = reach - (size - 1) % self.stride
        # with gaps between the windows the last may end before the map does, which is cut off then
        first = total // 2 if reach >= self.stride - 1 else max(total, 0) // 2
        return first, total - first

    def extra_repr(self) -> str:
        """Name the layer that follows."""
        return f"kernel_size={self.kernel_size}, stride={self.stride}, dilation={self.dilation}"
