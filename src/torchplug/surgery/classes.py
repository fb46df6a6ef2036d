"""Classes as options in a plan: written by name, read back from a fixed list and nowhere else.

A module's activation or norm is a class (``act_layer=nn.SiLU``). A file can name those of
``torch.nn`` and of torchplug. The name is looked up in a table: nothing is imported for it.
"""

import functools
from collections.abc import Mapping
from typing import Any

from torch import nn

import torchplug.modules
import torchplug.nn

CLASS = "class"


@functools.cache
def known_classes() -> dict[str, type[nn.Module]]:
    """Return the classes that a plan may name, by name."""
    places = {"torch.nn": nn, "torchplug": torchplug.modules, "torchplug.nn": torchplug.nn}
    return {
        f"{place}.{name}": value
        for place, package in places.items()
        for name, value in vars(package).items()
        if isinstance(value, type) and issubclass(value, nn.Module) and name[0] != "_"
    }


@functools.cache
def _names() -> dict[type[nn.Module], str]:
    return {value: name for name, value in known_classes().items()}


def write_options(options: Mapping[str, Any]) -> dict[str, Any]:
    """Return options as JSON.

    Raises:
        TypeError: naming a class that a plan cannot name.

    >>> write_options({"reduction": 8, "act_layer": nn.SiLU})
    {'reduction': 8, 'act_layer': {'class': 'torch.nn.SiLU'}}
    """
    return {name: _write(value) for name, value in options.items()}


def _write(value: Any) -> Any:
    if isinstance(value, (list, tuple)):
        return [_write(part) for part in value]
    if not isinstance(value, type):
        return value
    if value not in _names():
        text = (
            f"{value.__module__}.{value.__qualname__} is a class of neither torch.nn nor torchplug"
        )
        raise TypeError(text)
    return {CLASS: _names()[value]}


def is_class(value: Any) -> bool:
    """Whether a value of a file names a class that a plan may name."""
    is_named = type(value) is dict and value.keys() == {CLASS} and type(value[CLASS]) is str
    return is_named and value[CLASS] in known_classes()


def read_options(options: Mapping[str, Any]) -> dict[str, Any]:
    """Return options of a file, already checked, with classes in the places of their names.

    >>> read_options({"act_layer": {"class": "torch.nn.SiLU"}})["act_layer"] is nn.SiLU
    True
    """
    return {name: _read(value) for name, value in options.items()}


def _read(value: Any) -> Any:
    if type(value) is list:
        return [_read(part) for part in value]
    return known_classes()[value[CLASS]] if type(value) is dict else value
