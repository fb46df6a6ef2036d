"""Build the module of one plug, with random numbers of its own."""

import functools
import hashlib
import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from torchplug.card import Card
from torchplug.catalog import cards, get_card
from torchplug.errors import PlugError, UsageError, explain, nearest
from torchplug.modules import AsymmetricConv, MixConv
from torchplug.nn import IdentityStart
from torchplug.surgery.fitting import fit_block, fit_convolution, is_plain
from torchplug.surgery.intake import Entrance, Intake
from torchplug.surgery.layout import ChannelsSecond, with_channels_second
from torchplug.surgery.plan import PlannedPlug
from torchplug.surgery.replace import Beside, Blend, Instead, Replacement
from torchplug.surgery.seeding import seed_from
from torchplug.surgery.sites import Site
from torchplug.surgery.skeleton import KernelGrowth, KernelSkeleton

Factory = Callable[..., nn.Module]

KEYWORDS = ("at", "example", "start", "stages", "every", "within", "where", "seed", "name", "mode")
"""What :func:`torchplug.plug` takes itself; every other keyword is an option of the module."""


@dataclass(frozen=True)
class Recipe:
    """What to build at each site: a catalogue card, a class, or a function of the site."""

    module: str
    """Key, or ``package.module:name``."""

    name: str
    factory: Factory
    card: Card | None
    takes_site: bool

    @property
    def takes_one_width(self) -> bool:
        """Whether it is built for the width of one map, which it keeps."""
        kind = None if self.card is None else self.card.kind
        if self.takes_site or kind not in {None, "refine", "context"}:
            return False
        return kind == "refine" or len(_required(self.factory)) == 1 or self.takes_no_width

    @property
    def takes_no_width(self) -> bool:
        """Whether its constructor has no place for a number of channels, as of a spatial gate."""
        if getattr(self.factory, "__init__", None) is nn.Module.__init__:
            return True  # its signature accepts anything, its body nothing: nn.Sigmoid
        parameters = inspect.signature(self.factory).parameters.values()
        only_by_name = {inspect.Parameter.KEYWORD_ONLY, inspect.Parameter.VAR_KEYWORD}
        return not self.takes_site and all(p.kind in only_by_name for p in parameters)

    def build(self, site: Site, planned: PlannedPlug) -> nn.Module:
        """Construct the module for ``site`` on the CPU, in float32."""
        if self.takes_site:
            return self.factory(site)
        if self.takes_no_width:
            return self.factory(**planned.options)
        # a module of two widths, such as a context module at the end of a backbone, keeps the width
        widths = [name for name in _required(self.factory)[1:] if "channels" in name]
        missing = [name for name in widths if name not in planned.options]
        return self.factory(*[site.channels] * (1 + len(missing)), **planned.options)


def _required(factory: Factory) -> list[str]:
    parameters = inspect.signature(factory).parameters.values()
    kinds = {inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD}
    return [p.name for p in parameters if p.kind in kinds and p.default is p.empty]


def read_recipe(what: Any, name: str | None, options: Mapping[str, Any]) -> Recipe:
    """Return what ``what`` means: a key, a module class, or a factory ``(site) -> Module``.

    Raises:
        UsageError: if it is none of these, or if an option is not one of the module's.
    """
    _check_name(name)
    if isinstance(what, str):
        module, at_sign, place = what.partition("@")
        if at_sign:
            fix = f"pass the place by itself: plug(model, {module!r}, {place.partition(':')[0]!r})"
            raise UsageError(explain("plug takes a module and its place apart", repr(what), fix))
        card = get_card(what)
        _check_options(card.factory, options, what)
        return Recipe(card.key, name or card.key, card.factory, card, takes_site=False)
    if isinstance(what, type) and issubclass(what, nn.Module):
        key = next((key for key, card in cards().items() if card.factory is what), None)
        if key is not None:
            return read_recipe(key, name, options)
        _check_options(what, options, what.__qualname__)
        return Recipe(_qualify(what), name or _plain(what), what, None, takes_site=False)
    if callable(what) and not isinstance(what, nn.Module):
        if options:
            text = explain(
                "a factory (site) -> Module takes no options",
                ", ".join(options),
                "bind them in the factory itself",
            )
            raise UsageError(text)
        return Recipe(_qualify(what), name or _plain(what), what, None, takes_site=True)
    text = explain(
        "what to plug is a key of the catalogue, a module class, a factory (site) -> Module "
        "or a Plan",
        f"{type(what).__name__}",
        "pass the class, not an instance: each place needs a module of its own",
    )
    raise UsageError(text)


def _check_name(name: str | None) -> None:
    if name is not None and (not name.isidentifier() or hasattr(nn.Module(), name)):
        text = explain(
            "the name of a plug becomes part of weight names: an identifier that is no attribute "
            "of nn.Module",
            repr(name),
            "choose another name",
        )
        raise UsageError(text)


