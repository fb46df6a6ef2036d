"""The READMEs promise nothing that does not work."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
READMES = ("README.md", "README.zh-CN.md")
# what the guides show must not be what tp.load warns of
NO_OTHER_BASE = pytest.mark.filterwarnings("error:plugs compute the same only")


def blocks(name: str, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", (ROOT / name).read_text("utf-8"), re.DOTALL)


def without_comments(code: str) -> str:
    return re.sub(r"\s+#.*", "", code)


@NO_OTHER_BASE
def test_the_python_blocks_run_in_order_and_print_what_is_shown(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    # the same lines with fewer epochs and seeds: the demo itself runs in full by `make demo`
    shorter = {"seeds=5": "seeds=2, recipe=tp.comparison.Recipe(epochs=1)"}
    names: dict[str, object] = {}
    for block in blocks("README.md", "python"):
        code = block
        for long, short in shorter.items():
            code = code.replace(long, short)
        if "tp.compare" in code:
            exec("import torchplug.comparison", names)
        exec(compile(code, "README.md", "exec"), names)
    printed = capsys.readouterr().out
    (shown,) = blocks("README.md", "text")
    assert shown in printed
    assert "2 seeds are a screen" in printed


def test_the_chinese_readme_has_the_same_code() -> None:
    for language in ("python", "text"):
        english, chinese = (
            [without_comments(block) for block in blocks(name, language)] for name in READMES
        )
        assert english == chinese


@NO_OTHER_BASE
def test_the_cookbook_runs_and_is_the_same_in_chinese(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    english, chinese = (
        blocks(f"docs/{name}", "python") for name in ("plugging.md", "plugging.zh-CN.md")
    )
    assert [*map(without_comments, english)] == [*map(without_comments, chinese)]
    names: dict[str, object] = {}
    for block in english:
        exec(compile(block, "plugging.md", "exec"), names)
    assert "16 of 16 plugs are attached" in capsys.readouterr().out


def test_links_lead_to_files() -> None:
    guides = [f"docs/{path.name}" for path in (ROOT / "docs").glob("*.md")]
    for name in (*READMES, *guides):
        folder = (ROOT / name).parent
        for target in re.findall(r"\]\(([^)#:]+)\)", (ROOT / name).read_text("utf-8")):
            assert (folder / target).exists(), f"{name}: {target}"


@pytest.mark.parametrize("name", ["docs/comparing.md", "docs/comparing.zh-CN.md"])
def test_the_study_of_the_guide_is_one(name: str, tmp_path: Path) -> None:
    from torchplug.comparison.studyfile import load_study

    text, *_ = blocks(name, "toml")
    (tmp_path / "study.toml").write_text(text, encoding="utf-8")
    comparison, settings = load_study(tmp_path / "study.toml")
    assert len(comparison.variants) == 5
    assert (comparison.task, settings.workers, comparison.budget_hours) == ("segmentation", 2, 8)


@pytest.mark.parametrize("name", ["docs/comparing.md", "docs/comparing.zh-CN.md"])
def test_the_guide_asks_for_the_same_study_in_python(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from torchplug.comparison import run
    from torchplug.comparison.studyfile import load_study

    (tmp_path / "study.toml").write_text(blocks(name, "toml")[0], encoding="utf-8")
    asked: list[object] = []
    monkeypatch.setattr(
        run, "run_comparison", lambda comparison, *_, **__: asked.append(comparison)
    )
    (code,) = blocks(name, "python")
    exec(compile(code, name, "exec"), {})
    assert asked == [load_study(tmp_path / "study.toml")[0]]


def test_the_guide_has_the_same_numbers_in_chinese() -> None:
    row = re.compile(r"^\| \d+ \|.*|^\|.*benchmarks/results/.*", re.MULTILINE)
    english, chinese = (
        [
            sorted(re.findall(r"\d[\d,.]*", line))
            for line in row.findall((ROOT / name).read_text("utf-8"))
        ]
        for name in ("docs/comparing.md", "docs/comparing.zh-CN.md")
    )
    assert len(english) == 18 + 4
    assert chinese == english


def test_every_module_of_the_table_is_in_the_catalogue() -> None:
    from torchplug import cards

    for name in READMES:
        keys = re.findall(r"^\| \[?`(\w+)`", (ROOT / name).read_text("utf-8"), re.MULTILINE)
        assert set(keys) <= set(cards())
        assert len(keys) >= 6
