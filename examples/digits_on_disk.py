"""Write the embedded digits as files, for the scripts next to this one.

python examples/digits_on_disk.py detection digits-yolo     # images/, labels/, data.yaml
python examples/digits_on_disk.py classification digits     # train/<class>/, validation/<class>/
"""

import sys
from pathlib import Path
from typing import Any

from PIL import Image

from torchplug.comparison.data import load_data


def write_yolo(folder: Path, most: int | None = None) -> Path:
    """Write scenes of digits with boxes as YOLO files; return the path of data.yaml."""
    data = load_data("digits", task="detection")
    for split, part in (("train", data.train), ("val", data.test)):
        for kind in ("images", "labels"):
            (folder / kind / split).mkdir(parents=True, exist_ok=True)
        for index in range(min(len(part), most or len(part))):
            image, target = part[index]
            save(image, folder / "images" / split / f"{index:04}.png")
            height, width = image.shape[-2:]
            lines = [
                f"{int(label)} {(x1 + x2) / 2 / width:.6f} {(y1 + y2) / 2 / height:.6f} "
                f"{(x2 - x1) / width:.6f} {(y2 - y1) / height:.6f}"
                for (x1, y1, x2, y2), label in zip(
                    target["boxes"].tolist(), target["labels"].tolist(), strict=True
                )
            ]
            (folder / "labels" / split / f"{index:04}.txt").write_text("\n".join(lines) + "\n")
    names = "\n".join(f"  {index}: '{name}'" for index, name in enumerate(data.classes))
    text = f"path: {folder.absolute()}\ntrain: images/train\nval: images/val\nnames:\n{names}\n"
    (folder / "data.yaml").write_text(text)
    return folder / "data.yaml"


def write_folders(folder: Path, most: int | None = None) -> Path:
    """Write digits as an image folder, as timm and torchvision read it."""
    data = load_data("digits")
    for split, part in (("train", data.train), ("validation", data.test)):
        for index in range(min(len(part), most or len(part))):
            image, label = part[index]
            path = folder / split / data.classes[int(label)] / f"{index:04}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            save(image, path)
    return folder


def save(image: Any, path: Path) -> None:
    """Write an image tensor (C, H, W) of bytes."""
    array = image.permute(1, 2, 0).numpy()
    Image.fromarray(array[..., 0] if array.shape[-1] == 1 else array).convert("RGB").save(path)


if __name__ == "__main__":
    task, target = sys.argv[1:]
    print({"detection": write_yolo, "classification": write_folders}[task](Path(target)))
