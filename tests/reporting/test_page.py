"""The files of a report: complete, self-contained, and safe whatever a variant is called."""

import csv
import dataclasses
import json
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

import torchplug as tp
from tests.comparison.conftest import run_quickly
from tests.reporting.conftest import FORMULA, HOSTILE
from torchplug.cli.display import say_again
from torchplug.comparison import Recipe, Run
from torchplug.comparison.result import Row
from torchplug.comparison.statistics import Interval
from torchplug.reporting import write_report
from torchplug.reporting.charts.costs import draw_by_latency
from torchplug.reporting.charts.effects import draw_again, draw_forest
from torchplug.reporting.language import LANGUAGES, load_wording
from torchplug.reporting.sections import account, checks
from torchplug.reporting.sentences import say_note
from torchplug.reporting.view import View

SECTIONS = ["verdict", "table", "figures", "controls", "power", "classes"]
SECTIONS += ["trials", "setup", "evidence", "limits"]


class Outline(HTMLParser):
    """Tags, texts and addresses of a page."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.texts: list[str] = []
        self.addresses: list[str] = []
        self.ids: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.addresses += [value or "" for name, value in attrs if name in {"src", "href"}]
        self.ids += [value or "" for name, value in attrs if name == "id"]

    def handle_data(self, data: str) -> None:
        self.texts.append(data)


def read_table(page: str, name: str) -> list[list[str]]:
    """Return the texts of a table's cells."""
    found = re.search(rf'<table id="{name}">.*?<tbody>(.*?)</tbody>', page, re.DOTALL)
    assert found is not None
    rows = re.findall(r"<tr>(.*?)</tr>", found.group(1), re.DOTALL)
    cells = [re.findall(r"<td.*?>(.*?)</td>", row, re.DOTALL) for row in rows]
    return [[" ".join(" ".join(Outline(cell).texts).split()) for cell in row] for row in cells]


def test_the_page_has_its_ten_parts_and_needs_no_other_file(page: str) -> None:
    outline = Outline(page)
    assert [name for name in outline.ids if name in SECTIONS] == SECTIONS
    assert outline.tags.count("svg") == 10
    assert outline.tags.count("script") == 2  # data and our own
    links = [address for address in outline.addresses if not address.startswith(("#", "data:"))]
    assert all(link.startswith("https://arxiv.org/") for link in links)
    assert "@import" not in page
    assert "url(http" not in page


def test_ids_are_unique(page: str) -> None:
    ids = Outline(page).ids
    assert sorted(ids) == sorted(set(ids))


def test_the_page_says_what_was_found_and_how(page: str, run: Run) -> None:
    text = re.sub(r"\s+", " ", " ".join(Outline(page).texts))
    result = run.result
    for row in result.variants:
        assert row.verdict is not None
        told = row.verdict.sentence.removeprefix(f"{row.verdict.label}: ")
        assert told[1:] in text  # the first letter is a capital here
    for wanted in ("batch_size", "5f0c5f0c", "deterministic algorithms", "0123456789ab-dirty"):
        assert wanted in text
    assert "0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10" in text
    assert "Seed 2 was left out for all variants" in text


def test_the_table_holds_what_scipy_computes_from_the_records(page: str, run: Run) -> None:
    records = run.records
    seeds = [seed for seed in range(11) if seed != 2]
    value = {(r["variant"], r["seed"]): r["value"] for r in records}
    gains = np.array([value["se", seed] - value["baseline", seed] for seed in seeds])
    interval = stats.ttest_1samp(gains, 0).confidence_interval()
    row = next(row for row in read_table(page, "arms") if row[0] == "se")
    assert row[1] == "better"
    assert row[3] == f"{gains.mean():+.2f} [{interval.low:+.2f}, {interval.high:+.2f}]"
    assert row[5] == f"{100 * (gains > 0).mean():.0f} %"


def test_the_forest_draws_the_differences_at_their_place(page: str, run: Run) -> None:
    found = re.search(r'id="figure-forest-accuracy".*?<svg(.*?)</svg>', page, re.DOTALL)
    assert found is not None
    ticks = re.findall(
        r'<text[^>]* x="([\d.]+)"[^>]*>([+\N{MINUS SIGN}]?\d\.\d+)</text>', found.group(1)
    )
    places = [float(x) for x, _ in ticks]
    values = [float(text.replace("\N{MINUS SIGN}", "-")) for _, text in ticks]
    slope, offset = np.polyfit(values, places, 1)
    drawn = re.findall(r"<title>(\w+): .*?<use [^>]*x=\"([\d.]+)\"", found.group(1), re.DOTALL)
    shown = {name: (float(x) - offset) / slope for name, x in drawn}
    for row in run.result.variants[:2]:
        assert row.difference is not None
        assert shown[row.variant] == pytest.approx(row.difference.mean, abs=0.005)


