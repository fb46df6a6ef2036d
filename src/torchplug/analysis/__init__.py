"""What a network costs."""

from torchplug.analysis.cost import count_flops as count_flops
from torchplug.analysis.cost import count_parameters as count_parameters
from torchplug.analysis.cost import measure_costs as measure_costs
from torchplug.analysis.latency import Latency as Latency
from torchplug.analysis.latency import measure_latency as measure_latency
from torchplug.analysis.memory import measure_memory as measure_memory

__all__ = [
    "Latency",
    "count_flops",
    "count_parameters",
    "measure_costs",
    "measure_latency",
    "measure_memory",
]
