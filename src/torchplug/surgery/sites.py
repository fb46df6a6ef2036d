"""The places in a model where a module can go, by role."""

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from torchplug.surgery.neck import find_neck
from torchplug.surgery.roles import ResidualBlock, Stages, find_blocks, find_image, find_stages
from torchplug.surgery.trace import Call, Trace, Value, read_example, record

ROLES = {
    "bottleneck": "the residual branch, before the add",
    "block": "after a residual block",
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
    """One place: the output of one module.

    ``path`` names the place as users see it (``layer1``); ``anchor`` is the module that carries
    the plug (``layer1.2``): the last block, which a host that checkpoints the blocks one by one
    cannot pass by.
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

    device: torch.device | None = None
    dtype: torch.dtype | None = None

    @property
    def id(self) -> str:
        """``role:path``, unique in a model."""
        return f"{self.role}:{self.path}"


@dataclass(frozen=True)
class Sites:
    """The sites of a model: iterable, filterable, and a table when printed.

    >>> from torch import nn
    >>> found = find_sites(nn.Sequential(nn.Conv2d(3, 8, 3), nn.AdaptiveAvgPool2d(1)), (1, 3, 9, 9))
    >>> [site.id for site in found]
    ['stage:0', 'backbone_end:0']
    """

    found: tuple[Site, ...]
    outputs: dict[str, Site]
    """Every module whose output is one map, by path: what a path or a glob can name."""

    def __iter__(self) -> Iterator[Site]:
        return iter(self.found)

    def __len__(self) -> int:
        return len(self.found)

    def __getitem__(self, index: int) -> Site:
        return self.found[index]

    def filter(self, where: Callable[[Site], bool]) -> "Sites":
        """Keep the sites for which ``where(site)`` is true."""
        return Sites(tuple(site for site in self.found if where(site)), self.outputs)

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
            }
            for site in self.found
        ]

    def __str__(self) -> str:
        header = ("role", "path", "stage", "channels", "stride", "H x W", "kernel", "runs")
        lines = [header] + [
            tuple(
                "-" if value is None else str(value)
                for value in (
                    *(row[name] for name in ("role", "path", "stage", "channels", "stride")),
                    f"{row['height']} x {row['width']}",
                    *(row[name] for name in ("kernel", "runs")),
                )
            )
            for row in self.rows()
        ]
        widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
        return "\n".join(
            "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
            for line in lines
        )


def find_sites(model: nn.Module, example: Any) -> Sites:
    """Return the places in ``model`` where a module can go, found by running it once.

    The model runs in evaluation mode without gradients and is left exactly as it was.

    Args:
        model: any module with feature maps; it is not changed.
        example: the shape of a small batch, a tensor, or the arguments of the forward.

    Returns:
        Sites in the order of roles, then of execution; printing them gives a table.
    """
    return sites_in(model, record(model, read_example(example, model)))


def sites_in(model: nn.Module, trace: Trace) -> Sites:
    """Return the sites that a trace of ``model`` shows."""
    blocks = find_blocks(trace)
    stages = find_stages(trace, blocks, model)
    neck = find_neck(trace, stages.backbone_end)
    maker = _SiteMaker(model, trace, stages)
    found = [*_sites_of_blocks(blocks, maker)]
    ends = () if stages.backbone_end is None else (stages.backbone_end,)
    found += [maker.at_end("stage", value) for value in stages.ends]
    found += [maker.at_end("backbone_end", value) for value in ends]
    found += [
        maker.make("conv3x3", value, [call])
        for value in trace.maps
        for call in value.producers
        if trace.runs[call.path] == 1 and maker.kernel_of(call.path) == (3, 3)
    ]
    found += [maker.make("upsample", value, maker.innermost(value)) for value in neck.upsamples]
    found += [maker.at_end("merge", value) for value in neck.merges]
    found += [maker.at_end("pyramid", value) for value in neck.levels]
    unique = {site.id: site for site in found if site is not None}
    outputs = {
        call.path: site
        for value in trace.maps
        for call in value.producers
        if call.path and (site := maker.make(NAMED, value, [call])) is not None
    }
    return Sites(tuple(unique.values()), outputs)


def _sites_of_blocks(blocks: list[ResidualBlock], maker: "_SiteMaker") -> Iterator[Site | None]:
    """The ends of the residual branches, then the outputs of the blocks."""
    for block in blocks:
        within = [call for call in block.branch.producers if call.path != block.call.path]
        inside = [call for call in within if _is_under(call.path, block.call.path)]
        yield maker.make("bottleneck", block.branch, inside[-1:])
    for block in blocks:
        outputs = [value for value in maker.trace.maps if block.call in value.producers]
        if outputs:
            yield maker.make("block", outputs[-1], [block.call])


class _SiteMaker:
    """Turns values of a trace into sites."""

    def __init__(self, model: nn.Module, trace: Trace, stages: Stages) -> None:
        self.model, self.trace, self.stages = model, trace, stages
        image = next((v for v in trace.values if v.op == "input" and len(v.shape) == 4), None)
        image = image or find_image(trace)  # a detector takes a list of images of three axes
        self.input_height = image.size[0] if image else 0

    def make(self, role: str, value: Value, calls: list[Call]) -> Site | None:
        """A site at the output of the given call; None where no module carries it."""
        if not calls:
            return None
        path = calls[-1].path
        anchor = self._innermost(path)
        return Site(
            role=role,
            path=path,
            anchor=anchor,
            stage=self.stages.number(value),
            shape=value.shape,
            channels=value.channels,
            size=value.size,
            stride=max(round(self.input_height / max(value.size[0], 1)), 1),
            runs=self.trace.runs[anchor],
            layout=value.layout or "NCHW",
            kernel=self.kernel_of(anchor),
            device=value.device,
            dtype=value.dtype,
        )

    def at_end(self, role: str, value: Value) -> Site | None:
        """A site at the outermost call that returns the value."""
        return self.make(role, value, self.outermost(value))

    def kernel_of(self, path: str) -> tuple[int, int] | None:
        """Kernel size of a two-dimensional convolution, None for any other module."""
        module = self.model.get_submodule(path)
        if not isinstance(module, nn.Conv2d):
            return None
        height, width = module.kernel_size
        return height, width

    def innermost(self, value: Value) -> list[Call]:
        """The innermost call that returns ``value`` and did not only hand it on."""
        return [call for call in value.producers if self.trace.entries.get(call) is not value][:1]

    def outermost(self, value: Value) -> list[Call]:
        """The outermost call that returns ``value`` and began at about its resolution.

        A whole backbone also returns the last stage's map; it is not the stage. Neither is a
        call that only hands the map on, such as an ``Identity``.
        """
        named = [call for call in value.producers if call.path]
        named = [call for call in named if self.trace.entries.get(call) is not value] or named
        for call in reversed(named):
            entry = self.trace.entries.get(call)
            if entry is None or not entry.is_map or entry.size[0] <= 2 * value.size[0]:
                return [call]
        return named[-1:]

    def _innermost(self, path: str) -> str:
        """Descend from a container to its last child, which returns the same map."""
        module = self.model.get_submodule(path)
        while isinstance(module, nn.Sequential) and len(module) > 0:
            last = [name for name in module._modules if name != "torchplug"][-1]
            child = module._modules[last]
            if child is None or self.trace.runs[f"{path}.{last}"] != 1:
                break
            path, module = f"{path}.{last}", child
        return path


def _is_under(path: str, parent: str) -> bool:
    return not parent or path.startswith(parent + ".")
