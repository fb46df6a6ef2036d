"""Find the reader that a name of data asks for."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from torchplug.comparison.data.assemble import assemble
from torchplug.comparison.data.coco import list_coco
from torchplug.comparison.data.embedded import list_digits
from torchplug.comparison.data.hf_disk import list_hf
from torchplug.comparison.data.image_folder import list_folder
from torchplug.comparison.data.options import DataOptions
from torchplug.comparison.data.samples import Listing
from torchplug.comparison.data.shards import list_shards
from torchplug.comparison.data.task_data import TaskData
from torchplug.comparison.data.torch_roots import NAMES, list_torch
from torchplug.comparison.data.voc import list_voc
from torchplug.comparison.data.yolo import list_yolo
from torchplug.comparison.spec import TaskName
from torchplug.errors import UsageError, explain, nearest

Reader = Callable[[str, TaskName, DataOptions], Listing]

_READERS: dict[str, Reader] = {
    "folder": list_folder,
    "torch": list_torch,
    "hfds": list_hf,
    "wds": list_shards,
    "voc": list_voc,
    "yolo": list_yolo,
    "coco": list_coco,
}
TASKS = ("classification", "segmentation", "detection")


def load_data(
    name: str,
    *,
    task: TaskName = "classification",
    image_size: int | None = None,
    options: Mapping[str, Any] | None = None,
    check: bool = True,
) -> TaskData:
    """Read a data set, split it by rule where it is not, and hash its list of samples.

    Args:
        name: see the table at the top of the package.
        task: what the images are for.
        image_size: side of the square that images are brought to. Not given: the set's own size
            for embedded and torchvision sets, 64 for classification, 256 for the other tasks.
            Classification cuts out the middle of the scaled image; the other tasks pad it, with
            gray in the image and 255 in the mask.
        options: fields of :class:`~torchplug.comparison.data.options.DataOptions`.
        check: look for broken files and for images in two parts; workers whose driver has looked
            leave it out.

    Raises:
        UsageError: if nothing is there, or a sample cannot be used; the text names it.
        MissingExtra: if a package that reads the set is not installed.

    >>> data = load_data("digits")
    >>> len(data.train), len(data.validation), len(data.test)
    (899, 179, 719)
    >>> image, target = load_data("digits", task="detection").train[0]
    >>> image.shape, target["boxes"].shape
    (torch.Size([1, 48, 48]), torch.Size([4, 4]))
    """
    if task not in TASKS:
        rule = f"a task is {', '.join(TASKS)}"
        raise UsageError(explain(rule, repr(task), nearest(task, TASKS)))
    if image_size is not None and image_size < 1:
        fix = "pass the side of a square in pixels, such as 64"
        raise UsageError(explain("image_size is above 0", repr(image_size), fix))
    chosen = DataOptions.read(options)
    listing = list_digits(task) if name == "digits" else _find_listing(name, task, chosen)
    return assemble(listing, task, image_size, check=check)


def _find_listing(name: str, task: TaskName, options: DataOptions) -> Listing:
    prefix, slash, rest = name.partition("/")
    if slash and prefix.lower() in _READERS:
        kind = prefix.lower()
        if kind not in {"torch", "wds"} and not Path(rest).exists():
            fix = f"give a path that exists after {kind}/"
            raise UsageError(explain(f"{kind}/PATH is on this machine", repr(rest), fix))
        return _READERS[kind](rest, task, options)
    if name.partition(":")[0].lower() in NAMES and ":" in name:
        return list_torch(name, task, options)
    if Path(name).is_dir():
        return list_folder(name, task, options)
    raise UsageError(_explain_unknown(name, prefix if slash else ""))


def _explain_unknown(name: str, prefix: str) -> str:
    forms = ", ".join(f"{each}/…" for each in _READERS)
    rule = f"data is 'digits', a folder of images, or one of {forms}"
    got = f"{name!r}, which is no folder"
    if prefix and not Path(prefix).is_dir():
        return explain(rule, got, nearest(prefix, _READERS))
    head, colon, _ = name.partition(":")
    if colon or not prefix:
        return explain(rule, got, nearest(head, ["digits", *(f"{each}:ROOT" for each in NAMES)]))
    return explain(rule, got, "give a path that exists")
