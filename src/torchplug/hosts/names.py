"""Build a model from its name, with random weights: nothing is downloaded.

======================  =====================================================================
``torchplug:resnet8``   the small networks that ship with torchplug, one for each task:
                        ``resnet8``, ``unet8`` (segmentation), ``fcos8`` (detection)
``torchvision:NAME``    ``torchvision.models.get_model(NAME)``
``timm:NAME``           ``timm.create_model(NAME)``
``smp:NAME``            ``segmentation_models_pytorch.NAME()``
``package.module:f``    the function or class ``f`` of an importable module
``path/to/file.py:f``   the function or class ``f`` of a file
======================  =====================================================================
"""

import ast
import contextlib
import importlib
import importlib.util
import inspect
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from importlib.machinery import PathFinder
from pathlib import Path
from types import ModuleType
from typing import Any

from torch import nn

from torchplug.errors import UsageError, explain, import_extra, nearest
from torchplug.hosts.small import MODELS

FORMS = "torchvision:NAME, timm:NAME, smp:NAME, package.module:factory or path/to/file.py:factory"
_FILE_EXISTS = "a model file must exist"
_FROM_HERE = "give the path from the current folder, or an absolute one"
_CLASSES = ("num_classes", "classes")
_CHANNELS = ("in_channels", "in_chans")


def build_model(
    name: str,
    *,
    num_classes: int | None = None,
    in_channels: int | None = None,
    options: Mapping[str, Any] | None = None,
) -> nn.Module:
    """Return a new model with random weights.

    Args:
        name: see the table at the top of this file.
        num_classes: handed on where the model's maker takes it (``num_classes``, ``classes``).
        in_channels: likewise (``in_channels``, ``in_chans``).
        options: further keyword arguments of the maker.

    Raises:
        UsageError: if the name is unknown, its maker fails, or makes no ``nn.Module``.
        MissingExtra: if the library is not installed.

    >>> type(build_model("torchplug:resnet8")).__name__
    'ResNet8'
    """
    factory, takes = _find_factory(name)
    arguments = dict(options or {})
    for value, spellings in ((num_classes, _CLASSES), (in_channels, _CHANNELS)):
        spelling = next((word for word in spellings if word in takes), None)
        if value is not None and spelling is not None:
            arguments.setdefault(spelling, value)
    try:
        model = factory(**arguments)
    except Exception as error:
        given = ", ".join(f"{key}={value!r}" for key, value in arguments.items()) or "no arguments"
        text = explain(
            f"the maker of {name!r} must accept its arguments",
            f"{type(error).__name__}: {error} ({given})",
            "pass other options, or wrap it in a function of your own: file.py:factory",
        )
        raise UsageError(text) from error
    if not isinstance(model, nn.Module):
        fix = "name a function or class that returns an nn.Module"
        raise UsageError(explain(f"{name!r} must make a model", type(model).__name__, fix))
    return model


def _find_factory(name: str) -> tuple[Callable[..., Any], frozenset[str]]:
    """Return the maker of a model and the names of the arguments it takes."""
    source, separator, model = name.rpartition(":")
    if not separator or not source or not model:
        close = nearest(name, [f"torchplug:{known}" for known in MODELS])
        raise UsageError(explain("a model is named by its source", repr(name), f"{close} {FORMS}"))
    library = _LIBRARIES.get(source)
    if library is not None:
        return library(model)
    factory = load_maker(name)
    return factory, frozenset(inspect.signature(factory).parameters)


def load_maker(name: str) -> Callable[..., Any]:
    """Return a class or function of the user's own, ``package.module:NAME`` or ``file.py:NAME``.

    Raises:
        UsageError: if the source cannot be imported or does not define it.

    >>> load_maker("torch.nn:Conv2d").__name__
    'Conv2d'
    """
    source, _, wanted = name.rpartition(":")
    module = _load_file(source) if source.endswith(".py") else _import(source, name)
    maker = getattr(module, wanted, None)
    if not callable(maker):
        makers = [key for key, value in vars(module).items() if callable(value) and key[0] != "_"]
        text = explain(f"{source} must define the maker", repr(wanted), nearest(wanted, makers))
        raise UsageError(text)
    return maker


def find_source(name: str) -> Path | None:
    """Return the file that defines what :func:`load_maker` loads, if there is one.

    >>> find_source("torchplug.hosts.small:ResNet8").name
    'small.py'
    """
    source = name.rpartition(":")[0]
    if source.endswith(".py"):
        return Path(source)
    maker = load_maker(name)
    defining = sys.modules.get(getattr(maker, "__module__", source)) or sys.modules[source]
    file = getattr(defining, "__file__", None)
    return None if file is None else Path(file)


def locate_source(name: str) -> Path | None:
    """Return the file that defines what ``package.module:NAME`` or ``file.py:NAME`` names.

    Nothing is imported, so the packages that the file imports need not be installed here. A
    module that is not installed either has no file: ``None``.

    Raises:
        UsageError: if the file is not there, is no Python, or does not define the name.

    >>> locate_source("torchplug.hosts.small:ResNet8").name
    'small.py'
    """
    source, _, wanted = name.rpartition(":")
    file = Path(source) if source.endswith(".py") else _locate_module(source)
    if file is None:
        return None
    if not file.is_file():
        raise UsageError(explain(_FILE_EXISTS, repr(source), _FROM_HERE))
    try:
        defined = _list_definitions(ast.parse(file.read_bytes()))
    except (SyntaxError, ValueError) as error:
        fix = f"repair the file: python {file}"
        raise UsageError(explain(f"{source} must be Python", str(error), fix)) from error
    if wanted not in defined and "*" not in defined:
        makers = [key for key in defined if key[0] != "_"]
        text = explain(f"{source} must define the maker", repr(wanted), nearest(wanted, makers))
        raise UsageError(text)
    return file


