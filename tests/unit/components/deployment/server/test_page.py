"""The page, driven by a real browser: choose or drop a video, ask, watch the answer stream in, click a segment."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from vthink.components.deployment.config import ServerConfig
from vthink.tests.fakes.model_server import Running, ScriptedModel, running, write_video

pytestmark = pytest.mark.browser

ANSWER = (
    "<time>00:00-00:02</time><caption>a red square enters at the left</caption><think>It has not moved far yet.</think>"
    "<time>00:02-00:06</time><caption>the square crosses the picture</caption><think>Every frame is further right."
    "</think> It started at the left and ended at the right, so it moved right. <answer>B</answer>"
)
CHROMIUM = os.environ.get("CHROMIUM", "/usr/bin/chromium")


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    missing = None
    try:
        from playwright.sync_api import sync_playwright
    except ImportError:
        missing = "playwright is not installed"
    if not Path(CHROMIUM).exists():
        missing = f"no Chromium at {CHROMIUM} (set CHROMIUM)"
    if missing is not None:
        if os.environ.get("VTHINK_REQUIRE_ALL") == "1":
            pytest.fail(missing)
        pytest.skip(missing)
    with sync_playwright() as playwright:
        # Neither Chromium's own errands nor a proxy: the page talks to its server and to nobody else.
        arguments = ["--no-sandbox", "--disable-background-networking", "--no-proxy-server"]
        chromium = playwright.chromium.launch(executable_path=CHROMIUM, args=arguments)
        yield chromium
        chromium.close()


@pytest.fixture
def page(browser: Any) -> Iterator[Any]:
    """A page of which every error, and every request to another host, fails the test."""
    context = browser.new_context(viewport={"width": 900, "height": 1200})
    tab = context.new_page()
    problems: list[str] = []
    tab.on("console", lambda message: problems.append(message.text) if message.type == "error" else None)
    tab.on("pageerror", lambda error: problems.append(str(error)))
    hosts: set[str] = set()
    tab.on("request", lambda request: hosts.add(request.url.split("/")[2] if "://" in request.url[:9] else ""))
    tab.problems = problems
    yield tab
    context.close()
    allowed = {host for host in hosts if host.startswith("127.0.0.1:") or not host}
    assert hosts == allowed
    assert problems == []


@pytest.fixture(scope="module")
def film(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_video(tmp_path_factory.mktemp("film") / "a moving square.mp4", seconds=6, size=320)


def test_ask_and_see_the_answer_stream_in_with_its_segments(
    page: Any, start: Callable[..., Running], film: Path, tmp_path: Path
) -> None:
    server = start(ScriptedModel(text=ANSWER, delay_s=0.05))
    page.goto(server.url)
    page.get_by_text("vthink", exact=True).wait_for()
    assert page.locator("#ask").is_disabled()
    page.set_input_files("#picker", film)
    page.locator("#timeline").wait_for()  # Chromium has read the video's length
    page.fill("#question", "Which way does the square move?")
    page.get_by_text("Answer options").click()
    page.fill("#options", "left\nright\n")
    page.click("#ask")
    page.locator(".live .tag").first.wait_for()
    partial = page.locator(".live").inner_text()
    assert partial
    assert partial != ANSWER
    page.locator(".answer").wait_for()
    assert page.locator(".answer").inner_text() == "B · right"
    assert "moved right" in page.locator(".reasoning").inner_text()
    assert server.model.questions[-1].options == ("left", "right")
    assert server.model.questions[-1].text == "Which way does the square move?"

    bars = page.locator("#track button")
    assert bars.count() == 2
    track = page.locator("#track").bounding_box()
    second = bars.nth(1).bounding_box()
    assert (second["x"] - track["x"]) / track["width"] == pytest.approx(2 / 6, abs=0.02)
    assert second["width"] / track["width"] == pytest.approx(4 / 6, abs=0.02)
    assert page.locator("#frames i").count() == 4

    bars.nth(1).click()
    page.wait_for_function("document.querySelector('video').currentTime >= 1.9")
    page.wait_for_function("!document.querySelector('video').paused")  # it plays
    page.locator(".segments button.now").wait_for()
    assert "crosses the picture" in page.locator(".segments button.now").inner_text()
    page.locator(".segments button").first.click()
    page.wait_for_function("document.querySelector('video').currentTime < 1.5")
    page.screenshot(path=tmp_path / "answer.png", full_page=True)


def test_dropped_file_is_taken(page: Any, server: Running, film: Path) -> None:
    page.goto(server.url)
    data = page.evaluate_handle(
        """async (bytes) => {
            const transfer = new DataTransfer();
            transfer.items.add(new File([new Uint8Array(bytes)], "dropped.mp4", {type: "video/mp4"}));
            return transfer;
        }""",
        list(film.read_bytes()),
    )
    page.dispatch_event("body", "drop", {"dataTransfer": data})
    page.get_by_text("dropped.mp4").wait_for()
    page.locator("#timeline").wait_for()
    page.click("#ask")
    page.locator(".answer").wait_for()
    assert page.locator(".answer").inner_text() == "B"


def test_markup_of_a_model_is_shown_as_text(page: Any, start: Callable[..., Running], film: Path) -> None:
    evil = (
        "<time>00:00-00:01</time><caption><img src=x onerror=alert(1)></caption>"
        "<think><script>alert(2)</script></think>"
        "<b>bold</b> <answer><svg onload=alert(3)></answer>"
    )
    server = start(ScriptedModel(text=evil))
    page.on("dialog", lambda dialog: page.problems.append(f"dialog: {dialog.message}"))
    page.goto(server.url)
    page.set_input_files("#picker", film)
    page.locator("#timeline").wait_for()
    page.click("#ask")
    page.locator(".answer").wait_for()
    assert page.locator(".answer").inner_text() == "<svg onload=alert(3)>"
    assert "<img src=x" in page.locator(".segments").inner_text()
    assert page.locator("article img, article script, article svg, article b").count() == 0


def test_refusal_is_shown_in_the_servers_words(page: Any, server: Running, tmp_path: Path) -> None:
    broken = tmp_path / "broken.mp4"
    broken.write_bytes(b"not a video at all " * 50)
    page.goto(server.url)
    page.set_input_files("#picker", broken)
    page.get_by_text("cannot show the file").wait_for()
    page.click("#ask")
    page.get_by_role("alert").wait_for()
    assert "The video cannot be read" in page.get_by_role("alert").inner_text()
    page.problems[:] = [problem for problem in page.problems if "400" not in problem]


def test_answer_can_be_stopped(page: Any, start: Callable[..., Running], film: Path) -> None:
    model = ScriptedModel(text="word " * 300, delay_s=0.05)
    server = start(model)
    page.goto(server.url)
    page.set_input_files("#picker", film)
    page.locator("#timeline").wait_for()
    page.click("#ask")
    page.get_by_text("word word").wait_for()
    page.get_by_role("button", name="Stop").click()
    page.get_by_role("button", name="Ask", exact=True).wait_for()
    page.wait_for_timeout(500)
    assert model.stopped_early == 1
    assert "word word" in page.locator(".live").inner_text()  # what was written stays
    assert page.get_by_text("Stopped").first.is_visible()


def test_answers_stay_as_a_conversation_of_five_questions_on_two_clips(
    page: Any, start: Callable[..., Running], film: Path, tmp_path: Path
) -> None:
    server = start(ScriptedModel(text=ANSWER))
    page.set_viewport_size({"width": 1280, "height": 800})
    page.goto(server.url)
    page.set_input_files("#picker", film)
    page.locator("#timeline").wait_for()
    page.focus("#question")  # with the keyboard alone from here
    for number in range(3):
        page.keyboard.type(f"Question {number}?")
        page.keyboard.press("Enter")
        page.locator(".answer").nth(number).wait_for()
        assert page.locator("article").nth(number).locator("h3").inner_text() == f"Question {number}?"
        assert page.locator(".answer").nth(number).evaluate("e => e.getBoundingClientRect().top < innerHeight")
        if number == 1:
            page.locator("#follow").focus()
            page.keyboard.press("Space")
            page.focus("#question")
    assert [len(question.turns) for question in server.model.questions] == [1, 1, 5]
    assert server.model.questions[-1].turns[1].text == ANSWER
    assert page.locator("#track button").count() == 2
    page.locator("article").first.locator(".segments button").first.focus()
    page.keyboard.press("Enter")
    page.locator("article.shown h3", has_text="Question 0?").wait_for()
    assert page.locator("#status").inner_text() == "Answer: B"
    assert page.locator("[aria-live]").count() == 0  # status and alert speak, the stream does not
    other = write_video(tmp_path / "other.mp4", seconds=2)
    page.set_input_files("#picker", other)
    page.locator("#timeline").wait_for()
    assert page.locator("article").count() == 0
    for number in range(2):
        page.fill("#question", "And here?")
        page.keyboard.press("Enter")
        page.locator(".answer").nth(number).wait_for()
    assert [len(question.turns) for question in server.model.questions[3:]] == [1, 1]
    assert len(set(server.model.clip_keys)) == 2


def test_a_question_is_copied_as_a_program_and_the_conversation_saved_as_a_page(
    page: Any, start: Callable[..., Running], film: Path, tmp_path: Path
) -> None:
    server = start(ScriptedModel(text=ANSWER))
    page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    page.goto(server.url)
    page.set_input_files("#picker", film)
    page.locator("#timeline").wait_for()
    page.fill("#question", 'Is it 100 % "right", or isn\'t it?\\')
    page.get_by_text("Answer options").click()
    page.fill("#options", "left\nright\n")
    page.click("#ask")
    page.locator(".answer").wait_for()

    def copied(name: str) -> str:
        page.get_by_role("button", name=name).click()
        page.get_by_role("button", name="Copied").first.wait_for()
        return str(page.evaluate("navigator.clipboard.readText()"))

    for name, command in (("Copy as curl", ["bash", "-c"]), ("Copy as Python", [sys.executable, "-c"])):
        done = subprocess.run([*command, copied(name)], cwd=film.parent, capture_output=True, text=True, check=True)
        assert "crosses the picture" in done.stdout
        assert server.model.questions[-1].text == 'Is it 100 % "right", or isn\'t it?\\'
        assert server.model.questions[-1].options == ("left", "right")
    assert len({key[1] for key in server.model.clip_keys}) == 1  # type: ignore[index]  # they sent the same clip

    with page.expect_download() as download:
        page.click("#save")
    assert download.value.suggested_filename == "a moving square.html"
    saved = tmp_path / "saved.html"
    download.value.save_as(saved)
    page.goto(saved.as_uri())
    assert page.get_by_role("heading", level=2).inner_text() == 'Is it 100 % "right", or isn\'t it?\\'
    page.get_by_text("Answer: B · right").wait_for()
    page.get_by_role("button", name="crosses the picture").click()
    page.wait_for_function("document.querySelector('video').currentTime >= 1.9")


@pytest.mark.parametrize("colours", ["light", "dark"])
def test_no_barrier_that_a_checker_finds(browser: Any, server: Running, film: Path, colours: str) -> None:
    """axe-core's rules, on the empty page and with an answer; and a picture without a text is found (the control)."""
    from axe_playwright_python.sync_playwright import Axe

    context = browser.new_context(viewport={"width": 390, "height": 844}, color_scheme=colours)
    tab = context.new_page()

    def barriers() -> list[str]:
        return [violation["id"] for violation in Axe().run(tab).response["violations"]]

    tab.goto(server.url)
    tab.get_by_text("vthink", exact=True).wait_for()
    assert barriers() == []
    tab.set_input_files("#picker", film)
    tab.locator("#timeline").wait_for()
    tab.click("#ask")
    tab.locator(".answer").wait_for()
    assert barriers() == []
    tab.evaluate("document.querySelector('main').append(document.createElement('img'))")
    assert barriers() == ["image-alt"]
    context.close()


