"""Where trials run: in this process, in several, on a Ray cluster, under Slurm."""

from torchplug.comparison.engines.choose import ENGINES as ENGINES
from torchplug.comparison.engines.choose import EngineName as EngineName
from torchplug.comparison.engines.choose import Place as Place
from torchplug.comparison.engines.work import Engine as Engine
from torchplug.comparison.engines.work import Job as Job
from torchplug.comparison.engines.work import Work as Work

__all__ = ["ENGINES", "Engine", "EngineName", "Job", "Place", "Work"]
