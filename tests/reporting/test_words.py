"""Every language says the same: keys, placeholders, a sentence for each verdict."""

import re
import string
from pathlib import Path

import pytest

from tests.reporting.test_page import Outline, read_table
from torchplug.reporting.language import LANGUAGES, load_wording
from torchplug.reporting.sections.evidence import read_evidence

SOURCE = Path(__file__).parents[2] / "src" / "torchplug" / "reporting"


def placeholders(text: str) -> set[str]:
    return {name for _, name, _, _ in string.Formatter().parse(text) if name}


def test_languages_have_the_same_texts_with_the_same_placeholders() -> None:
    english = load_wording("en").texts
    for lang in LANGUAGES[1:]:
        other = {k: v for k, v in load_wording(lang).texts.items() if not k.startswith("sentence.")}
        assert set(other) == set(english)
        for key, text in other.items():
            assert placeholders(text) <= placeholders(english[key]), key


def test_no_text_is_left_over() -> None:
    code = "\n".join(path.read_text() for path in SOURCE.rglob("*.py"))
    code += "\n".join(path.read_text() for path in (SOURCE / "templates").iterdir())
    built = re.findall(r'f"(\w+)\.[\w{}\.]*\{', code) + re.findall(r'word\("(\w+)"', code)
    built += ["curves", "controls", "sentence", "limits", "setup"]
    unused = [
        key
        for key in load_wording("zh").texts
        if not re.search(rf"[\"']{re.escape(key)}[\"']", code)
        and key.partition(".")[0] not in built
        and not key.endswith(".title")
    ]
    assert unused == []


def test_evidence_is_told_in_every_language_with_its_source() -> None:
    for entry in read_evidence():
        assert all(entry[lang] for lang in LANGUAGES)
        assert entry["source"]
        assert f"evidence.{entry['strength']}" in load_wording("en").texts


def test_chinese_verdicts_are_built_from_the_numbers(chinese_path: Path) -> None:
    page = chinese_path.read_text(encoding="utf-8")
    rows = {row[0]: row for row in read_table(page, "arms")}
    labels = [rows[name][1] for name in ("scse@stage1", "scse@stage2")]
    assert labels == ["优于基线", "不如基线"]
    text = re.sub(r"\s+", " ", " ".join(Outline(page).texts))
    gain = rows["scse@stage1"][3].partition(" ")
    assert f"平均高 {gain[0].removeprefix('+')} 个百分点 {gain[2]}" in text
    assert "12 个配对种子；只对这份数据和这套训练配方成立" in text
    assert "12 个种子，开跑之前就已定好" in text


def test_no_english_is_left_in_chinese(chinese_path: Path) -> None:
    page = chinese_path.read_text(encoding="utf-8")
    body = page.partition("<body>")[2].partition('<script type="application/json"')[0]
    text = " ".join(Outline(body.partition('id="setup"')[0]).texts)
    names = {"scse", "gc", "stage", "baseline", "digits", "Dice", "miou", "mIoU", "torchplug"}
    names |= {"resnet", "bottleneck", "FLOPs", "MFLOPs", "Holm", "csv", "trials", "simulated", "x"}
    names |= {"control", "controls", "again", "epoch", "MB", "kB", "min", "scSE"}
    words = set(re.findall(r"[A-Za-z]{3,}", text))
    assert words <= names


@pytest.mark.parametrize("lang", LANGUAGES)
def test_texts_hold_no_markup(lang: str) -> None:
    assert not [text for text in load_wording(lang).texts.values() if "<" in text or "&" in text]
