"""Build the module of one plug, with random numbers of its own."""

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
from torchplug.nn import IdentityStart
from torchplug.surgery.plan import PlannedPlug
from torchplug.surgery.sites import Site

Factory = Callable[..., nn.Module]


@dataclass(frozen=True)
class Recipe:
    """What to build at each site: a catalogue card, a class, or a function of the site."""

    module: str
    """Key, or ``package.module:name``."""

    name: str
    factory: Factory
    card: Card | None
    takes_site: bool

    def build(self, site: Site, planned: PlannedPlug) -> nn.Module:
        """Construct the module for ``site`` on the CPU, in float32."""
        if self.takes_site:
            return self.factory(site)
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
        if option not in known and not any(p.kind is p.VAR_KEYWORD for p in parameters):
            text = explain(
                f"{name} takes only its own options", repr(option), nearest(option, known)
            )
            raise UsageError(text)


def _qualify(what: Any) -> str:
    return f"{what.__module__}:{what.__qualname__}"


def _plain(what: Any) -> str:
    letters = [letter if letter.isalnum() else "_" for letter in what.__qualname__]
    return "".join(letters).strip("_").lower()


def build_plug(recipe: Recipe, site: Site, planned: PlannedPlug, seed: int) -> nn.Module:
    """Build, check and place one plug on the device and in the type of its site's map.

    The module draws from a generator of its own, keyed by seed, path and name: the weights of the
    base and of other plugs do not depend on what it draws.

    Raises:
        PlugError: if the module cannot be built for the site or changes the map's shape.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(_derive(seed, planned.path, planned.name))
        try:
            module = recipe.build(site, planned)
        except (TypeError, ValueError, IndexError, RuntimeError) as error:
            text = f"{recipe.module} cannot be built for {site.path} (channels={site.channels}): "
            raise PlugError(text + str(error)) from error
        _check_shape(module, recipe, site)
        if planned.start == "identity" and not getattr(module, "identity_at_start", False):
            module = IdentityStart(module)
    return module.to(device=site.device, dtype=site.dtype)


def _check_shape(module: nn.Module, recipe: Recipe, site: Site) -> None:
    was_training = module.training
    module.eval()
    try:
        with torch.no_grad():
            output = module(torch.randn(site.shape))
    except Exception as error:
        text = f"{recipe.module} fails on the map of {site.path}, shape {site.shape}: {error}"
        raise PlugError(text) from error
    finally:
        module.train(was_training)
    got = tuple(output.shape) if isinstance(output, torch.Tensor) else type(output).__name__
    if got != site.shape:
        text = explain(
            f"a plug at {site.path} must keep the map's shape {site.shape}",
            f"{got} from {recipe.module}",
            "use a module that returns as many channels and the same size as it receives",
        )
        raise PlugError(text)


def _derive(seed: int, *purpose: str) -> int:
    text = "\0".join((str(seed), *purpose)).encode()
    return int.from_bytes(hashlib.sha256(text).digest()[:8], "big") >> 1
