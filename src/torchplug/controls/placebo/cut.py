"""Cut the information path of what was plugged: the placebo of a variant.

=======================  ==========================================================================
module                   what its placebo does
=======================  ==========================================================================
se, scse, cbam, bam,     the gate is computed from a map of ones and scales the real map
strippool
gc, nl, cc               the context is computed from one fixed map and added to the real map
sk, splat                the branches see the map; what weighs them sees ones
aspp                     every tap of the 3x3 branches sees the centre of its window, and the image
                         as a whole is one of ones
rfb, ssh                 every tap of every kernel sees the centre of its window
ppm                      the pyramid is one of a fixed map; the map itself passes
spp                      the windows of the maxima are single positions
seb                      the coarser maps are ones
a module of one's own    what it would add to a fixed map is added to the real map
acnet, dwconv, mixconv,  none: they are convolutions through which the map itself passes, so
blaze                    whatever were cut, the network would be cut; ask for a matched control
=======================  ==========================================================================
"""

from collections.abc import Callable, Iterator
from typing import Any

from torch import nn

from torchplug.catalog import cards
from torchplug.controls.placebo import modules as placebos
from torchplug.errors import PlugError, explain
from torchplug.modules import RFB, SSH, SpatialPyramidPooling
from torchplug.nn import IdentityStart
from torchplug.surgery import find_plugs
from torchplug.surgery.intake import Intake
from torchplug.surgery.replace import Replacement

Cut = Callable[[Any], None]
_SURGERY = "torchplug.surgery."


def cut_plugs(model: nn.Module) -> dict[str, str]:
    """Cut the information path of every plug of ``model``, in place.

    Parameters, their names and their values stay as they are.

    Args:
        model: a plugged network.

    Returns:
        What was cut, one sentence for each class of module.

    Raises:
        PlugError: if a plug has no honest placebo; nothing is changed then.

    >>> import torchplug as tp
    >>> from torchplug.hosts import build_model
    >>> model = build_model("torchplug:resnet8")
    >>> report = tp.plug(model, "se", example=(1, 3, 8, 8))
    >>> cut_plugs(model)
    {'SqueezeExcite': 'its gate is computed from ones, not from the image'}
    """
    found = [each for _, _, plug in find_plugs(model) for each in _find_modules(plug)]
    for module, is_attached in found:
        _find_rule(module, is_attached=is_attached)
    names = [type(module).__name__ for module, _ in found]
    told = [cut_module(module, is_attached=is_attached) for module, is_attached in found]
    return dict(zip(names, told, strict=True))


def cut_module(module: nn.Module, *, is_attached: bool = True) -> str:
    """Cut the information path of one module, in place, and say what was cut.

    Args:
        module: of the catalogue, or one's own.
        is_attached: whether it refines a map behind a module of the host, and keeps its shape.

    Raises:
        PlugError: if it has no honest placebo.

    >>> from torchplug.modules import SqueezeExcite
    >>> cut_module(SqueezeExcite(16))
    'its gate is computed from ones, not from the image'
    """
    told, cut = _find_rule(module, is_attached=is_attached)
    cut(module)
    module.train(module.training)
    return told


def _find_modules(plug: nn.Module, *, is_attached: bool = True) -> Iterator[tuple[nn.Module, bool]]:
    """Yield the modules that a plug holds, and whether each refines a map behind a host's module.

    What surgery puts around a module holds it as ``module``.
    """
    if isinstance(plug, Intake):
        yield from ((module, False) for module in plug.embeddings)
        return
    inner = getattr(plug, "module", None)
    is_wrapper = isinstance(plug, IdentityStart) or type(plug).__module__.startswith(_SURGERY)
    if is_wrapper and isinstance(inner, nn.Module):
        is_behind = is_attached and not isinstance(plug, Replacement)
        yield from _find_modules(inner, is_attached=is_behind)
    else:
        yield plug, is_attached


