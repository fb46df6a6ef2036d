"""The pages say what the code says, and the drawings can be read."""

import doctest
import tomllib
import xml.etree.ElementTree as ElementTree
from itertools import combinations
from pathlib import Path

import pytest

from docs.build import HERE, HOW, main, make_files
from docs.drawing import draw
from docs.flows import FLOWS
from torchplug import cards, get_card

PUBLISHED = tomllib.loads((HERE / "published.toml").read_text())
SVG = "{http://www.w3.org/2000/svg}"


def test_every_page_is_up_to_date(capsys: pytest.CaptureFixture[str]) -> None:
    outdated = main(["--check"])
    assert not outdated, capsys.readouterr().out + "run python -m docs.build"


def test_every_module_has_a_page_a_drawing_and_figures() -> None:
    keys = {c.key for c in cards().values() if c.factory.__module__.startswith("torchplug.")}
    assert FLOWS.keys() == keys
    assert PUBLISHED.keys() == keys
    written = {path.name for path, _ in make_files()}
    assert {f"{key}.md" for key in keys} <= written


@pytest.mark.parametrize("key", sorted(PUBLISHED))
def test_figures_name_their_source_and_counts_are_counted(key: str) -> None:
    for figure in PUBLISHED[key]:
        assert figure["source"]
        assert figure["how"] in HOW
        for count in figure.get("counts", ()):
            module = get_card(key).factory(*count["args"], device="meta")
            assert sum(p.numel() for p in module.parameters()) == count["parameters"]
            assert f"{count['parameters']:,}" in figure["what"]


def test_links_between_pages_lead_somewhere() -> None:
    pages = HERE / "modules"
    for page in pages.glob("*.md"):
        for part in page.read_text().split("](")[1:]:
            target = part.partition(")")[0]
            assert target.startswith("http") or (pages / target).exists(), f"{page.name}: {target}"


@pytest.mark.parametrize("page", sorted((HERE / "modules").glob("*.md")), ids=lambda p: p.stem)
def test_examples_of_a_page_run(page: Path) -> None:
    parser = doctest.DocTestParser()
    options = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
    text = page.read_text().replace("```", "")  # a fence would count as expected output
    found = parser.get_doctest(text, {}, page.name, str(page), 0)
    results = doctest.DocTestRunner(optionflags=options).run(found)
    assert results.failed == 0
    assert results.attempted > 0 or page.stem == "README"


@pytest.mark.parametrize("key", sorted(FLOWS))
def test_boxes_of_a_drawing_lie_inside_it_and_apart(key: str) -> None:
    root = ElementTree.fromstring(draw(key, FLOWS[key]))
    width, height = float(root.attrib["width"]), float(root.attrib["height"])
    boxes = [
        tuple(float(rect.attrib[name]) for name in ("x", "y", "width", "height"))
        for rect in root.findall(f"{SVG}rect")
        if "x" in rect.attrib
    ]
    assert boxes
    for x, y, w, h in boxes:
        assert 0 <= x <= x + w <= width
        assert 0 <= y <= y + h <= height
    for (x, y, w, h), (a, b, c, d) in combinations(boxes, 2):
        assert x + w <= a or a + c <= x or y + h <= b or b + d <= y, key


def test_a_stale_page_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("docs.build.HERE", tmp_path)
    (tmp_path / "published.toml").write_text("")
    assert main(["--check"]) == 1
    assert main([]) == 0
    assert main(["--check"]) == 0
    (tmp_path / "modules" / "se.md").write_text("changed by hand")
    assert main(["--check"]) == 1
