"""Data."""

from torchplug.comparison.data.assemble import DataWarning
from torchplug.comparison.data.items import LazyItems, MemoryItems
from torchplug.comparison.data.load import load_data
from torchplug.comparison.data.task_data import TaskData

ImageData = TaskData

__all__ = ["DataWarning", "ImageData", "LazyItems", "MemoryItems", "TaskData", "load_data"]