def _find_rule(module: nn.Module, *, is_attached: bool) -> tuple[str, Cut]:
    for kind, told, cut in _RULES:
        if type(module) is kind:
            return told, cut
    known = {card.factory for card in cards().values()}
    if is_attached and type(module) not in known:
        return "what it adds is computed from one fixed map, not from the image", _cut_own
    text = explain(
        "a placebo cuts the path on which a module learns of the image and lets the map pass",
        f"{type(module).__name__}, through which the map itself passes",
        "ask for a control of the same parameters or latency",
    )
    raise PlugError(text)


def _become(placebo: type[nn.Module]) -> Cut:
    def change(module: nn.Module) -> None:
        module.__class__ = placebo

    return change


def _see_centres(module: nn.Module) -> None:
    """Let every kernel larger than a point see the centre of its window only."""
    for layer in module.modules():
        if type(layer) is nn.Conv2d and layer.kernel_size != (1, 1):
            layer.__class__ = placebos.CentreConv


def _cut_aspp(module: nn.Module) -> None:
    _see_centres(module.get_submodule("branches"))
    module.__class__ = placebos.ASPPPlacebo


def _cut_pools(module: SpatialPyramidPooling) -> None:
    module.kernel_sizes = (1,) * len(module.kernel_sizes)


def _cut_own(module: nn.Module) -> None:
    module.__class__ = _make_own(type(module))


def _make_own(kind: type[nn.Module]) -> type[nn.Module]:
    """Return the placebo class of a class that torchplug does not know."""

    class Placebo(placebos._Context, kind):  # type: ignore[misc, valid-type]
        def __reduce_ex__(self, protocol: Any) -> Any:
            return _rebuild_own, (kind,), self.__dict__.copy()

    Placebo.__name__ = Placebo.__qualname__ = f"{kind.__name__}Placebo"
    return Placebo


def _rebuild_own(kind: type[nn.Module]) -> nn.Module:
    """Make an empty instance for pickle to fill."""
    cls = _make_own(kind)
    return cls.__new__(cls)


_GATE = "its gate is computed from ones, not from the image"
_CONTEXT = "its context is computed from one fixed map, not from the image"
_WEIGHTS = "what weighs its branches is computed from ones, not from the image"
_CENTRES = "every tap of its kernels sees the centre of its window, so it has no context"

_CLASSES: tuple[tuple[str, tuple[type[nn.Module], ...]], ...] = (
    (
        _GATE,
        (
            placebos.SqueezeExcitePlacebo,
            placebos.SpatialExcitePlacebo,
            placebos.ConcurrentSEPlacebo,
            placebos.ChannelGatePlacebo,
            placebos.SpatialGatePlacebo,
            placebos.CBAMPlacebo,
            placebos.BAMPlacebo,
            placebos.StripPoolingPlacebo,
        ),
    ),
    (
        _CONTEXT,
        (
            placebos.NonLocalPlacebo,
            placebos.CrissCrossPlacebo,
            placebos.GlobalContextPlacebo,
        ),
    ),
    (_WEIGHTS, (placebos.SelectiveKernelPlacebo, placebos.SplitAttentionPlacebo)),
    ("its pyramid is one of a fixed map, not of the image", (placebos.PyramidPoolingPlacebo,)),
    ("the coarser maps are ones", (placebos.SemanticEmbeddingPlacebo,)),
)
_RULES: tuple[tuple[type[nn.Module], str, Cut], ...] = (
    *(
        (placebo.__bases__[-1], told, _become(placebo))
        for told, classes in _CLASSES
        for placebo in classes
    ),
    (
        placebos.ASPPPlacebo.__bases__[-1],
        "its kernels see the centre of their windows, and the image as a whole is one of ones",
        _cut_aspp,
    ),
    (RFB, _CENTRES, _see_centres),
    (SSH, _CENTRES, _see_centres),
    (SpatialPyramidPooling, "the windows of its maxima are single positions", _cut_pools),
)
