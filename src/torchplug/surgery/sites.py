"""The places in a model where a module can go, by role."""

import dataclasses
import importlib
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

from torchplug.errors import MissingExtra, explain
from torchplug.surgery.metadata import TRACE

ROLES = {
    "bottleneck": "the residual branch, before the add",
    "block": "after a residual block, or a block of a decoder",
    "stage": "the end of a stage",
    "backbone_end": "the last map before pooling or head",
    "conv3x3": "the output of a 3x3 convolution",
    "upsample": "an upsampled map",
    "merge": "where an upsampled map joins another",
    "pyramid": "a level of the maps of several sizes that a neck or decoder hands on",
}
NAMED = "named"
"""The role of a site that was chosen by its path."""


@dataclass(frozen=True, kw_only=True)
class Site:
    """One place: the output of one module, or an operation where no module carries the place.

    ``path`` names the place as users see it (``layer1``); ``anchor`` is the module that carries
    the plug (``layer1.2``): the last block, which a host that checkpoints the blocks one by one
    cannot pass by. For an operation both are ``module!op#k``, the result of the k-th call of
    ``op`` while ``module`` runs (``features!relu#0``), or ``module!op#k.i``, its i-th operand.
    """

    role: str
    path: str
    anchor: str
    stage: int | None
    """From 1, the first stage after the stem; ``None`` in stem and head."""

    shape: tuple[int, ...]
    channels: int
    size: tuple[int, int]
    """Height and width of the map for the example."""

    stride: int
    """Input height over map height, rounded."""

    runs: int
    """How often the anchor ran in one forward."""

    layout: str
    kernel: tuple[int, int] | None = None
    """Kernel size where the anchor is a convolution."""

    source: str = TRACE
    """Who said so: ``"user"`` (a path, ``torchplug_roles``), ``"metadata"`` or ``"trace"``."""

    device: torch.device | None = None
    dtype: torch.dtype | None = None

    @property
    def id(self) -> str:
        """``role:path``, unique in a model."""
        return f"{self.role}:{self.path}"

    @property
    def kind(self) -> str:
        """What carries the plug: ``"module"`` or ``"op"``."""
        return "op" if "!" in self.anchor else "module"


@dataclass(frozen=True, repr=False)
class Sites:
    """The sites of a model: iterable, filterable, and a table when printed.

    >>> import torchplug as tp
    >>> from torch import nn
    >>> found = tp.sites(nn.Sequential(nn.Conv2d(3, 8, 3), nn.AdaptiveAvgPool2d(1)), (1, 3, 9, 9))
    >>> [site.id for site in found]
    ['stage:0', 'backbone_end:0', 'conv3x3:0']
    """

    found: tuple[Site, ...]
    outputs: dict[str, Site]
    """Every module whose output is one map, by path: what a path or a glob can name."""

    several: Mapping[str, tuple[Site | None, ...]] = field(default_factory=dict)
    """Of every module that returns maps in a list, a tuple or a mapping: where each is made."""

    idle: frozenset[str] = frozenset()
    """Modules that did not run on the example."""

    aliases: Mapping[str, str] = field(default_factory=dict)
    """Further names of a module that has several, with its first."""

    find_operation: Callable[[str], list[Site]] = field(default=lambda _: [], compare=False)
    """Where the operations are that a text such as ``layer?.0!relu#1`` names."""

    def __iter__(self) -> Iterator[Site]:
        return iter(self.found)

    def __len__(self) -> int:
        return len(self.found)

    def __getitem__(self, index: int) -> Site:
        return self.found[index]

    def filter(self, where: Callable[[Site], bool]) -> "Sites":
        """Keep the sites for which ``where(site)`` is true."""
        return dataclasses.replace(self, found=tuple(site for site in self.found if where(site)))

    def with_role(self, role: str) -> "Sites":
        """Keep the sites of one role."""
        return self.filter(lambda site: site.role == role)

    @property
    def roles(self) -> Counter[str]:
        """How many sites each role has."""
        return Counter(site.role for site in self.found)

    def rows(self) -> list[dict[str, Any]]:
        """Return the table as plain records, for pandas or a file."""
        return [
            {
                "role": site.role,
                "path": site.path,
                "stage": site.stage,
                "channels": site.channels,
                "stride": site.stride,
                "height": site.size[0],
                "width": site.size[1],
                "kernel": None if site.kernel is None else f"{site.kernel[0]}x{site.kernel[1]}",
                "runs": site.runs,
                "anchor": site.anchor,
                "kind": site.kind,
                "source": site.source,
            }
            for site in self.found
        ]

    def to_pandas(self) -> Any:
        """Return the table as a ``pandas.DataFrame``, one row for each site, indexed by id.

        Raises:
            MissingExtra: if pandas is not installed.

        >>> import torchplug as tp
        >>> from torchplug.hosts import build_model
        >>> sites = tp.sites(build_model("torchplug:resnet8", in_channels=1), (1, 1, 8, 8))
        >>> sites.rows()[0]["channels"]  # sites.to_pandas()["channels"]["bottleneck:layer1.bn2"]
        16
        """
        try:
            pandas = importlib.import_module("pandas")
        except ModuleNotFoundError as error:
            fix = "install it with: pip install pandas; rows() needs nothing"
            text = explain("to_pandas needs pandas", "an environment without it", fix)
            raise MissingExtra(text) from error
        index = pandas.Index([site.id for site in self.found], name="id")
        return pandas.DataFrame(self.rows(), index=index)

    def __str__(self) -> str:
        cells = [tuple(_HEADER)]
        for row in self.rows():
            row["H x W"] = f"{row['height']} x {row['width']}"
            row["anchor"] = None if row["anchor"] == row["path"] else row["anchor"]
            cells.append(tuple("-" if row[n] is None else str(row[n]) for n in _HEADER))
        widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
        return "\n".join(
            "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
            for line in cells
        )

    __repr__ = __str__


_HEADER = ["role", "path", "stage", "channels", "stride", "H x W"]
_HEADER += ["kernel", "runs", "kind", "anchor", "source"]