def _locate_module(source: str) -> Path | None:
    places: list[str] | None = [*sys.path, str(Path.cwd())]
    spec = None
    for part in source.split("."):
        spec = PathFinder.find_spec(part, places)
        places = None if spec is None else list(spec.submodule_search_locations or [])
        if spec is None:
            return None
    origin = None if spec is None else spec.origin
    return Path(origin) if origin and origin.endswith(".py") else None


def _list_definitions(tree: ast.Module) -> list[str]:
    """Return the names that the top of a file defines or imports."""
    names: list[str] = []
    for node in ast.walk(tree):
        if isinstance(node, (ast.ClassDef, ast.FunctionDef)) and node in tree.body:
            names.append(node.name)
        elif isinstance(node, ast.Assign) and node in tree.body:
            names += [target.id for target in node.targets if isinstance(target, ast.Name)]
        elif isinstance(node, (ast.Import, ast.ImportFrom)):
            names += [alias.asname or alias.name for alias in node.names]
    return names


def _from_torchplug(model: str) -> tuple[Callable[..., Any], frozenset[str]]:
    _check_known("torchplug", model, MODELS)
    return MODELS[model], frozenset({"num_classes", "in_channels"})


def _from_torchvision(model: str) -> tuple[Callable[..., Any], frozenset[str]]:
    models = import_extra("torchvision", extra="models", purpose="a torchvision model").models
    _check_known("torchvision", model, models.list_models())

    def make(**arguments: Any) -> nn.Module:
        return models.get_model(model, **{"weights": None, **_no_backbone(model), **arguments})

    def _no_backbone(model: str) -> dict[str, None]:
        takes = inspect.signature(models.get_model_builder(model)).parameters
        return {"weights_backbone": None} if "weights_backbone" in takes else {}

    return make, frozenset({"num_classes"})


def _from_timm(model: str) -> tuple[Callable[..., Any], frozenset[str]]:
    timm = import_extra("timm", extra="models", purpose="a timm model")
    _check_known("timm", model.partition(".")[0], timm.list_models())

    def make(**arguments: Any) -> nn.Module:
        return timm.create_model(model, **{"pretrained": False, **arguments})

    return make, frozenset({"num_classes", "in_chans"})


def _from_smp(model: str) -> tuple[Callable[..., Any], frozenset[str]]:
    package = "segmentation_models_pytorch"
    smp = import_extra(package, extra="models", purpose="a segmentation_models_pytorch model")
    known = {
        name: value
        for name, value in vars(smp).items()
        if isinstance(value, type) and issubclass(value, nn.Module)
    }
    _check_known("smp", model, known)

    def make(**arguments: Any) -> nn.Module:
        return known[model](**{"encoder_weights": None, **arguments})

    return make, frozenset({"classes", "in_channels"})


_LIBRARIES = {
    "torchplug": _from_torchplug,
    "torchvision": _from_torchvision,
    "timm": _from_timm,
    "smp": _from_smp,
}


def _check_known(source: str, model: str, known: Iterable[str]) -> None:
    names = list(known)
    if model not in names:
        hint = nearest(model, names)
        if hint.startswith("choose") and len(names) > 20:
            hint = f"{source} has {len(names)} models, none of a similar name"
        raise UsageError(explain(f"{source} must have the model", repr(model), hint))


def _load_file(path: str) -> ModuleType:
    file = Path(path)
    if not file.is_file():
        raise UsageError(explain(_FILE_EXISTS, repr(path), _FROM_HERE))
    name = f"_torchplug_{file.stem}"
    spec = importlib.util.spec_from_file_location(name, file)
    if spec is None or spec.loader is None:  # a suffix that Python cannot load
        raise UsageError(explain("a model file is Python", repr(path), "name a .py file"))
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # pickling a model of this file needs its module
    try:
        with _on_path(file.resolve().parent):  # as `python file.py` would find its neighbors
            spec.loader.exec_module(module)
    except Exception as error:
        del sys.modules[name]
        fix = "repair the file: python " + path
        got = f"{type(error).__name__}: {error}"
        raise UsageError(explain(f"{path} must be importable", got, fix)) from error
    return module


@contextlib.contextmanager
def _on_path(folder: Path) -> Iterator[None]:
    """Let imports find what lies in ``folder`` too; installed packages come first."""
    entry = str(folder)
    sys.path.append(entry)
    try:
        yield
    finally:
        if entry in sys.path:
            sys.path.remove(entry)


def _import(source: str, name: str) -> ModuleType:
    try:
        with _on_path(Path.cwd()):  # a console script does not look into the current folder
            return importlib.import_module(source)
    except ModuleNotFoundError as error:
        close = nearest(source, _LIBRARIES)
        fix = f"use {FORMS}" if close.startswith("choose") else close
        text = explain(f"the source of {name!r} must be importable", str(error), fix)
        raise UsageError(text) from error
