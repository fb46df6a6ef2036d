"""What a network costs."""

from torchplug.analysis.cost import count_flops as count_flops
from torchplug.analysis.cost import count_parameters as count_parameters

__all__ = ["count_flops", "count_parameters"]
