"""The modules of the catalogue, one file a paper."""

from torchplug.modules.squeeze_excite import SqueezeExcite as SqueezeExcite

__all__ = ["SqueezeExcite"]
