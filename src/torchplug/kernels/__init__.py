"""Operators with a faster eager form; each has a plain twin of the same meaning beside it."""

from torchplug.kernels.attention import attend as attend
from torchplug.kernels.gates import Rule as Rule
from torchplug.kernels.gates import add_context as add_context
from torchplug.kernels.gates import apply_gate as apply_gate
from torchplug.kernels.gates import apply_gates as apply_gates
from torchplug.kernels.pools import add_strips as add_strips
from torchplug.kernels.pools import pool_positions as pool_positions
from torchplug.kernels.pools import pool_strips as pool_strips
from torchplug.kernels.pools import scale_in_turn as scale_in_turn
from torchplug.kernels.projections import pool_and_project as pool_and_project
from torchplug.kernels.projections import pool_weighted as pool_weighted
from torchplug.kernels.projections import project as project
from torchplug.kernels.projections import see_around as see_around

__all__ = [
    "Rule",
    "add_context",
    "add_strips",
    "apply_gate",
    "apply_gates",
    "attend",
    "pool_and_project",
    "pool_positions",
    "pool_strips",
    "pool_weighted",
    "project",
    "scale_in_turn",
    "see_around",
]
