"""The page in a browser: everything on it is used, by mouse and by keyboard, without a network."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from study_folder import large_study, small_study

from dualscale_mamba.report.collect import collect
from dualscale_mamba.report.html import write_page

playwright = pytest.importorskip("playwright.sync_api", reason="the browser tests need playwright")

ARGUMENTS = (
    "--no-sandbox",
    "--disable-gpu",
    "--disable-background-networking",
    "--no-first-run",
    "--disable-sync",
    "--disable-component-update",
)
LARGEST_PAGE = 15e6
LONGEST_OPENING = 3000.0  # ms
SECTIONS = (
    "headline",
    "verdicts",
    "comparison",
    "tradeoff",
    "percentiles",
    "layers",
    "settings",
    "fairness",
    "failed",
)
CHARTS = ("scatter", "curves", "signal", "reach", "histogram")
# The colour behind an element, and its contrast with the text on it (WCAG 2.2, 1.4.3).
CONTRASTS = """() => {
  const parse = (text) => text.match(/[\\d.]+/g).map(Number);
  const part = (v) => (v / 255 <= 0.04045 ? v / 255 / 12.92 : ((v / 255 + 0.055) / 1.055) ** 2.4);
  const light = ([r, g, b]) => 0.2126 * part(r) + 0.7152 * part(g) + 0.0722 * part(b);
  const behind = (element) => {
    for (let at = element; at; at = at.parentElement) {
      const found = parse(getComputedStyle(at).backgroundColor);
      if (found.length < 4 || found[3] > 0) return found;
    }
    return [255, 255, 255];
  };
  const found = [];
  for (const element of document.querySelectorAll("main *, header *")) {
    const own = [...element.childNodes].some((node) => node.nodeType === 3 && node.textContent.trim());
    if (!own || element.closest("svg, option, .unseen") || !element.getClientRects().length) continue;
    const pair = [light(parse(getComputedStyle(element).color)), light(behind(element))].sort((a, b) => b - a);
    const name = element.tagName + "." + element.className + ": " + element.textContent.slice(0, 40);
    found.push([(pair[0] + 0.05) / (pair[1] + 0.05), name]);
  }
  return found;
}"""


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """Chromium without a window."""
    names = ("chromium", "chromium-browser", "google-chrome")
    path = next((found for name in names if (found := shutil.which(name))), None)
    if path is None:
        pytest.skip("no chromium on this machine: the page is not seen in a browser")
    with playwright.sync_playwright() as driver:
        started = driver.chromium.launch(executable_path=path, args=list(ARGUMENTS))
        yield started
        started.close()


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The page of a small study."""
    folder = small_study(tmp_path_factory.mktemp("study"))
    return write_page(folder / "report.html", collect(folder), "percentile")


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The page of 200 runs of a model of 64 layers."""
    folder = large_study(tmp_path_factory.mktemp("large"))
    return write_page(folder / "report.html", collect(folder), "large")


class Opened:
    """A page in a context of its own that notes complaints and requests."""

    def __init__(self, browser: Any, path: Path, **options: Any) -> None:
        self.complaints: list[str] = []
        self.requests: list[str] = []
        options = {"viewport": {"width": 1280, "height": 900}, "offline": True, **options}
        self.context = browser.new_context(**options)
        self.page = self.context.new_page()
        self.page.set_default_timeout(20_000)
        self.page.on("console", lambda message: self.complaints.append(message.text))
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.page.on("request", lambda request: self.requests.append(request.url))
        self.page.goto(path.as_uri())

    def close(self) -> None:
        self.context.close()
        assert self.complaints == []
        outside = [url for url in self.requests if not url.startswith(("file:", "data:", "blob:"))]
        assert outside == []
        assert sum(url.startswith("file:") for url in self.requests) == 1


@pytest.fixture
def opened(browser: Any, study: Path, request: pytest.FixtureRequest) -> Iterator[Any]:
    """The small study's page; a parameter gives options of the browser's context."""
    window = Opened(browser, study, **getattr(request, "param", {}))
    yield window.page
    window.close()


def reached(page: Any, chart: str) -> None:
    """Scroll a chart into view and wait until it is drawn."""
    page.locator(f"#{chart}").scroll_into_view_if_needed()
    page.wait_for_selector(f"#{chart} .main-svg")


def labels(page: Any) -> list[str]:
    found: list[str] = page.locator("#jobs tbody tr:not([hidden]) .label").all_inner_texts()
    return found


def title_of_axis(page: Any, chart: str, axis: str) -> str:
    text: str = page.evaluate(f"document.getElementById('{chart}').layout.{axis}.title.text")
    return text


def test_all_charts_are_drawn_when_seen_and_not_before(opened: Any) -> None:
    assert opened.evaluate("typeof Plotly") == "undefined"
    for chart in CHARTS:
        reached(opened, chart)
        assert opened.evaluate(f"document.getElementById('{chart}').data.length") > 1
    assert opened.evaluate("window.stolen") is None


def test_heads_sort(opened: Any) -> None:
    first = labels(opened)
    head = opened.get_by_role("columnheader", name="KL")
    value = "#jobs tbody tr:not(.failed) td:nth-of-type(3)"
    head.get_by_role("button").click()
    assert head.get_attribute("aria-sort") == "ascending"
    numbers = [float(text.split()[0]) for text in opened.locator(value).all_inner_texts()]
    assert numbers == sorted(numbers)
    assert labels(opened)[-1] == first[-1], "a run without a number comes last"
    head.get_by_role("button").press("Enter")
    assert head.get_attribute("aria-sort") == "descending"
    numbers = [float(text.split()[0]) for text in opened.locator(value).all_inner_texts()]
    assert numbers == sorted(numbers, reverse=True)
    assert labels(opened)[-1] == first[-1]
    head.get_by_role("button").press("Enter")
    assert head.get_attribute("aria-sort") is None
    assert labels(opened) == first
    opened.get_by_role("columnheader", name="Run").first.get_by_role("button").press("Space")
    assert labels(opened)[0].startswith("affine")


def test_filter_says_how_many(opened: Any) -> None:
    opened.get_by_label("Filter").fill("dual 99")
    assert all("dual" in label for label in labels(opened))
    assert opened.locator("#filtered").inner_text() == f"{len(labels(opened))} of 16 runs"
    opened.get_by_label("Filter").fill("no such run")
    assert labels(opened) == []
    opened.get_by_label("Filter").fill("")
    assert len(labels(opened)) == 16


def test_a_row_chooses_the_run_of_the_layers(opened: Any) -> None:
    reached(opened, "signal")
    opened.locator("#jobs tbody tr").nth(7).locator("td").nth(3).click()
    assert opened.locator("#run").input_value() == "7"
    assert opened.locator("#jobs tr[aria-current]").get_attribute("data-run") == "7"
    assert "is chosen" in opened.locator("#chosen").inner_text()
    opened.locator("#jobs tbody tr").nth(3).get_by_role("button").press("Enter")
    assert opened.locator("#run").input_value() == "3"
    names = opened.evaluate("document.getElementById('signal').data.map((trace) => trace.name)")
    assert "dual 99 %" in names
    opened.locator("#run").select_option("4")
    assert opened.locator("#jobs tr[aria-current]").get_attribute("data-run") == "4"


def test_layers_by_keyboard(opened: Any) -> None:
    reached(opened, "histogram")
    slider = opened.get_by_label("Layer", exact=True)
    slider.press("Home")
    assert opened.locator("#layer-text").inner_text().startswith("0")
    assert opened.locator("#layer-table tr[aria-current] th").inner_text() == "0"
    slider.press("ArrowRight")
    assert opened.locator("#layer-table tr[aria-current] th").inner_text() == "1"
    assert opened.evaluate("document.getElementById('histogram').layout.shapes.length") >= 1
    hovers = opened.evaluate("document.getElementById('histogram').data.map((trace) => trace.hovertemplate)")
    assert sum(text.startswith("knee") for text in hovers) == 1, "dual has a knee, single has none"
    gain = opened.locator("#layer-table tr[aria-current] td").nth(6).inner_text()
    assert gain == "+8.00"
    opened.get_by_label("Site").select_option("z")
    assert opened.locator("#layer-table tbody tr").count() == 4
    opened.get_by_label("Beside").select_option("")
    assert opened.evaluate("document.getElementById('signal').data.length") == 2


def test_axes_change(opened: Any) -> None:
    reached(opened, "scatter")
    assert opened.evaluate("document.getElementById('scatter').layout.yaxis.type") == "log"
    opened.get_by_label("Vertical").select_option(label="acc, %")
    opened.get_by_label("Horizontal").select_option(label="weights, MB")
    assert title_of_axis(opened, "scatter", "yaxis") == "acc, % (higher is better)"
    assert title_of_axis(opened, "scatter", "xaxis") == "weights, MB (lower is better)"
    assert opened.evaluate("document.getElementById('scatter').layout.yaxis.type") == "linear"
    assert opened.evaluate("document.getElementById('scatter').data.some((trace) => trace.error_y)")
    opened.get_by_label("Symbol").select_option("observer.percentile")
    symbols = opened.evaluate("new Set(document.getElementById('scatter').data[1].marker.symbol).size")
    assert symbols == 3


def test_percentiles_are_evenly_spread_by_their_tails(opened: Any) -> None:
    reached(opened, "curves")
    axis = opened.evaluate("document.getElementById('curves').layout.xaxis")
    assert axis["ticktext"] == ["99", "99.9", "100"]
    assert axis["tickvals"] == pytest.approx([0.0, 1.0, 1.5])
    lines = opened.evaluate(
        "document.getElementById('curves').data.filter((t) => t.showlegend !== false).map((t) => t.name)"
    )
    assert set(lines) == {"single", "dual", "affine", "fp8_e4m3", "control"}
    opened.locator("#curve-y").select_option(label="acc, %")
    assert title_of_axis(opened, "curves", "yaxis").startswith("acc, %")


def test_front_is_made_of_runs_that_nothing_beats(opened: Any) -> None:
    reached(opened, "scatter")
    front = opened.evaluate("(({x, y}) => ({x, y}))(document.getElementById('scatter').data[0])")
    points = opened.evaluate(
        "document.getElementById('scatter').data.slice(1).flatMap((t) => t.x.map((x, i) => [x, t.y[i]]))"
    )
    for x, y in zip(front["x"], front["y"], strict=True):
        assert not any(px <= x and py <= y and (px, py) != (x, y) for px, py in points if px is not None)
    assert front["y"] == sorted(front["y"], reverse=True)


def test_verdict_unfolds_its_effects(opened: Any) -> None:
    verdict = opened.locator(".verdict").first
    assert "ignificant" in verdict.locator(".mark").inner_text()
    assert "equal" in verdict.locator(".lights").inner_text()
    table = verdict.locator("table")
    assert not table.is_visible()
    verdict.locator("summary").press("Enter")
    assert table.is_visible()
    heads = table.locator("thead th").all_inner_texts()
    assert len(heads) == table.locator("tbody tr").first.locator("th, td").count()
    verdict.locator("summary").click()
    assert not table.is_visible()


def test_two_runs_side_by_side(opened: Any) -> None:
    opened.get_by_label("First").select_option("0")
    opened.get_by_label("Second").select_option("4")
    rows = opened.locator("#two tbody tr").all_inner_texts()
    assert any("scale_mode" in row and "single" in row and "dual" in row for row in rows)
    opened.get_by_label("Second").select_option("0")
    assert opened.locator("#two-count").inner_text() == "no setting differs"


@pytest.mark.parametrize("opened", [{"color_scheme": "light"}, {"color_scheme": "dark"}], indirect=True)
def test_theme_can_be_switched_and_figures_follow(opened: Any) -> None:
    reached(opened, "scatter")
    paper = "getComputedStyle(document.body).backgroundColor"
    ink = "document.getElementById('scatter').layout.font.color"
    before = opened.evaluate(f"[{paper}, {ink}]")
    opened.locator("#theme").click()
    after = opened.evaluate(f"[{paper}, {ink}]")
    assert before[0] != after[0]
    assert before[1] != after[1]
    opened.locator("#theme").press("Enter")
    assert opened.evaluate(f"[{paper}, {ink}]") == before


@pytest.mark.parametrize("opened", [{"color_scheme": "light"}, {"color_scheme": "dark"}], indirect=True)
def test_text_stands_out_from_what_is_behind_it(opened: Any) -> None:
    opened.evaluate("for (const found of document.querySelectorAll('details')) found.open = true")
    opened.locator("#jobs tbody tr").nth(1).get_by_role("button").click()
    found = opened.evaluate(CONTRASTS)
    assert len(found) > 200
    assert [pair for pair in found if pair[0] < 4.5] == []


def test_keyboard_alone_reaches_everything(opened: Any) -> None:
    opened.keyboard.press("Tab")
    assert opened.evaluate("document.activeElement.className") == "skip"
    seen, last = set(), ""
    for _ in range(600):
        opened.keyboard.press("Tab")
        outlined, name = opened.evaluate(
            """() => {
              const at = document.activeElement;
              const style = getComputedStyle(at);
              const box = at.getBoundingClientRect();
              if (at === document.body) return [true, ""];
              const name = at.id || `${at.closest("section")?.id} ${at.tagName} ${at.textContent.trim()}`;
              return [style.outlineStyle !== "none" && parseFloat(style.outlineWidth) > 0 && box.width > 0, name];
            }"""
        )
        if not name:
            break
        assert outlined, f"nobody sees that {name} has the focus"
        seen.add(name)
        last = name
    assert "failed" in last, "the end of the page is reached"
    wanted = {
        "theme",
        "copy",
        "filter",
        "axis-x",
        "axis-y",
        "symbol-key",
        "log-y",
        "curve-y",
        "run",
        "other-run",
    }
    assert wanted | {"site", "layer", "first-run", "second-run"} <= seen
    assert any(name.startswith("verdicts SUMMARY") for name in seen)
    assert any(name.startswith("comparison A") for name in seen)


def test_skip_link_leads_to_the_content(opened: Any) -> None:
    opened.keyboard.press("Tab")
    opened.keyboard.press("Enter")
    assert opened.evaluate("document.activeElement.id") == "main"


def test_controls_and_tables_say_what_they_are(opened: Any) -> None:
    unnamed = opened.evaluate(
        """() => [...document.querySelectorAll("button, select, input, a, summary")].filter((found) =>
          !(found.labels?.length || found.getAttribute("aria-label") || found.textContent.trim()))
          .map((found) => found.outerHTML)"""
    )
    assert unnamed == []
    assert opened.locator("th:not([scope])").count() == 0
    assert opened.locator("section:not([aria-labelledby])").count() == 0
    assert opened.evaluate("document.documentElement.lang") == "en"


@pytest.mark.parametrize("opened", [{"viewport": {"width": 375, "height": 800}}], indirect=True)
def test_no_section_is_wider_than_a_phone(opened: Any) -> None:
    opened.evaluate("for (const found of document.querySelectorAll('details')) found.open = true")
    for chart in CHARTS:
        reached(opened, chart)
    for section in SECTIONS:
        opened.locator(f"#{section}").scroll_into_view_if_needed()
        assert opened.evaluate("document.documentElement.scrollWidth") <= 375, section
        right = opened.evaluate(f"document.getElementById('{section}').getBoundingClientRect().right")
        assert right <= 375, section
        controls = opened.locator(f"#{section} :is(select, .tools button, input):visible")
        for box in [control.bounding_box() for control in controls.all()]:
            assert box["x"] >= 0, section
            assert box["x"] + box["width"] <= 375, section


@pytest.mark.parametrize("opened", [{"permissions": ["clipboard-read", "clipboard-write"]}], indirect=True)
def test_command_is_copied(opened: Any) -> None:
    opened.locator("#copy").click()
    opened.wait_for_function("document.getElementById('copied').textContent !== ''")
    assert opened.locator("#copy").inner_text() == "Copied"
    assert opened.evaluate("navigator.clipboard.readText()") == opened.locator("#command").inner_text()


@pytest.mark.parametrize("opened", [{"accept_downloads": True}], indirect=True)
def test_charts_are_saved(opened: Any, tmp_path: Path) -> None:
    reached(opened, "scatter")
    for name, start in (("SVG", b"<svg"), ("PNG", b"\x89PNG")):
        with opened.expect_download() as download:
            opened.locator("#tradeoff").get_by_role("button", name=f"Save this chart as {name}").click()
        download.value.save_as(tmp_path / name)
        assert (tmp_path / name).read_bytes().startswith(start)


@pytest.mark.parametrize("opened", [{"reduced_motion": "reduce"}], indirect=True)
def test_nothing_moves_for_those_who_asked(opened: Any) -> None:
    assert opened.evaluate("getComputedStyle(document.documentElement).scrollBehavior") == "auto"


@pytest.mark.parametrize("opened", [{"color_scheme": "dark"}], indirect=True)
def test_print_is_dark_on_light_without_controls(opened: Any) -> None:
    opened.emulate_media(media="print")
    assert opened.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    assert not opened.locator("#filter").is_visible()
    assert opened.locator("#jobs").is_visible()
    assert len(opened.pdf()) > 50_000
    drawn = opened.evaluate("document.querySelectorAll('.chart .main-svg:first-child').length")
    assert drawn == len(CHARTS)
    assert opened.evaluate("document.documentElement.dataset.theme") is None


@pytest.mark.parametrize("opened", [{"java_script_enabled": False}], indirect=True)
def test_tables_are_there_without_scripts(opened: Any) -> None:
    assert opened.locator(".verdict").count() > 1
    assert opened.locator("#jobs tbody tr").count() == 16
    assert not opened.locator("#filter").is_visible()


def opening(browser: Any, path: Path) -> float:
    """Milliseconds until the page is loaded and its first contents are painted."""
    window = Opened(browser, path)
    window.page.wait_for_function("performance.getEntriesByName('first-contentful-paint').length > 0")
    loaded = window.page.evaluate("performance.getEntriesByType('navigation')[0].loadEventEnd")
    painted = window.page.evaluate("performance.getEntriesByName('first-contentful-paint')[0].startTime")
    window.close()
    return float(max(loaded, painted))


@pytest.mark.slow
def test_large_study_is_small_and_opens_at_once(browser: Any, large: Path) -> None:
    assert large.stat().st_size < LARGEST_PAGE
    seconds = opening(browser, large)
    if seconds >= LONGEST_OPENING:  # the machine may have been busy
        seconds = opening(browser, large)
    assert seconds < LONGEST_OPENING


@pytest.mark.slow
def test_large_study_can_be_used(browser: Any, large: Path) -> None:
    window = Opened(browser, large)
    window.page.get_by_role("columnheader", name="KL").get_by_role("button").click()
    window.page.get_by_label("Filter").fill("dual")
    assert len(labels(window.page)) == 40
    for chart in CHARTS:
        reached(window.page, chart)
    window.page.locator("#run").select_option("199")
    assert window.page.locator("#layer-table tbody tr").count() == 64
    window.close()