def test_a_part_of_the_clip_is_chosen_by_dragging(page: Any, start: Callable[..., Running], film: Path) -> None:
    server = start(ScriptedModel(text="<answer>B</answer>"))
    page.goto(server.url)
    page.set_input_files("#picker", film)
    page.locator("#timeline").wait_for()
    box = page.locator("#track").bounding_box()
    page.mouse.move(box["x"] + box["width"] / 3, box["y"] + 5)
    page.mouse.down()
    page.mouse.move(box["x"] + box["width"] * 2 / 3, box["y"] + 5, steps=4)
    page.mouse.up()
    page.locator("#whole").wait_for()
    page.click("#ask")
    page.locator(".answer").wait_for()
    question = server.model.questions[-1]
    assert (question.start_s, question.end_s) == (pytest.approx(2, abs=0.2), pytest.approx(4, abs=0.2))
    page.click("#whole")
    page.click("#ask")
    page.locator(".answer").nth(1).wait_for()
    assert server.model.questions[-1].start_s is None


def test_a_key_is_asked_for_and_sent(page: Any, film: Path) -> None:
    with running(ScriptedModel(), ServerConfig(decoders=1), api_key="s3cret") as server:
        page.goto(server.url)
        page.get_by_text("locked").wait_for()
        page.fill("#key", "s3cret")
        page.keyboard.press("Tab")
        page.get_by_text("vthink", exact=True).wait_for()
        page.set_input_files("#picker", film)
        page.locator("#timeline").wait_for()
        page.click("#ask")
        page.locator(".answer").wait_for()
    page.problems[:] = [problem for problem in page.problems if "401" not in problem]


def test_picture_has_no_timeline(page: Any, server: Running, tmp_path: Path) -> None:
    from PIL import Image

    picture = tmp_path / "red.png"
    Image.new("RGB", (320, 240), "red").save(picture)
    page.goto(server.url)
    page.set_input_files("#picker", picture)
    page.locator("#viewer img").wait_for()
    page.click("#ask")
    page.locator(".answer").wait_for()
    assert page.locator("#timeline").is_hidden()
    assert server.model.questions[-1].media_kind == "image"


def test_phone_needs_no_sideways_scrolling(browser: Any, server: Running, film: Path) -> None:
    context = browser.new_context(viewport={"width": 360, "height": 740}, color_scheme="dark")
    tab = context.new_page()
    tab.goto(server.url)
    tab.set_input_files("#picker", film)
    tab.locator("#timeline").wait_for()
    tab.click("#ask")
    tab.locator(".answer").wait_for()
    assert tab.evaluate("document.documentElement.scrollWidth") <= 360
    context.close()
