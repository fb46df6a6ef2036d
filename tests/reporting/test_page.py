"""The report is one file that opens from disk, in a real browser."""

import json
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path

import pytest

import torchplug as tp
from tests.comparison.conftest import run_quickly
from torchplug.comparison import load_run
from torchplug.reporting import write_report

CHROMIUM = shutil.which("chromium")
HOSTILE = "<script>alert(1)</script> $x$ & <b>bold</b>"

browser = pytest.mark.skipif(CHROMIUM is None, reason="no chromium: apt-get install chromium")


@pytest.fixture(scope="module")
def run_directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("runs") / "report"
    variants = [
        tp.comparison.Variant(name="se", module="se"),
        tp.comparison.Variant(name=HOSTILE, module="cbam", at="stage"),
    ]
    run_quickly(root, plugs=variants, seeds=3)
    return root


@pytest.fixture(scope="module")
def page(run_directory: Path) -> str:
    return write_report(run_directory).read_text(encoding="utf-8")


class Outline(HTMLParser):
    """Tags, texts and addresses of a page."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.texts: list[str] = []
        self.addresses: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.addresses += [value or "" for name, value in attrs if name in {"src", "href"}]

    def handle_data(self, data: str) -> None:
        self.texts.append(data)


def test_the_page_needs_no_other_file_and_no_script(page: str) -> None:
    outline = Outline(page)
    assert outline.tags.count("svg") == 5
    assert "script" not in outline.tags
    links = [address for address in outline.addresses if not address.startswith(("#", "data:"))]
    assert all(link.startswith("https://arxiv.org/") for link in links)
    assert "@import" not in page


def test_the_page_says_what_was_found_and_how(page: str, run_directory: Path) -> None:
    text = " ".join(Outline(page).texts)
    result = load_run(run_directory).result
    for row in result.rows:
        assert f"{row.mean:.2f}" in text
        if row.verdict is not None:
            assert row.verdict.sentence in text
    assert "a screen, not a conclusion" in text
    assert "batch_size" in text
    assert tp.__version__ in text
    assert "torchplug compare --model torchplug:resnet8 --data digits" in text


def test_hostile_names_are_escaped(page: str) -> None:
    assert HOSTILE not in page
    assert "<b>bold" not in page
    assert HOSTILE in " ".join(Outline(page).texts)


def test_every_trial_is_listed(page: str) -> None:
    rows = re.findall(r"<td>[012]</td>\s*<td class=\"text\">finished", page)
    assert len(rows) == 9


def test_the_same_run_gives_the_same_page(page: str, run_directory: Path) -> None:
    assert write_report(run_directory).read_text(encoding="utf-8") == page


def test_a_run_with_missing_trials_is_refused(run_directory: Path, tmp_path: Path) -> None:
    shutil.copytree(run_directory, tmp_path / "run")
    (tmp_path / "run" / "trials" / "se--seed-2.json").unlink()
    (tmp_path / "run" / "report.html").unlink(missing_ok=True)
    with pytest.raises(tp.UsageError, match="no se seed 2; run the same"):
        write_report(tmp_path / "run")
    assert not (tmp_path / "run" / "report.html").exists()


def open_in_browser(path: Path, profile: Path, *options: str) -> subprocess.CompletedProcess[str]:
    flags = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"]
    flags += ["--disable-background-networking", "--disable-component-update", "--disable-sync"]
    flags += ["--hide-scrollbars", f"--user-data-dir={profile}", "--virtual-time-budget=2000"]
    command = [str(CHROMIUM), *flags, *options, path.as_uri()]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)


PROBE = """
<script>
addEventListener("load", () => {
  const all = [...document.querySelectorAll("body > *")];
  const wide = all.filter(element => element.scrollWidth > innerWidth + 1);
  const figures = [...document.querySelectorAll("figure svg")].map(e => e.getBoundingClientRect());
  document.title = JSON.stringify({
    overflow: wide.map(e => e.tagName),
    figures: figures.filter(box => box.width > 200 && box.height > 60).length,
    rows: document.querySelectorAll("#table tbody tr").length,
  });
});
</script>
"""


@browser
@pytest.mark.browser
@pytest.mark.parametrize("width", [1200, 500])
def test_a_browser_shows_it_without_errors(page: str, width: int, tmp_path: Path) -> None:
    path = tmp_path / "report.html"
    path.write_text(page.replace("</body>", PROBE + "</body>"), encoding="utf-8")
    options = [f"--window-size={width},1000", "--enable-logging=stderr", "--dump-dom"]
    done = open_in_browser(path, tmp_path / "profile", *options)
    assert ":CONSOLE(" not in done.stderr
    title = re.search(r"<title>(.*?)</title>", done.stdout)
    assert title is not None
    assert json.loads(title.group(1)) == {"overflow": [], "figures": 5, "rows": 3}
