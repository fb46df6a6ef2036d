"""Share plugs: a folder, here or on the Hugging Face Hub, with the file and a model card."""

import tempfile
from pathlib import Path
from typing import Any

from torch import nn

from torchplug.errors import TorchplugError, UsageError, explain, import_extra
from torchplug.surgery.attach import find_plugs
from torchplug.surgery.checkpoint import LoadReport, load, save
from torchplug.surgery.plan import Plan
from torchplug.surgery.plug import check_host
from torchplug.surgery.plugfile import PlugFile, read_plug_file
from torchplug.surgery.rebuild import Factories

FILE, CARD = "plugs.safetensors", "README.md"


def push_to_hub(
    model: nn.Module,
    repo: str | Path,
    *,
    message: str = "Add plugs",
    private: bool = False,
) -> str:
    """Share the plugs of ``model`` as a repository of the Hugging Face Hub, or as a local folder.

    Two files are written: ``plugs.safetensors``, as :func:`torchplug.save` makes it, and a model
    card made from the plan. A card that is there already is kept: it may have been edited.

    Args:
        model: a plugged model; it is not changed.
        repo: ``"user/name"``, created if need be; or a folder: a ``Path``, a text that begins
            with ``.``, ``/`` or ``~``, or one that names an existing folder.
        message: of the commit.
        private: whether a new repository is private.

    Returns:
        Where the plugs are: the address of the commit, or the folder.

    Raises:
        PlugError: if the model has no plugs.
        UsageError: if the folder cannot be written, or the Hub refuses.
        MissingExtra: if safetensors or, for a repository, huggingface_hub is not installed.

    >>> import tempfile, torchplug as tp
    >>> from torchplug.hosts import build_model
    >>> model = build_model("torchplug:resnet8")
    >>> _ = tp.plug(model, "se", example=(1, 3, 32, 32))
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     _ = tp.push_to_hub(model, folder)
    ...     print(len(tp.load_from_hub(build_model("torchplug:resnet8"), folder).paths))
    3
    """
    check_host(model)
    if _is_local(repo):
        return str(_write_folder(model, Path(repo).expanduser()))
    hub = _import_hub()
    with tempfile.TemporaryDirectory() as temporary:
        folder = _write_folder(model, Path(temporary))
        try:
            api = hub.HfApi()
            api.create_repo(str(repo), private=private, exist_ok=True)
            kept = [CARD] if api.file_exists(str(repo), CARD) else None
            commit = api.upload_folder(
                repo_id=str(repo),
                folder_path=folder,
                commit_message=message,
                ignore_patterns=kept,
            )
        except Exception as error:  # the client raises types of several libraries
            raise UsageError(_explain_hub(repo, error, "write to it")) from error
    return str(commit.commit_url)


def load_from_hub(
    model: nn.Module,
    repo: str | Path,
    *,
    revision: str | None = None,
    example: Any = None,
    factories: Factories | None = None,
) -> LoadReport:
    """Load plugs that :func:`push_to_hub` shared into a fresh model.

    Args:
        model: a fresh instance of the host.
        repo: as for :func:`push_to_hub`.
        revision: branch, tag or commit of a repository.
        example: as for :func:`torchplug.load`.
        factories: as for :func:`torchplug.load`.

    Returns:
        The report of :func:`torchplug.load`.

    Raises:
        UsageError: if there is no file of plugs, or it is damaged.
        PlugError: if the plugs are for another model.
        MissingExtra: if safetensors or, for a repository, huggingface_hub is not installed.

    >>> import torchplug as tp
    >>> tp.load_from_hub(None, "./nowhere")
    Traceback (most recent call last):
      ...
    torchplug.errors.UsageError: a host is an nn.Module: got NoneType; ...
    """
    check_host(model)
    if _is_local(repo):
        path = Path(repo).expanduser() / FILE
    else:
        hub = _import_hub()
        try:
            path = Path(hub.hf_hub_download(str(repo), FILE, revision=revision))
        except Exception as error:
            raise UsageError(_explain_hub(repo, error, "read it")) from error
    return load(model, path, example=example, factories=factories)


def _is_local(repo: str | Path) -> bool:
    if isinstance(repo, Path):
        return True
    return repo.startswith((".", "/", "~")) or Path(repo).is_dir()


def _import_hub() -> Any:
    return import_extra("huggingface_hub", extra="hub", purpose="a repository of the Hub")


def _explain_hub(repo: str | Path, error: Exception, what: str) -> str:
    got = f"{type(error).__name__}: {' '.join(str(error).split())}"
    fix = f"check the name, the network, and that `hf auth login` lets you {what}; a folder needs "
    return explain(f"the Hub must give access to {repo}", got, fix + "none of these")


def _write_folder(model: nn.Module, folder: Path) -> Path:
    is_new = not folder.exists()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        file = read_plug_file(save(model, folder / FILE))
        card = folder / CARD
        if not card.exists():
            card.write_text(write_card(file, model), encoding="utf-8")
    except OSError as error:
        fix = "name a folder that can be made and written"
        raise UsageError(explain(f"{folder} must be writable", str(error), fix)) from error
    except TorchplugError:
        if is_new:
            folder.rmdir()
        raise
    return folder


def write_card(file: PlugFile, model: nn.Module) -> str:
    """Return the model card of a file of plugs, as Markdown with the Hub's front matter."""
    modules = sorted({planned.module for planned in file.plan.plugs})
    own = [name for name in modules if ":" in name]
    numbers = sum(
        tensor.numel() for _, _, plug in find_plugs(model) for tensor in plug.parameters()
    )
    factories = ", factories={" + ", ".join(f"{name!r}: …" for name in own) + "}" if own else ""
    versions = ", ".join(f"{name} {version}" for name, version in file.versions.items())
    return "\n".join(
        [
            "---",
            "library_name: torchplug",
            "tags:",
            "- torchplug",
            *(f"- {name}" for name in modules if name not in own),
            "---",
            "",
            f"# {', '.join(modules)} for {file.plan.host}",
            "",
            f"{len(file.plan.plugs)} plugs with {numbers:,} parameters for a `{file.plan.host}`. "
            "The weights of the base are not in here; plugs go into a base of the same form:",
            "",
            "```python",
            "import torchplug as tp",
            "",
            "model = …  # build the base and load its weights",
            f'print(tp.load_from_hub(model, "this repository"{factories}))',
            "```",
            "",
            *_list_plugs(file.plan),
            "",
            f"Base: {len(file.base.tensors)} tensors, values `{file.base.values[:16]}…`. "
            f"Saved with {versions}.",
            "",
        ]
    )


def _list_plugs(plan: Plan) -> list[str]:
    lines = ["| place | module | channels | start | options |", "|---|---|---|---|---|"]
    for planned in plan.plugs:
        options = ", ".join(f"`{name}={value!r}`" for name, value in planned.options.items())
        cells = [f"`{planned.path}`", f"`{planned.module}`", str(planned.channels), planned.start]
        cells.append(options.replace("|", r"\|") or "-")
        lines.append(f"| {' | '.join(cells)} |")
    return lines