def _check_options(factory: Factory, options: Mapping[str, Any], name: str) -> None:
    parameters = inspect.signature(factory).parameters.values()
    known = [p.name for p in parameters if p.kind is p.KEYWORD_ONLY] or [
        p.name for p in parameters
    ][1:]
    for option in options:
        if option in _required(factory) and option not in known:
            rule = f"the place decides the widths of {name}"
            fix = "leave it out, or pass a factory (site) -> Module for widths of your own"
            raise UsageError(explain(rule, repr(option), fix))
        if option not in known and not any(p.kind is p.VAR_KEYWORD for p in parameters):
            rule = f"{name} takes only its own options"
            raise UsageError(explain(rule, repr(option), _suggest(option, known)))


def _suggest(option: str, known: list[str]) -> str:
    """The nearest of a module's options and of plug's own keywords; else the options alone."""
    hint = nearest(option, [*known, *KEYWORDS])
    if hint.startswith("did you mean"):
        return hint
    return nearest(option, known) if known else "it has none"


def _qualify(what: Any) -> str:
    return f"{what.__module__}:{what.__qualname__}"


def _plain(what: Any) -> str:
    letters = [letter if letter.isalnum() else "_" for letter in what.__qualname__]
    return "".join(letters).strip("_").lower()


@dataclass(frozen=True, kw_only=True)
class Place:
    """What a host has where one plug goes."""

    site: Site
    host: nn.Module
    entry: tuple[int, ...] | None = None
    """Shape of the map that the host's module receives."""

    entrance: Entrance | None = None
    """The maps that it receives, if the plug merges them."""


def build_plug(recipe: Recipe, place: Place, planned: PlannedPlug, seed: int) -> nn.Module:
    """Build, check and place one plug on the device and in the type of its site's map.

    The module draws from a generator of its own, keyed by seed, path and name: the weights of the
    base and of other plugs do not depend on what it draws.

    Raises:
        PlugError: if the module cannot be built for the place or changes the map's shape.
    """
    ways = {"attach": _build_behind, "replace": _build_in_place, "merge": _build_before}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(_derive(seed, planned.path, planned.name))
        module = ways[planned.mode](recipe, place, planned)
    return module.to(device=place.site.device, dtype=place.site.dtype)


def _build_behind(recipe: Recipe, place: Place, planned: PlannedPlug) -> nn.Module:
    site = with_channels_second(place.site)
    detail = f"channels={site.channels}"
    module = _construct(lambda: recipe.build(site, planned), recipe, site, detail)
    _check_shape(module, recipe, site, [site.shape])
    if site is not place.site:
        module = ChannelsSecond(module)
    if planned.start == "identity" and not getattr(module, "identity_at_start", False):
        return IdentityStart(module)
    return module


def _build_in_place(recipe: Recipe, place: Place, planned: PlannedPlug) -> Replacement:
    """A replacement, started as planned: see the classes in ``replace``."""
    site, host = place.site, place.host
    if place.entry is None:
        text = explain(
            "a module can be replaced if it receives one map",
            f"{site.path}, which receives none by position",
            "choose another place",
        )
        raise PlugError(text)
    widths = (place.entry[1], site.channels)
    if recipe.takes_one_width:
        return _start(_build_refinement(recipe, place, planned), recipe, place, planned)
    options = _fit_options(recipe, host, place.entry, site, planned)
    detail = f"in_channels={widths[0]}, out_channels={widths[1]}"
    module = _construct(
        lambda: recipe.factory(*([site] if recipe.takes_site else widths), **options),
        recipe,
        site,
        detail,
    )
    _check_shape(module, recipe, site, [place.entry])
    return _start(module, recipe, place, planned)


def _fit_options(
    recipe: Recipe, host: nn.Module, entry: tuple[int, ...], site: Site, planned: PlannedPlug
) -> dict[str, Any]:
    """What the module must be built with, by the host's convolution or by the maps around it."""
    if recipe.takes_site:
        return {}
    kind = None if recipe.card is None else recipe.card.kind
    if kind == "context" or not (kind == "conv" or isinstance(host, nn.Conv2d)):
        return fit_block(recipe.factory, entry, site.shape, planned.options)
    options = fit_convolution(recipe.factory, recipe.module, host, planned.options)
    if recipe.module == "acnet" and planned.start != "paper":
        options.setdefault("gammas", (1.0, 0.0, 0.0))
    return options


def _build_refinement(recipe: Recipe, place: Place, planned: PlannedPlug) -> nn.Module:
    """A module that keeps its map in the place of another, such as one attention for another."""
    site, entry = place.site, place.entry or ()
    if entry != site.shape:
        text = explain(
            f"{recipe.module} returns the shape that it receives",
            f"{site.path}, which turns {entry} into {site.shape}",
            "choose modules that keep the shape, or attach it behind them",
        )
        raise PlugError(text)
    detail = f"channels={site.channels}"
    module = _construct(lambda: recipe.build(site, planned), recipe, site, detail)
    _check_shape(module, recipe, site, [entry])
    return module


