"""MLflow's own pages on a finished run, in a real browser: everything that was made is there and linked."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from vthink.components.common.launch.process import free_port
from vthink.components.common.tracking.client import registry_client
from vthink.components.common.tracking.config import TrackingConfig
from vthink.components.common.tracking.pipeline import model_version_url, run_url

pytestmark = [pytest.mark.browser, pytest.mark.slow, pytest.mark.timeout(900)]

CHROMIUM = os.environ.get("CHROMIUM", "/usr/bin/chromium")
WIDTHS = """pictures => Promise.all(pictures.map(async picture => {
    picture.loading = "eager";
    await picture.decode();
    return picture.naturalWidth;
}))"""
STAGES = ("prepare", "sft", "grpo", "evaluate", "gate", "register", "deploy")


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    if not Path(CHROMIUM).exists():
        pytest.skip(f"no Chromium at {CHROMIUM} (set CHROMIUM)")
    with sync_api.sync_playwright() as playwright:
        arguments = ["--no-sandbox", "--disable-background-networking", "--no-proxy-server"]
        chromium = playwright.chromium.launch(executable_path=CHROMIUM, args=arguments)
        yield chromium
        chromium.close()


@pytest.fixture(scope="module")
def link(browser: Any, finished: Any) -> Iterator[str]:
    """What ``vthink ui`` says to open."""
    process = finished.start("ui", "--port", str(free_port()))
    lines = []
    for line in process.stdout:
        lines.append(line)
        if found := re.search(r"http://\S+", line):
            yield found[0]
            break
    else:
        pytest.fail("".join(lines))
    process.terminate()
    process.communicate(timeout=60)


@pytest.fixture
def page(browser: Any, tmp_path: Path) -> Iterator[Any]:
    """A page that reaches this machine only; what it and the tabs opened from it showed last is kept as pictures."""
    context = browser.new_context(viewport={"width": 1400, "height": 1000})
    context.route(
        lambda url: not url.startswith(("http://127.0.0.1:", "data:", "blob:")),
        lambda route: route.abort(),
    )
    context.set_default_timeout(30_000)
    tab = context.new_page()
    yield tab
    for number, shown in enumerate(context.pages):
        shown.screenshot(path=tmp_path / f"page-{number}.png")
    context.close()


class Recorded:
    """Links to what a run recorded, found from its summary alone."""

    def __init__(self, summary: dict[str, Any], link: str) -> None:
        self.runs: dict[str, str] = summary["mlflow"]["run_ids"]
        self.parent: str = summary["mlflow"]["parent_run_id"]
        self.name: str = summary["run_id"]
        self.model: dict[str, Any] = summary["model"]
        self.client = registry_client(TrackingConfig(uri=summary["mlflow"]["uri"]))
        self._base = link.partition("/#/")[0]
        self._experiment = link.partition("/experiments/")[2].partition("/")[0]

    def run(self, run_id: str) -> str:
        return run_url(self._base, self._experiment, run_id)

    @property
    def model_version(self) -> str:
        return model_version_url(self._base, self.model["name"], self.model["version"])


@pytest.fixture
def recorded(finished: Any, link: str) -> Recorded:
    return Recorded(finished.summary, link)


def description(page: Any) -> Any:
    """The lines of the description of the pipeline's run that is shown, unfolded."""
    page.get_by_text("Show more", exact=True).click()
    lines = page.locator("li")
    lines.filter(has_text="stages:").wait_for()
    return lines


def child(page: Any, run_id: str) -> Any:
    """The link that MLflow itself shows to a child run (those of a description open another tab)."""
    return page.locator(f"a[href*='/runs/{run_id}']:not([target])")


def follow(page: Any, name: str) -> Any:
    """Click a link of the description; MLflow opens it in a tab of its own."""
    with page.context.expect_page() as opened:
        description(page).get_by_role("link", name=name).click()
    return opened.value


def test_the_link_of_the_command_leads_to_the_pipeline_s_run_and_on_to_its_stages(
    page: Any, link: str, recorded: Recorded
) -> None:
    page.goto(link)
    page.get_by_role("link", name=recorded.name).click()
    page.get_by_role("heading", name=recorded.name).wait_for()
    assert recorded.parent in page.url
    stages = description(page).filter(has_text="stages:")
    for stage in STAGES:
        listed = stages.get_by_role("link", name=stage, exact=True)
        assert listed.get_attribute("href").endswith(f"/runs/{recorded.runs[stage]}")
        child(page, recorded.runs[stage]).wait_for()
    child(page, recorded.runs["sft"]).click()
    page.get_by_role("heading", name="sft", exact=True).wait_for()
    page.get_by_text("sft/loss", exact=True).first.wait_for()
    page.get_by_role("link", name=recorded.name).first.click()  # the parent run of a stage
    page.get_by_role("heading", name=recorded.name).wait_for()


