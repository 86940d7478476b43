"""The page of a study: what is in it, how often, and that nothing in it can break out."""

from __future__ import annotations

import json
import math
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import pytest
from study_folder import HOSTILE, large_study, small_study, write_run

from dualscale_mamba.report.collect import Job, collect
from dualscale_mamba.report.effects import Effect
from dualscale_mamba.report.html import provenance, write_page
from dualscale_mamba.report.html.layers import PICTURED_RUNS, layers, least, pictured
from dualscale_mamba.report.html.page import embedded
from dualscale_mamba.report.html.quantities import Quantity
from dualscale_mamba.report.html.settings import ABSENT, compact, matrix
from dualscale_mamba.report.html.wording import effect_cells, effect_table, probability, significance
from dualscale_mamba.report.verdicts import Verdict
from dualscale_mamba.study.folder import Entry, Line, StudyFolder


class Page(HTMLParser):
    """The page as a browser reads it: elements with their attributes, and the text of each script."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.scripts: list[str] = []
        self.text = ""
        self._inside = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        self._inside = tag
        if tag == "script":
            self.scripts.append("")

    def handle_endtag(self, tag: str) -> None:
        self._inside = ""

    def handle_data(self, data: str) -> None:
        if self._inside == "script":
            self.scripts[-1] += data
        elif self._inside != "style":
            self.text += data

    def all(self, tag: str, attribute: str) -> list[str]:
        return [str(attrs[attribute]) for name, attrs in self.elements if name == tag and attribute in attrs]


def page_of(folder: Path, line: Line | None = None) -> Page:
    path = write_page(folder / "report.html", collect(folder), "study", line)
    return Page(path.read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with finished runs and a failed one."""
    return small_study(tmp_path_factory.mktemp("small"))


@pytest.fixture(scope="module")
def page(small: Path) -> Page:
    """Its page."""
    return page_of(small)


def data_of(page: Page) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(page.scripts[0])
    return found


def test_nothing_is_fetched(page: Page) -> None:
    for tag in ("script", "img", "link", "iframe"):
        assert page.all(tag, "src") == page.all(tag, "href") == []
    assert not [link for link in page.all("a", "href") if re.match(r"[a-z]+:|//", link)]
    assert any("default-src 'none'" in policy for policy in page.all("meta", "content"))


def test_run_data_stays_data(page: Page) -> None:
    assert HOSTILE in page.text
    assert "window.stolen" not in "".join(page.scripts[1:])
    assert not page.all("img", "onerror")


def test_embedded_json_survives_and_cannot_close_its_script() -> None:
    content = {"error": HOSTILE, "note": "<!-- & \u2028 —"}
    text = str(embedded(content))
    assert json.loads(text) == content
    assert not set(text) & set("<>&\u2028")


def test_a_nan_is_refused_in_the_data() -> None:
    with pytest.raises(ValueError, match="Out of range"):
        embedded({"value": math.nan})


def test_links_lead_to_the_runs_files(page: Page, small: Path) -> None:
    links = [unquote(link) for link in page.all("a", "href") if not link.startswith("#")]
    assert len(links) > 30
    assert all((small / link).exists() for link in links)
    assert "15_dual/status.json" in links
    assert all(link.count("/") == 1 for link in links)


def test_local_anchors_lead_somewhere(page: Page) -> None:
    ids = [str(attrs["id"]) for _, attrs in page.elements if "id" in attrs]
    assert len(ids) == len(set(ids))
    assert {link[1:] for link in page.all("a", "href") if link.startswith("#")} <= set(ids)
    assert set(page.all("label", "for")) <= set(ids)


def test_headline_says_what_and_how(page: Page) -> None:
    for words in ("How much does each scale mode depend", "python run.py -m sweeps=percentile", "AMD EPYC"):
        assert words in page.text


def test_command_is_that_of_the_line(small: Path) -> None:
    line = Line("1", "study", ("/opt/x/run.py", "-m", "a=b c"), 1.8e9, "continue", ())
    text = page_of(small, line).text
    assert "python run.py -m 'a=b c'" in text
    assert "2027-01-15 08:00 UTC" in text