def _start(module: nn.Module, recipe: Recipe, place: Place, planned: PlannedPlug) -> Replacement:
    if planned.start == "paper":
        return Instead(module)
    silent = _silence(module, planned) if is_plain(place.host) else None
    if silent is not None:
        return Beside(silent)
    host = place.host
    is_empty = any(weight.is_meta for weight in module.parameters())  # its values come from a file
    is_seeded = is_empty or (
        isinstance(host, nn.Conv2d) and is_plain(host) and seed_from(module, host)
    )
    if planned.start == "identity":
        if is_seeded and not is_empty and _computes_the_same(module, place):
            reset: Any = module.reset_parameters
            reset()  # a blend of two equals learns nothing
        return Blend(module)
    if not is_seeded:
        text = explain(
            "start='seeded' takes the kernel of the plain convolution that is replaced",
            f"{recipe.module} in the place of {type(host).__name__} at {place.site.path}",
            "pass start='identity' or start='paper'",
        )
        raise PlugError(text)
    return Instead(module)


def _silence(module: nn.Module, planned: PlannedPlug) -> nn.Module | None:
    """What of a module adds nothing at first beside the old convolution, if it has such a form."""
    if isinstance(module, AsymmetricConv):
        skeleton = KernelSkeleton(module)
        is_empty = module.square.weight.is_meta  # its values come from a file
        silent = module.gammas[1:] == (0, 0) if is_empty else skeleton.is_silent
        return skeleton if silent else None
    if isinstance(module, MixConv) and planned.start == "identity":
        return KernelGrowth(module) if module.norm is None and module.act is None else None
    return None


def _computes_the_same(module: nn.Module, place: Place) -> bool:
    conv: Any = place.host
    bias = None if conv.bias is None else conv.bias.cpu().float()
    x = torch.randn(place.entry or ())
    with torch.no_grad():
        old = conv._conv_forward(x, conv.weight.cpu().float(), bias)
        was_training = module.training
        new = module.eval()(x)
        module.train(was_training)
    return bool((new - old).abs().max() <= 1e-3 * old.abs().max())


def _build_before(recipe: Recipe, place: Place, planned: PlannedPlug) -> Intake:
    entrance, site = place.entrance, place.site
    if entrance is None:
        text = explain(
            f"{recipe.module} needs a module that receives maps of several sizes",
            site.path,
            "name a decoder with at=",
        )
        raise PlugError(text)
    modules = []
    for level in entrance.levels:
        shapes = [entrance.shapes[index] for index in (level.low, *level.higher)]
        low, *higher = [shape[1] for shape in shapes]
        make = functools.partial(recipe.factory, low, tuple(higher), **planned.options)
        detail = f"channels={low}, {', '.join(map(str, higher))}"
        module = _construct(make, recipe, site, detail)
        _check_shape(module, recipe, site, shapes)
        modules.append(module)
    return Intake(list(entrance.levels), modules, gated=planned.start == "identity")


def _construct(make: Callable[[], nn.Module], recipe: Recipe, site: Site, detail: str) -> nn.Module:
    try:
        return make()
    except (TypeError, ValueError, IndexError, RuntimeError) as error:
        if isinstance(error, PlugError):
            raise
        text = f"{recipe.module} cannot be built for {site.path} ({detail}): {error}"
        raise PlugError(text) from error


def _check_shape(
    module: nn.Module, recipe: Recipe, site: Site, shapes: list[tuple[int, ...]]
) -> None:
    """Run the module on random maps; in the merge of several, the first one's shape must stay."""
    wanted = site.shape if len(shapes) == 1 else shapes[0]
    was_training = module.training
    module.eval()
    try:
        with torch.no_grad():
            output = module(*(torch.randn(shape) for shape in shapes))
    except Exception as error:
        text = f"{recipe.module} fails on the map of {site.path}, shape {shapes[0]}: {error}"
        raise PlugError(text) from error
    finally:
        module.train(was_training)
    got = tuple(output.shape) if isinstance(output, torch.Tensor) else type(output).__name__
    if got != wanted:
        text = explain(
            f"a plug at {site.path} must keep the map's shape {wanted}",
            f"{got} from {recipe.module}",
            "use a module that returns a map of this shape from the one it receives",
        )
        raise PlugError(text)


def _derive(seed: int, *purpose: str) -> int:
    text = "\0".join((str(seed), *purpose)).encode(errors="surrogatepass")
    return int.from_bytes(hashlib.sha256(text).digest()[:8], "big") >> 1