def test_the_curves_of_sft_and_grpo_are_in_one_chart(page: Any, recorded: Recorded) -> None:
    page.goto(recorded.run(recorded.parent))
    page = follow(page, "validation accuracy of sft and grpo")
    for stage in ("sft", "grpo"):
        page.get_by_text(f"{stage} (validation/accuracy)").wait_for()
        history = recorded.client.get_metric_history(recorded.runs[stage], "validation/accuracy")
        assert len({metric.step for metric in history}) > 1
        last = max(history, key=lambda metric: metric.step)
        page.get_by_role("row").filter(has_text=stage).get_by_text(f"(step={last.step})").first.wait_for()
    page.get_by_role("link", name="Comparing 2 Runs from 1 Experiment").click()
    for run_id in (recorded.runs["sft"], recorded.runs["grpo"]):
        page.get_by_role("link", name=run_id).wait_for()
    page.get_by_text("max_steps", exact=True).first.wait_for()


def test_the_rollouts_show_frames_and_completions_as_a_page_and_as_a_table(page: Any, recorded: Recorded) -> None:
    page.goto(recorded.run(recorded.parent))
    page = follow(page, "rollouts/step-")
    step = page.url.rpartition("/")[2].removesuffix(".html")
    shown = page.frame_locator("iframe")
    shown.get_by_text("Ordered frames").first.wait_for()
    shown.get_by_text("Shuffled frames").first.wait_for()
    assert shown.get_by_text("advantage").count() >= 4
    pictures = shown.locator("img").evaluate_all(WIDTHS)
    assert len(pictures) >= 16
    assert min(pictures) > 0
    read = shown.locator("body").inner_text()

    page.get_by_text(f"{step}.json", exact=True).click()
    for heading in ("question", "completion", "advantage"):
        page.get_by_role("columnheader", name=heading).wait_for()
    cells = [cell.inner_text() for cell in page.get_by_role("cell", name="Which").all()]
    assert cells
    assert all(question in read for question in cells)
    # Every step that was written is there, not the last alone.
    steps = {name.split(".")[0] for name in page.get_by_text(re.compile(r"^step-\d+\.json$")).all_inner_texts()}
    assert len(steps) > 1


def test_the_evaluation_report_opens(page: Any, recorded: Recorded) -> None:
    page.goto(recorded.run(recorded.parent))
    page = follow(page, "evaluation report")
    assert recorded.runs["evaluate"] in page.url
    shown = page.frame_locator("iframe")
    shown.get_by_role("heading").first.wait_for()
    read = shown.locator("body").inner_text()
    for words in ("base", "sft", "grpo", "shuffled"):
        assert words in read.lower()
    pictures = shown.locator("img").evaluate_all(WIDTHS)
    assert pictures
    assert min(pictures) > 0


def test_the_model_version_is_linked_with_its_aliases_and_leads_back_to_its_run(page: Any, recorded: Recorded) -> None:
    name, version = recorded.model["name"], recorded.model["version"]
    page.goto(recorded.run(recorded.parent))
    page = follow(page, f"{name} version {version}")
    page.get_by_text(f"Version {version}", exact=True).first.wait_for()
    assert page.url == recorded.model_version
    for alias in ("candidate", "champion"):
        page.get_by_text(alias, exact=False).first.wait_for()
    page.get_by_role("link", name="grpo", exact=True).click()
    page.get_by_role("heading", name="grpo", exact=True).wait_for()
    assert recorded.runs["grpo"] in page.url
    page.get_by_role("link", name=recorded.name).first.wait_for()


def test_a_link_that_leads_nowhere_is_noticed(page: Any, recorded: Recorded) -> None:
    """The control: MLflow's pages say so when a run is not there."""
    page.goto(recorded.run("0" * 32))
    page.get_by_text("not found", exact=False).first.wait_for()
    assert page.locator("li").filter(has_text="stages:").count() == 0
