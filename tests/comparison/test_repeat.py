"""One trial of a finished run, trained again from its specification alone."""

import json
import shutil
from pathlib import Path

import pytest

from torchplug.comparison.repeat import repeat_trial
from torchplug.comparison.store import seal, to_text
from torchplug.errors import UsageError


def find_record(root: Path) -> Path:
    (folder,) = (root / "trials").glob("se--seed-1--*")
    return folder / "record.json"


def test_a_repeated_trial_has_the_same_record(finished: Path, tmp_path: Path) -> None:
    before = {path: path.read_bytes() for path in finished.rglob("*") if path.is_file()}
    repetition = repeat_trial(finished, "se", 1, tmp_path / "again")
    assert repetition.differs == ()
    written = (tmp_path / "again" / "record.json").read_bytes()
    assert written == find_record(finished).read_bytes()
    after = {path: path.read_bytes() for path in finished.rglob("*") if path.is_file()}
    assert after == before


def test_what_differs_is_named(finished: Path, tmp_path: Path) -> None:
    shutil.copytree(finished, tmp_path / "run")
    path = find_record(tmp_path / "run")
    record = json.loads(path.read_text(encoding="utf-8"))
    path.write_text(to_text(seal({**record, "value": 1.0})), encoding="utf-8")
    repetition = repeat_trial(tmp_path / "run", "se", 1, tmp_path / "again")
    assert repetition.differs == ("checksum", "value")


@pytest.mark.parametrize(
    ("variant", "seed", "text"),
    [("sse", 0, "did you mean 'se'"), ("se", 99, "choose from 0, 1")],
)
def test_what_is_not_in_the_run_is_refused(
    finished: Path, tmp_path: Path, variant: str, seed: int, text: str
) -> None:
    with pytest.raises(UsageError, match=text):
        repeat_trial(finished, variant, seed, tmp_path / "again")
    assert not (tmp_path / "again").exists()


def test_a_folder_in_use_is_refused(finished: Path, tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("mine", encoding="utf-8")
    with pytest.raises(UsageError, match="a folder of its own"):
        repeat_trial(finished, "se", 0, tmp_path)