def test_a_class_has_its_paired_gain(page: str, run: Run) -> None:
    kept = [r for r in run.records if r["seed"] != 2]
    value = {(r["variant"], r["seed"]): r["classes"]["3"] for r in kept}
    seeds = sorted({r["seed"] for r in kept})
    gains = [value["gc", seed] - value["baseline", seed] for seed in seeds]
    heads = re.search(r'id="classes-table">.*?</thead>', page, re.DOTALL)
    assert heads is not None
    column = re.findall(r"<th.*?>(.*?)</th>", heads.group(0), re.DOTALL).index("gc")
    row = next(row for row in read_table(page, "classes-table") if row[0] == "3")
    shown = f"{np.mean(gains):+.2f}".replace("-", "\N{MINUS SIGN}")
    assert row[column].startswith(shown)


def test_every_control_says_what_it_answers(page: str) -> None:
    rows = read_table(page, "controls-table")
    names = ["baseline again", "parameters control of se", "placebo control of se"]
    assert [row[0] for row in rows] == names
    assert "Is it only size?" in rows[1][1]
    assert '"width": 66' in rows[1][-1]
    assert rows[1][4] == rows[2][4] == "the variant is ahead"


def widen(run: Run, p: float, p_corrected: float, low: float, high: float) -> Run:
    """The run as if its intervals were those of two seeds."""
    interval = Interval(low=low, high=high)

    def change(row: Row) -> Row:
        d = row.difference
        wide = d and dataclasses.replace(d, p=p, p_corrected=p_corrected, interval=interval)
        return dataclasses.replace(row, interval=interval, difference=wide)

    rows = tuple(change(row) for row in run.result.rows)
    return dataclasses.replace(run, result=dataclasses.replace(run.result, rows=rows))


@pytest.mark.parametrize(
    ("p", "p_corrected", "said"),
    [
        (0.7, 0.7, ("fair: no difference found", "公平：没有发现差异", "is not told from itself")),
        (
            0.038,
            0.5,
            (
                "differs by the t test, not",
                "要多跑种子才能判断",
                "by the t test (p = 0.038), not by",
            ),
        ),
        (
            0.038,
            0.038,
            ("differs from itself: doubt", "都要存疑", "with other seeds (p = 0.038), which"),
        ),
    ],
)
def test_the_baseline_against_itself_is_read_as_its_numbers_are(
    run: Run, p: float, p_corrected: float, said: tuple[str, str, str]
) -> None:
    wide = widen(run, p, p_corrected, 0.1, 0.9)
    for lang, text in zip(LANGUAGES, said[:2], strict=True):
        section = checks.tell_controls(View(wide, load_wording(lang)))
        assert text in section.blocks[0].rows[0][4].text
    assert said[2] in say_again(wide.result.controls[0])


def test_figures_end_where_percent_do(run: Run) -> None:
    wide = widen(run, 0.5, 0.5, -116.0, 146.0)
    view = View(wide, load_wording("en"))
    again = view.controls[0]
    for svg, most, least in (
        (draw_by_latency(view, "accuracy"), 100, 0),
        (draw_forest(view, "accuracy"), 100, -100),
        (draw_again(view, again), 100, -100),
    ):
        ticks = [float(n.replace("−", "-")) for n in re.findall(r">([−\d.]+)</text>", svg or "")]
        assert (max(ticks), min(ticks)) == (most, least)
    own = dataclasses.replace(wide, result=dataclasses.replace(wide.result, unit=""))
    svg = draw_forest(View(own, load_wording("en")), "accuracy")
    assert "150" in svg  # of a metric of one's own nobody knows what it can be


def test_two_seeds_say_in_both_languages_how_little_they_say(run: Run) -> None:
    two = dataclasses.replace(run.result, seeds=(0, 1))
    few = dataclasses.replace(run, result=two)
    chinese = load_wording("zh")
    assert "几乎什么也说明不了" in say_note(View(few, chinese))
    assert "几乎什么也说明不了" not in say_note(View(run, chinese))


def test_hostile_names_are_escaped_in_page_and_figures(page: str) -> None:
    assert HOSTILE not in page
    assert "<script>alert" not in page
    assert "<b>bold" not in page
    texts = " ".join(Outline(page).texts)
    assert HOSTILE in texts
    figures = "".join(re.findall(r"<svg.*?</svg>", page, re.DOTALL))
    assert "&lt;/script&gt;" in figures
    assert "$x$ &amp;" in figures


