"""Let modules of maps (N, C, H, W) work where a host keeps its channels last, as Swin does."""

import dataclasses

from torch import Tensor, nn

from torchplug.surgery.sites import Site

CHANNELS_LAST = "NHWC"


class ChannelsSecond(nn.Module):
    """Run a module on (N, C, H, W) for a host that hands over (N, H, W, C).

    No number is copied or changed on the way: the map is seen with other strides.

    >>> import torch
    >>> ChannelsSecond(nn.Conv2d(8, 8, 1))(torch.rand(2, 5, 7, 8)).shape
    torch.Size([2, 5, 7, 8])
    """

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module
        self.identity_at_start = getattr(module, "identity_at_start", False)

    def forward(self, x: Tensor) -> Tensor:
        """Return what the module makes of ``x``, with the channels last again."""
        y: Tensor = self.module(x.permute(0, 3, 1, 2))
        return y.permute(0, 2, 3, 1)


def with_channels_second(site: Site) -> Site:
    """Return a site as the module on it sees its map."""
    if site.layout != CHANNELS_LAST:
        return site
    batch, height, width, channels = site.shape
    return dataclasses.replace(site, shape=(batch, channels, height, width), layout="NCHW")
