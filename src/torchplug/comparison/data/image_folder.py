"""Read a folder of images, one sub-folder a class."""

from pathlib import Path

from torchplug.comparison.data.options import DataOptions, read_groups
from torchplug.comparison.data.samples import WHOLE, FileSource, Listing, Sample, find_parts
from torchplug.comparison.spec import TaskName
from torchplug.errors import UsageError, explain

SUFFIXES = {".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp"}
_MARKS = {
    "data.yaml": "yolo",
    "dataset.yaml": "yolo",
    "JPEGImages": "voc",
    "annotations": "coco",
    "dataset_dict.json": "hfds",
    "dataset_info.json": "hfds",
}


def list_folder(path: str, task: TaskName, options: DataOptions) -> Listing:
    """Return ``PATH/train/<class>/…`` with ``val`` or ``test`` beside it, or ``PATH/<class>/…``.

    Class numbers follow the alphabet. Hidden files are left out.
    """
    root = Path(path)
    _check_task(root, task)
    folders = {each.name: each for each in root.iterdir() if each.is_dir()}
    found = find_parts(folders)
    if "train" not in found and found and len(found) == len(folders):
        _refuse_missing_train(root, sorted(folders))
    named = {part: folders[name] for part, name in found.items()} if "train" in found else {}
    classes: tuple[str, ...] = ()
    parts: dict[str, list[Sample]] = {}
    for part, folder in (named or {WHOLE: root}).items():
        names = tuple(sorted(each.name for each in folder.iterdir() if _is_class(each)))
        if not names:
            raise UsageError(_explain_no_classes(folder))
        if classes and names != classes:
            text = explain(
                f"all parts of {root} must have the same classes",
                f"{', '.join(names)} in {folder.name}, {', '.join(classes)} before",
                "rename or complete the class folders",
            )
            raise UsageError(text)
        classes = names
        parts[part] = _list_part(root, folder, classes, options)
    return Listing(path, classes, parts)


def list_images(folder: Path) -> list[Path]:
    """Return the images below a folder, in the order of their paths."""
    return sorted(
        path
        for path in folder.rglob("*")
        if path.suffix.lower() in SUFFIXES and not path.name.startswith(".")
    )


def _is_class(path: Path) -> bool:
    return path.is_dir() and not path.name.startswith(".")


def _list_part(
    root: Path, folder: Path, classes: tuple[str, ...], options: DataOptions
) -> list[Sample]:
    rows: list[tuple[Path, int]] = []
    for label, name in enumerate(classes):
        paths = list_images(folder / name)
        if not paths:
            rule = "every class folder holds images"
            fix = f"add images ({', '.join(sorted(SUFFIXES))}) or remove the folder"
            raise UsageError(explain(rule, f"none in {folder / name}", fix))
        rows += [(path, label) for path in paths]
    keys = [path.relative_to(root).as_posix() for path, _ in rows]
    groups = read_groups(root, keys, options)
    return [
        Sample(key, FileSource(str(path)), label, path.stat().st_size, group)
        for (path, label), key, group in zip(rows, keys, groups, strict=True)
    ]


def _check_task(root: Path, task: TaskName) -> None:
    if task == "classification":
        return
    guess = next((prefix for name, prefix in _MARKS.items() if (root / name).exists()), None)
    usual = "voc" if task == "segmentation" else "yolo"
    text = explain(
        "a folder with one sub-folder a class is for classification",
        f"{root} for {task}",
        f"name its layout: {guess or usual}/{root}",
    )
    raise UsageError(text)


def _refuse_missing_train(root: Path, names: list[str]) -> None:
    rule = "a folder with parts needs one called train"
    fix = "add the folder train, or give all images without parts"
    raise UsageError(explain(rule, f"{root} with {', '.join(names)}", fix))


def _explain_no_classes(folder: Path) -> str:
    inside = sorted(path.name for path in folder.iterdir())
    shown = ", ".join(inside[:5]) + (", …" if len(inside) > 5 else "")
    prefix = next((_MARKS[name] for name in inside if name in _MARKS), None)
    return explain(
        "a folder of images holds one sub-folder a class with images in it",
        f"{folder} with {shown or 'nothing'}",
        f"if this is another layout, name it: {prefix}/{folder}"
        if prefix
        else "make folder/<class name>/image.png, or folder/train/<class name>/…",
    )