def test_runs_have_values_in_the_units_of_their_heads(page: Page) -> None:
    data = data_of(page)
    names = [metric["name"] for metric in data["metrics"]]
    first = data["runs"][0]
    assert first["values"][names.index("memory/weights")] == pytest.approx(14.904512, rel=1e-5)
    assert data["metrics"][names.index("memory/weights")]["unit"] == "MB"
    accuracy = first["values"][names.index("minimal_pairs/acc")]
    low, high = first["intervals"][names.index("minimal_pairs/acc")]
    assert 0 < low < accuracy < high <= 100
    assert first["percentile"] == 99.0


def test_failed_run_has_no_numbers_and_a_traceback(page: Page) -> None:
    failed = data_of(page)["runs"][-1]
    assert failed["state"] == "failed"
    assert set(failed["values"]) == {None}
    assert "Traceback (most recent call last)" in page.text


def test_study_without_any_result(tmp_path: Path) -> None:
    write_run(tmp_path, 0, "dual", 99.0, error="RuntimeError: no")
    page = page_of(tmp_path)
    assert "RuntimeError: no" in page.text
    assert "There are no two finished arms to compare." in page.text
    assert data_of(page)["layers"]["runs"] == {}


def test_run_that_counted_nothing_has_no_layers(tmp_path: Path) -> None:
    path = write_run(tmp_path, 0, "dual", 99.0)
    (path / "distribution.json").unlink()
    result = json.loads((path / "result.json").read_text())
    result["sites"] = []
    result["metrics"]["minimal_pairs/acc"]["value"] = "nan"
    (path / "result.json").write_text(json.dumps(result))
    data = data_of(page_of(tmp_path))
    assert data["layers"]["runs"]["0"] == {}
    assert None in data["runs"][0]["values"]


def test_early_runs_with_one_picture_are_read(tmp_path: Path) -> None:
    path = write_run(tmp_path, 0, "dual", 99.0)
    found = json.loads((path / "distribution.json").read_text())
    name = "layers.3.mixer.ssm_input"
    (path / "distribution.json").write_text(json.dumps({"site": name, **found["sites"][name]}))
    assert list(data_of(page_of(tmp_path))["layers"]["runs"]["0"]["ssm_input"]["pictures"]) == ["3"]


def test_runs_of_one_calibration_share_their_histograms(page: Page) -> None:
    found = data_of(page)["layers"]
    assert len(found["histograms"]) == 4  # one a layer, for 15 runs
    sites = [sites["z"]["curves"] for sites in found["runs"].values()]
    assert len(set(sites)) < len(sites)
    own = found["runs"]["3"]["ssm_input"]
    assert found["curves"][own["curves"]]["layer"] == [0, 1, 2, 3]
    assert own["pictures"]["0"]["knee"] == 1.2


def test_a_large_study_pictures_the_best_of_every_mode(tmp_path: Path) -> None:
    large_study(tmp_path, 60, layers=2)
    jobs = collect(tmp_path)
    found = pictured(jobs, lambda place: float(-place), first=[7])
    assert len(found) == PICTURED_RUNS
    assert found[0] == 7
    assert {jobs[place].scale_mode for place in found[:6]} == {job.scale_mode for job in jobs}
    assert 59 in found
    kept = layers(jobs, lambda place: float(-place))
    assert len(kept["runs"]) == 60
    assert sum("pictures" in sites["ssm_input"] for sites in kept["runs"].values()) == PICTURED_RUNS
    assert {"z" in sites for sites in kept["runs"].values()} == {True, False}


def test_rank_turns_round_where_higher_is_better() -> None:
    assert sorted(range(3), key=least([0.2, None, 0.1], "lower")) == [2, 0, 1]
    assert sorted(range(3), key=least([0.2, None, 0.1], "higher")) == [0, 2, 1]


