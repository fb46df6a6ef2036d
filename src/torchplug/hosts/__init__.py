"""Models by name: what is special about the libraries that make them; nothing else knows it."""

from torchplug.hosts.names import build_model as build_model
from torchplug.hosts.names import find_source as find_source
from torchplug.hosts.names import load_maker as load_maker
from torchplug.hosts.names import locate_source as locate_source
from torchplug.hosts.readers import register_readers

register_readers()

__all__ = ["build_model", "find_source", "load_maker", "locate_source"]
