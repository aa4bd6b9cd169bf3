import json
import os
import random
from pathlib import Path

import pytest
from vthink.components.evaluation.asking import frame_order, other_videos
from vthink.components.evaluation.config import EvaluationConfig
from vthink.components.evaluation.measures import baseline_items, conclude
from vthink.components.evaluation.report_page import report_page

from .conftest import World, look, make_world
from .test_measures import rows_of

CHROMIUM = Path("/usr/bin/chromium")
CHROMIUM_ARGS = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-dev-shm-usage"]
LOADED_WIDTHS = (
    "all => Promise.all(all.map(x => { x.loading = 'eager'; return x.decode().then(() => x.naturalWidth) }))"
)
ATTACK = "<script>document.title='owned'</script><img src=x onerror=\"document.title='owned'\">"


def make_report(world: World, config: EvaluationConfig, broken: str | None = None) -> tuple[str, dict]:
    rng = random.Random(0)
    others = other_videos(world.samples, 0)
    rows = {}
    for model, skill in (("base", 0.0), ("sft", 0.4), ("grpo", 0.9)):
        for frames in ("ordered", "shuffled", "other_video"):
            texts = []
            for index, sample in enumerate(world.samples):
                clip = world.clips[index]
                if frames == "shuffled":
                    clip = clip.permuted(frame_order(sample.id, len(clip.frames), 0))
                elif frames == "other_video":
                    clip = world.clips[others.get(sample.media.uri, index)]
                guess = f"I think it gets darker {ATTACK} <answer>{rng.choice('AB')}</answer>"
                texts.append(look(sample, clip) if rng.random() < skill else guess)
            rows[model, frames] = rows_of(world, texts, model, frames)
    if broken is not None:
        for row in rows["grpo", "ordered"]:
            if row["id"] == broken:
                row |= {"error": f"OSError: {ATTACK}", "correct": False, "answer": None, "response": ""}
                row["metrics"] = dict.fromkeys(row["metrics"], 0.0)
    about = {name: {"uri": f"s3://b/{name}/", "fingerprint": name} for name in ("base", "sft", "grpo")}
    baselines = baseline_items(world.samples, [4.0] * len(world), (0.5, 2.5))
    result = conclude(rows, about, baselines, config)
    videos = len({sample.media.uri for sample in world.samples})
    result |= {"split": "test", "items": len(world), "videos": videos, "left_out": {}}
    return report_page(result, rows, world, range(len(world)), config), result


@pytest.fixture
def config() -> EvaluationConfig:
    return EvaluationConfig(bootstrap_resamples=200, report_items=16)


def test_the_report_says_what_was_measured(world, config):
    html, result = make_report(world, config, broken="v000-direction")
    for words in ("base", "sft", "grpo", "shuffled", "another video&#39;s", "mIoU", "mean training span", "direction"):
        assert words in html
    accuracy = result["models"]["grpo"]["ordered"]["accuracy"]
    assert f"<b>{100 * accuracy['value']:.1f} %</b>" in html
    assert "Failed items (1), counted as wrong" in html


def test_no_response_question_or_error_becomes_markup(world, config):
    html, _ = make_report(world, config, broken="v000-direction")
    assert "owned" in html
    assert "<img src=x" not in html
    assert html.count("<script>") == 1


def test_the_sample_of_items_holds_every_kind_with_every_outcome(world, config):
    html, _ = make_report(world, config, broken="v000-direction")
    assert html.count("data-item ") == config.report_items
    for value in ('data-outcome="right', 'data-outcome="wrong', 'data-outcome="failed', 'data-kind="how_bright"'):
        assert value in html


def test_an_item_without_frames_is_shown_with_the_reason(world, config):
    html_before, _ = make_report(world, config)
    world.clips[0] = ValueError("damaged")
    config = config.model_copy(update={"report_items": len(world)})
    rows_world = make_world()
    _, result = make_report(rows_world, config)
    rows = {}
    for model in result["models"]:
        for frames in ("ordered",):
            rows[model, frames] = rows_of(rows_world, ["<answer>A</answer>"] * len(world), model, frames)
    html = report_page(result, rows, world, range(len(world)), config)
    assert "no frames: ValueError: damaged" in html
    assert "no frames" not in html_before


def test_a_report_without_items_or_baselines_is_a_page(config):
    world = make_world(videos=1, images=0)
    cell = {("base", "ordered"): rows_of(world, [""] * len(world), "base")}
    result = conclude(cell, {"base": {"uri": "s3://b/base/", "fingerprint": "x"}}, {}, config)
    result |= {"split": "test", "items": 2, "videos": 1, "left_out": {"other_video": "there are fewer than two videos"}}
    html = report_page(result, cell, world, range(2), config.model_copy(update={"report_items": 0}))
    assert "there are fewer than two videos" in html
    assert "<article" not in html
    json.dumps(result, allow_nan=False)


@pytest.mark.browser
@pytest.mark.parametrize(("width", "scheme"), [(1200, "light"), (390, "dark")])
def test_in_a_browser_the_page_renders_filters_and_asks_for_nothing(world, config, tmp_path, width, scheme):
    if not CHROMIUM.exists():
        if os.environ.get("VTHINK_REQUIRE_ALL") == "1":
            pytest.fail(f"{CHROMIUM} is missing and VTHINK_REQUIRE_ALL=1 forbids skipping")
        pytest.skip(f"needs Chromium at {CHROMIUM}")
    from playwright.sync_api import sync_playwright

    html, _ = make_report(world, config, broken="v000-direction")
    path = tmp_path / "report.html"
    path.write_text(html)
    requests, errors = [], []
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=str(CHROMIUM), args=CHROMIUM_ARGS)
        page = browser.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme)
        page.on("request", lambda request: requests.append(request.url))
        page.on("console", lambda message: errors.append(message.text) if message.type == "error" else None)
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.goto(path.as_uri())
        assert page.title() == "Evaluation"
        shown = page.locator("[data-item]:visible")
        assert shown.count() == config.report_items
        for outcome in ("right", "wrong", "failed"):
            page.click(f"button[data-value={outcome}]")
            visible = page.eval_on_selector_all("[data-item]:not([hidden])", "all => all.map(x => x.dataset.outcome)")
            assert visible
            assert all(outcome in values.split() for values in visible)
            assert page.inner_text("[data-shown]") == str(len(visible))
        page.click("button[data-key=outcome][data-value='']")
        page.click("button[data-key=kind][data-value=direction]")
        page.click("button[data-key=outcome][data-value=right]")  # both filters hold at once
        both = page.eval_on_selector_all("[data-item]:not([hidden])", "all => all.map(x => x.dataset.kind)")
        assert set(both) == {"direction"}
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth"), "the page scrolls sideways"
        pictures = page.eval_on_selector_all("[data-item]:not([hidden]) > .strip img", LOADED_WIDTHS)
        assert pictures
        assert min(pictures) > 0
        if folder := os.environ.get("VTHINK_SCREENSHOTS"):
            page.click("button[data-key=outcome][data-value='']")
            page.screenshot(path=f"{folder}/report-{width}-{scheme}.png", full_page=True)
        assert page.title() == "Evaluation"
        browser.close()
    assert not errors
    assert [url for url in requests if not url.startswith("data:")] == [path.as_uri()]
