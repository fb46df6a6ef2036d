"""Old name of what holds images and their classes in memory; goes when nothing imports it."""

from torchplug.comparison.data.items import MemoryItems as Split

__all__ = ["Split"]