def test_settings_that_differ(small: Path) -> None:
    found = matrix(collect(small))
    assert set(found) == {"scale_mode", "observer.percentile"}
    assert found["observer.percentile"][:3] == ["99", "99.9", "100"]
    assert matrix([]) == {}


def test_all_settings_of_every_run_can_be_told(small: Path) -> None:
    jobs = collect(small)
    found = compact(jobs)
    assert found["own"][0].get("observer.percentile", found["common"]["observer.percentile"]) == "99"
    assert found["own"][-1]["calibration.samples"] == ABSENT


def test_question_of_a_stored_study(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text(
        "# @package _global_\n# Question: which? And\n# why? Type: python x\ngroup: a\n"
    )
    (tmp_path / "b.yaml").write_text("group: b\n")
    assert provenance.question(["", "../a", "a"], tmp_path) == "Which? And why?"
    assert provenance.question(["b"], tmp_path) == ""
    assert provenance.question(["missing"], tmp_path) == ""


@pytest.mark.parametrize(
    ("unit", "value", "text"),
    [
        ("fraction", 0.92312, "92.31"),
        ("bytes", 2e6, "2.00"),
        ("nats/token", 0.0019, "0.00190"),
        ("nats/token", 1.9e-5, "1.90e-05"),
        ("ms", 2.15642, "2.156"),
        ("", 4000.0, "4000"),
        ("", math.nan, "nan"),
        ("", None, ""),
    ],
)
def test_quantities_as_shown(unit: str, value: float | None, text: str) -> None:
    assert Quantity.of("m", "m", unit, "lower").text(value) == text


def effect(difference: float, better: str, significant: bool, p_value: float | None = 0.01) -> Effect:
    return Effect("m/acc", f"{better} {difference:g}", "points", better, 90.0, 90.0 + difference, difference,
                  p_value=p_value, significant=significant, items=1200, test="exact McNemar")  # fmt: skip


@pytest.mark.parametrize(
    ("effects", "kind"),
    [
        ([effect(1.0, "higher", True), effect(-1.0, "lower", True)], "better"),
        ([effect(-1.0, "higher", True)], "worse"),
        ([effect(1.0, "higher", True), effect(1.0, "lower", True)], "mixed"),
        ([effect(1.0, "higher", False)], "noise"),
        ([effect(1.0, "higher", True, p_value=None)], "noise"),
    ],
)
def test_marks_say_which_way(effects: list[Effect], kind: str) -> None:
    job = Job(Path(), {})
    found, words = significance(Verdict("", job, job, tuple(effects), (), ""))
    assert found == kind
    assert ("better" in words, "worse" in words) == (kind in ("better", "mixed"), kind in ("worse", "mixed"))


def test_effects_are_signed_and_say_their_test() -> None:
    cells = effect_cells(effect(1.25, "higher", True))
    assert cells[3] == "+1.25"
    assert cells[7:] == ["significant", "", "1,200", "exact McNemar"]
    heads, rows = effect_table([effect(1.25, "higher", True)])
    assert "p, adjusted" not in [head for head, _ in heads], "nothing is in that column"
    assert [len(row) for row in rows] == [len(heads)]
    assert probability(1e-9) == "< 0.0001"
    assert probability(0.0123) == "0.012"


def test_jobs_that_wait_are_counted_and_have_no_files(tmp_path: Path) -> None:
    entries = tuple(
        Entry(f"{number:012x}", number, f"job{number}", choices={"scale_mode": mode})
        for number, mode in enumerate(("single", "dual"))
    )
    folder = StudyFolder(tmp_path)
    folder.write(Line("abcd", "study", ("run.py", "-m"), 1.8e9, "continue", entries))
    write_run(folder.jobs, 0, "single", 99.0).rename(folder.job(entries[0].id))
    page = page_of(tmp_path)
    assert [run["state"] for run in data_of(page)["runs"]] == ["done", "waiting"]
    links = [unquote(link) for link in page.all("a", "href") if not link.startswith("#")]
    assert links
    assert all(link.startswith(f"jobs/{entries[0].id}/") and (tmp_path / link).exists() for link in links)
    assert "it has not begun" in page.text
