"""The pages in headless Chromium."""

import os
import random
import string
import time
from dataclasses import replace
from pathlib import Path

import pytest
from vthink.components.evaluation.report.pages import benchmark_page
from vthink.components.evaluation.results import BenchmarkResult

from ..small_world import two_models
from .made_report import data_of, make_report

CHROMIUM = Path("/usr/bin/chromium")
CHROMIUM_ARGS = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-dev-shm-usage"]


class Opened:
    """A page in headless Chromium that records what it asks for and complains about."""

    def __init__(self, path: Path, width: int = 1200, scheme: str = "light") -> None:
        from playwright.sync_api import sync_playwright

        self.requests, self.errors = [], []
        self._playwright = sync_playwright().start()
        self._browser = self._playwright.chromium.launch(executable_path=str(CHROMIUM), args=CHROMIUM_ARGS)
        page = self._browser.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme)
        page.on("request", lambda request: self.requests.append(request.url))
        page.on("console", lambda message: self.errors.append(message.text) if message.type == "error" else None)
        page.on("pageerror", lambda error: self.errors.append(str(error)))
        self.page, self.path = page, path

    def __enter__(self):
        self.page.goto(self.path.as_uri())
        self.page.eval_on_selector_all("details.fold", "all => all.forEach(x => { x.open = true; })")
        return self.page

    def __exit__(self, kind, *_):
        self._browser.close()
        self._playwright.stop()
        if kind is None:
            assert not self.errors
            assert [url for url in self.requests if not url.startswith("data:")] == [self.path.as_uri()]


def need_chromium() -> None:
    if not CHROMIUM.exists():
        if os.environ.get("VTHINK_REQUIRE_ALL") == "1":
            pytest.fail(f"{CHROMIUM} is missing and VTHINK_REQUIRE_ALL=1 forbids skipping")
        pytest.skip(f"needs Chromium at {CHROMIUM}")


def sorted_by(page, table: str, heading: str) -> list[str]:
    """Click a heading; what its column says then."""
    head = page.locator(f"{table} th", has_text=heading).first
    head.locator("button").click()
    place = head.evaluate("x => x.cellIndex")
    return page.eval_on_selector_all(f"{table} tbody tr", f"all => all.map(x => x.cells[{place}].dataset.sort || '')")


@pytest.mark.browser
@pytest.mark.parametrize(("width", "scheme"), [(1200, "light"), (390, "dark")])
def test_in_a_browser_items_are_filtered_opened_played_and_nothing_is_asked_for(world, config, tmp_path, width, scheme):
    need_chromium()
    html, _ = make_report(world, config, broken="v000-direction")
    path = tmp_path / "report.html"
    path.write_text(html)
    with Opened(path, width, scheme) as page:
        assert page.title() == "Evaluation"
        items = data_of(html)["items"]
        assert page.inner_text(".browser .count") == f"{len(items)} of {len(items)} items"
        for outcome in ("right", "wrong", "failed"):
            page.select_option("[data-choose=outcome]", outcome)
            expected = [item["id"] for item in items if item["answers"]["grpo"]["ordered"]["o"] == outcome]
            listed = page.eval_on_selector_all("[data-entry]", "all => all.map(x => x.dataset.entry)")
            assert listed == expected[:10]
            assert page.inner_text(".browser .count") == f"{len(expected)} of {len(items)} items"
        page.select_option("[data-choose=outcome]", "right")
        page.select_option("[data-choose=kind]", "direction")  # both hold at once
        both = [i["id"] for i in items if i["answers"]["grpo"]["ordered"]["o"] == "right" and i["kind"] == "direction"]
        walked = []
        while True:  # from the first to the last
            walked.append(page.get_attribute("[data-open]", "data-open"))
            forward = page.locator("[data-step='1']")
            if forward.is_disabled():
                break
            forward.click()
        assert walked == both
        page.select_option("[data-choose=outcome]", "")
        page.select_option("[data-choose=kind]", "")
        pictured = next(
            i for i in items if "media" in i and i["kind"] == "direction" and "s" in i["answers"]["grpo"]["ordered"]
        )
        page.fill(".browser input[type=search]", pictured["id"])
        assert page.get_attribute("[data-open]", "data-open") == pictured["id"]
        assert "Does it get brighter or darker?" in page.inner_text(".detail .question")
        first = page.get_attribute(".stage > img", "src")
        page.click("[data-play]")
        page.wait_for_function("src => document.querySelector('.stage > img').src !== src", arg=first)
        page.click("[data-play]")
        page.click(".detail .track button.good")  # the true span begins at 1.0 s
        assert page.inner_text(".stage output") == "1.0 s"
        shown = (
            "all => Promise.all(all.map(x => { x.loading = 'eager'; return x.decode().then(() => x.naturalWidth) }))"
        )
        assert min(page.eval_on_selector_all(".detail .strip img", shown)) > 0
        assert page.locator(".detail pre.response .tag").count() > 0
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth"), "the page scrolls sideways"
        page.fill(".browser input[type=search]", "")
        page.locator("button[data-show]").first.click() if page.locator("button[data-show]").count() else None
        if folder := os.environ.get("VTHINK_SCREENSHOTS"):
            page.screenshot(path=f"{folder}/report-{width}-{scheme}.png", full_page=True)
        assert page.title() == "Evaluation"  # no answer has become a script


