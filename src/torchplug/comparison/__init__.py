"""Compare variants honestly: paired seeds, one record a trial, a verdict in words."""

from torchplug.errors import require_extra

require_extra(
    ("numpy", "scipy", "statsmodels", "sklearn", "torchvision", "filelock"),
    extra="compare",
    purpose="a comparison",
)

from torchplug.comparison.progress import Event as Event
from torchplug.comparison.recipe import Recipe as Recipe
from torchplug.comparison.result import ComparisonResult as ComparisonResult
from torchplug.comparison.run import Run as Run
from torchplug.comparison.run import compare as compare
from torchplug.comparison.run import load_run as load_run
from torchplug.comparison.spec import BASELINE as BASELINE
from torchplug.comparison.spec import Comparison as Comparison
from torchplug.comparison.spec import Variant as Variant

__all__ = [
    "BASELINE",
    "Comparison",
    "ComparisonResult",
    "Event",
    "Recipe",
    "Run",
    "Variant",
    "compare",
    "load_run",
]