def test_data_in_the_page_cannot_end_its_element(page: str) -> None:
    found = re.search(r'<script type="application/json" id="data">(.*?)</script>', page)
    assert found is not None
    data = json.loads(found.group(1))
    assert [row["variant"] for row in data["summary"]["rows"]][3] == HOSTILE


def test_markdown_shows_hostile_names_as_they_are(page_path: Path) -> None:
    text = page_path.with_name("report.md").read_text(encoding="utf-8")
    assert "<" not in text.replace("&lt;", "").partition("## 8")[0]
    assert "<script>" not in text
    assert r"\|" in text
    table = [line for line in text.splitlines() if line.startswith("| ")]
    columns = {len(re.findall(r"(?<!\\)\|", line)) for line in table if "alert" in line}
    heads = {len(re.findall(r"(?<!\\)\|", line)) for line in table}
    assert columns <= heads


def test_the_list_of_trials_is_a_csv_that_no_spreadsheet_runs(page_path: Path, run: Run) -> None:
    text = page_path.with_name("trials.csv").read_text(encoding="utf-8")
    rows = list(csv.DictReader(text.splitlines()))
    records = run.records
    assert len(rows) == len(records) == 8 * 11
    assert [row["variant"] for row in rows].count(HOSTILE) == 11
    assert f"'{FORMULA}" in {row["variant"] for row in rows}
    assert not [cell for row in rows for cell in row.values() if cell.startswith("=")]
    diverged = [row for row in rows if row["status"] == "diverged"]
    assert [(row["variant"], row["seed"], row["value"]) for row in diverged] == [("gc", "2", "")]


def test_the_summary_is_the_result(page_path: Path, run: Run) -> None:
    summary = json.loads(page_path.with_name("summary.json").read_text(encoding="utf-8"))
    result = run.result
    assert [row["variant"] for row in summary["rows"]] == [row.variant for row in result.rows]
    assert summary["rows"][1]["difference"]["mean"] == result.rows[1].difference.mean


def test_failures_and_resumed_trials_are_counted(page: str) -> None:
    text = re.sub(r"\s+", " ", " ".join(Outline(page).texts))
    assert "88 trials: 87 finished, 1 diverged, 2 resumed after an interruption." in text


def test_a_long_list_is_cut_and_says_where_the_rest_is(
    run: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(account, "MOST_TRIALS", 20)
    section = account.tell_trials(View(run, load_wording("en")))
    table = section.blocks[-1].blocks[0]
    assert len(table.rows) == 20
    assert table.caption.startswith("The first 20 of 88 trials; trials.csv")


def test_the_same_run_gives_the_same_files(page_path: Path, run_directory: Path) -> None:
    names = ("report.html", "report.md", "summary.json", "trials.csv")
    before = [(run_directory / name).read_bytes() for name in names]
    write_report(run_directory)
    assert [(run_directory / name).read_bytes() for name in names] == before


def test_a_run_with_missing_trials_is_refused(run_directory: Path, tmp_path: Path) -> None:
    shutil.copytree(run_directory, tmp_path / "run")
    for written in ("report.html", "report.md", "trials.csv", "summary.json"):
        (tmp_path / "run" / written).unlink(missing_ok=True)
    (folder,) = (tmp_path / "run" / "trials").glob("se--seed-3--*")
    (folder / "record.json").unlink()
    with pytest.raises(tp.UsageError, match="no se seed 3; run the same"):
        write_report(tmp_path / "run")
    assert not list((tmp_path / "run").glob("report.*"))


def test_an_unknown_language_is_named_before_anything_is_read(tmp_path: Path) -> None:
    with pytest.raises(tp.UsageError, match="choose from 'en', 'zh'"):
        write_report(tmp_path / "nowhere", lang="fr")


def test_a_real_run_is_reported(tmp_path: Path) -> None:
    quick = Recipe(epochs=1, batch_size=128)
    run_quickly(tmp_path / "run", plugs=["se"], recipe=quick)
    page = write_report(tmp_path / "run", lang="zh").read_text(encoding="utf-8")
    outline = Outline(page)
    assert [name for name in outline.ids if name in SECTIONS] == SECTIONS
    assert [row[0] for row in read_table(page, "arms")] == ["baseline", "se", "A/A"]
    assert len(read_table(page, "trials-table")) == 6
    assert {"figure-forest-accuracy", "figure-curve-validation_time"} <= {*outline.ids}
