"""Models by name: what is special about the libraries that make them; nothing else knows it."""

from torchplug.hosts.names import build_model as build_model

__all__ = ["build_model"]