@pytest.mark.browser
def test_in_a_browser_benchmark_tables_are_sorted_and_filtered_by_clicks(tmp_path, config):
    need_chromium()
    results = [*two_models().values(), *two_models(benchmark="videomme").values()]
    path = tmp_path / "report.html"
    path.write_text(benchmark_page(results, config))
    with Opened(path, 390) as page:
        table = "section:has(h2:text-is('Results')) table"
        for _ in range(2):
            column = [float(x) for x in sorted_by(page, table, "Video-Holmes") if x]
            assert column in (sorted(column), sorted(column, reverse=True))
            assert len(column) == 6
        assert column == sorted(column)  # the second click turns it round
        assert [float(x) for x in sorted_by(page, table, "Video-Holmes") if x] == sorted(column, reverse=True)
        names = sorted_by(page, table, "model")
        assert names == page.evaluate("names => names.toSorted((a, b) => b.localeCompare(a))", names)
        assert names != sorted_by(page, table, "model")
        section = "section:has(h2:text-is('Results'))"
        page.click(f"{section} button[data-value=published]")
        visible = page.eval_on_selector_all(
            f"{section} tbody tr:not([hidden])", "all => all.map(x => x.dataset.source)"
        )
        assert set(visible) == {"published"}
        assert page.inner_text(f"{section} [data-shown]") == str(len(visible))
        section = "section:has(h2:text-is('What makes a difference'))"
        page.click(f"{section} button[data-value=videomme]")
        page.click(f"{section} button[data-value=kind]")
        rows = page.eval_on_selector_all(
            f"{section} tbody tr:not([hidden])", "all => all.map(x => x.dataset.benchmark + x.dataset.questions)"
        )
        assert rows
        assert set(rows) == {"videommekind"}
        section = "section:has(h2:text-is('Worst regressions'))"
        row = page.locator(f"{section} tbody tr").first
        kind, name, _, lost, gained = row.locator("td").all_inner_texts()[:5]
        assert int(lost) > int(gained)
        row.locator("button").click()  # shows the items that were lost
        assert page.inner_text(".browser .count") == f"{lost} of 120 items"
        assert page.input_value("[data-choose=change]") == "lost"
        opened = page.get_attribute("[data-open] [data-video]", "data-video")
        assert opened.endswith(f"/{name}") if kind == "video" else page.input_value("[data-choose=kind]") == name
        page.click("[data-open] [data-video]")  # all questions about the same video, then all videos again
        page.select_option("[data-choose=change]", "")
        page.select_option("[data-choose=set]", "")
        assert page.inner_text(".browser .count") == "4 of 120 items"
        page.click(".controls button:has-text('✕')")
        page.select_option("[data-choose=set]", "videomme")
        assert page.inner_text(".browser .count") == "60 of 120 items"
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth"), "the page scrolls sideways"
        if folder := os.environ.get("VTHINK_SCREENSHOTS"):
            page.screenshot(path=f"{folder}/benchmarks.png", full_page=True)


@pytest.mark.browser
def test_five_thousand_items_open_quickly_and_are_shown_page_by_page(tmp_path, config):
    need_chromium()
    rng = random.Random(0)
    words = ["".join(rng.choices(string.ascii_lowercase, k=rng.randrange(2, 10))) for _ in range(5000)]

    def thinking(one: BenchmarkResult) -> BenchmarkResult:
        """With responses as long as reasoning is, which compress no better than text does."""
        ordered = [
            item.model_copy(update={"response": " ".join(rng.choices(words, k=200))}) for item in one.items["ordered"]
        ]
        return replace(one, items={**one.items, "ordered": ordered})

    results = [thinking(one) for one in two_models(videos=250, copies=10).values()]
    path = tmp_path / "report.html"
    path.write_text(benchmark_page(results, config))
    assert path.stat().st_size < 3 * 2**20
    started = time.monotonic()
    with Opened(path) as page:
        assert page.inner_text(".browser .count") == "5,000 of 5,000 items"
        assert time.monotonic() - started < 20  # with the start of Chromium, on a busy machine
        assert page.locator("[data-entry]").count() == 10
        assert page.evaluate("document.querySelectorAll('*').length") < 20_000
        spent = page.evaluate(
            """() => { const start = performance.now();
            const box = document.querySelector('.browser input[type=search]');
            for (const words of ['v1', 'v12', 'v123', '9v123']) {
              box.value = words; box.dispatchEvent(new Event('input')); }
            document.querySelector('[data-turn="1"]').click();
            return performance.now() - start; }"""
        )
        assert spent < 4000
        assert page.inner_text(".browser .count") == "2 of 5,000 items"


@pytest.mark.browser
@pytest.mark.parametrize("width", [1280, 390])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_opening_fits_wide_and_narrow_screens_in_light_and_dark(world, config, tmp_path, width, scheme):
    need_chromium()
    path = tmp_path / "report.html"
    path.write_text(make_report(world, config)[0])
    with Opened(path, width, scheme) as page:
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth"), "the page scrolls sideways"
        chart = page.locator("figure.dots > svg").bounding_box()
        ends = page.eval_on_selector_all(
            "figure.dots circle, figure.dots text",
            "all => all.map(x => x.getBoundingClientRect()).flatMap(box => [box.left, box.right])",
        )
        assert chart["y"] < 900, "the chart is not on the first screen"
        assert min(ends) >= 0
        assert max(ends) <= width
        ink, paper = (
            page.evaluate(f"getComputedStyle(document.querySelector('{where}')).{what}")
            for where, what in (("figure.dots text", "fill"), ("body", "backgroundColor"))
        )
        assert ink != paper
        page.locator(".examples button[data-show]").first.click()
        assert page.inner_text(".browser .count").startswith("1 of ")
        if folder := os.environ.get("VTHINK_SCREENSHOTS"):
            page.evaluate("scrollTo(0, 0)")
            page.screenshot(path=f"{folder}/opening-{width}-{scheme}.png")
