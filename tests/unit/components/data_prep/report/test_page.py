from __future__ import annotations

import os
import re
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
from vthink.components.common.context import RunContext
from vthink.components.common.errors import UserError
from vthink.components.common.rows import files, prepared
from vthink.components.common.rows.sample import Sample
from vthink.components.common.storage.manifest import Manifest
from vthink.components.common.storage.s3 import Storage
from vthink.components.common.tracking.client import registry_client
from vthink.components.common.tracking.config import TrackingConfig
from vthink.components.common.video.config import VideoConfig
from vthink.components.data_prep.config import DataPrepConfig
from vthink.components.data_prep.dataset.data_card import Histogram
from vthink.components.data_prep.merge import merge_data
from vthink.components.data_prep.plan import plan_data
from vthink.components.data_prep.prepare import prepare_data
from vthink.components.data_prep.report import page as page_module
from vthink.components.data_prep.report.page import (
    ITEMS,
    histogram_bars,
    longest_option,
    token_counter,
    visual_tokens,
    write_report,
)
from vthink.components.data_prep.shard import prepare_shard

from ..conftest import make_row, write_rows

CHROMIUM = Path("/usr/bin/chromium")
CHROMIUM_ARGS = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-dev-shm-usage"]
LOADED_WIDTHS = (
    "all => Promise.all(all.map(x => { x.loading = 'eager'; return x.decode().then(() => x.naturalWidth) }))"
)
ATTACK = "<script>document.title='owned'</script><img src=x onerror=\"document.title='owned'\">"
EVIDENCE = [{"start_s": 0.5, "end_s": 1.5, "caption": f"it moves {ATTACK}"}]
TRACE = (
    "<time>0.5-1.5 seconds</time><caption>it moves</caption><think>so B</think><think>right</think><answer>B</answer>"
)


def mixed_rows() -> list[dict | str]:
    """Rows of three splits, all with an attack somewhere, and some that cannot be used."""
    rows: list[dict | str] = []
    for number in range(12):
        split = ("train", "train", "validation", "test")[number % 4]
        rows.append(make_row(number, f"videos/{number}.mp4", split=split, evidence=EVIDENCE, reasoning=TRACE))
    rows.append(
        make_row(20, "videos/1.mp4", question=ATTACK, source=ATTACK, metadata={"kind": ATTACK, "curation": ATTACK})
    )
    rows.append(make_row(21, "videos/1.mp4", problem_type="free_form", options=[], answer=ATTACK))
    rows.append(make_row(22, "videos/0.mp4", split="test"))  # the video is in train: it leaves train
    rows.append(make_row(23, f"videos/{ATTACK}.mp4"))
    rows.append('{"id": "' + ATTACK.replace('"', "'") + '"}')
    return rows


@dataclass(frozen=True)
class Prepared:
    manifest: Manifest
    storage: Storage
    run: RunContext
    told: tuple[str, str, str]
    """The JSON texts that its tasks were told."""

    def page(self, folder: Path, items: int = ITEMS, count_tokens=None) -> str:
        return write_report(self.manifest, self.storage, folder, items, count_tokens)


@pytest.fixture(scope="module")
def prepare(s3, squares, empty_mlflow_database, tmp_path_factory):
    """Prepares rows about the videos of `squares`."""

    def prepare(rows: Sequence[dict | str]) -> Prepared:
        folder = tmp_path_factory.mktemp("prepared")
        (folder / "videos").symlink_to(squares / "videos")
        database = shutil.copy(empty_mlflow_database, folder / "mlflow.db")
        storage = s3.model_copy(update={"prefix": f"{folder.parent.name}-{folder.name}/"})
        tracking = TrackingConfig(uri=f"sqlite:///{database}")
        run = RunContext(run_id="report", storage=storage, tracking=tracking, work_dir=str(folder / "work"))
        source = str(write_rows(folder / "rows.jsonl", rows))
        config = DataPrepConfig(source=source, workers=1, max_quarantined=0.5, near_duplicate_difference=0)
        video = VideoConfig(num_frames=4, min_pixels=56 * 56, max_pixels=56 * 56)
        told = (run.to_json(), config.to_json(), video.to_json())
        return Prepared(Manifest.read(Storage(storage), prepare_data(*told)), Storage(storage), run, told)

    return prepare


@pytest.fixture(scope="module")
def mixed(prepare) -> Prepared:
    return prepare(mixed_rows())


@pytest.fixture(scope="module")
def page(mixed, tmp_path_factory) -> str:
    return mixed.page(tmp_path_factory.mktemp("page"))


def test_the_page_says_what_is_in_the_set_and_what_is_not(page):
    text = re.sub(r"<[^>]+>", " ", page)
    for words in ("rows read", "validation", "multiple_choice", "free_form", "right letter of 2", "64x64", "squares"):
        assert words in text
    for reason in ("missing media", "unreadable row", "split leak"):
        assert f"<h3>{reason} <span" in page
    assert re.search(r"rows left out because the same video is in another split</td><td class=\"num\">1<", page)
    assert page.count("data-item ") == 14  # 17 less 3 in quarantine
    assert page.count('class="track"') == 11  # with evidence
    assert "so B" in page
    assert "curation: " in page
    assert "estimated as 4 characters each" in page


def test_no_text_of_a_row_becomes_markup(page):
    assert "owned" in page
    assert "<img src=x" not in page
    assert page.count("<script>") == 1


def test_the_same_set_gives_the_same_page_and_its_media_files_are_not_fetched(mixed, page, tmp_path):
    assert mixed.page(tmp_path) == page
    fetched = {path.relative_to(tmp_path).parts[0] for path in tmp_path.rglob("*.parquet")}
    assert "rows" in fetched
    assert "media" not in fetched


def test_preparation_leaves_the_page_in_the_store_in_mlflow_and_with_its_caller(mixed, page, tmp_path):
    assert mixed.storage.read_bytes(mixed.manifest.files["report"]).decode() == page
    client = registry_client(mixed.run.tracking, mixed.run.storage)
    assert "data_report.html" in {artifact.path for artifact in client.list_artifacts(mixed.manifest.mlflow_run_id)}
    shards = [prepare_shard(*mixed.told, shard) for shard in plan_data(*mixed.told)]
    merge_data(*mixed.told, shards, str(tmp_path / "report.html"))  # finished long ago: the page is fetched
    assert (tmp_path / "report.html").read_text() == page


def test_a_video_that_cannot_be_read_again_is_said_beside_its_row(mixed, tmp_path):
    manifest, storage = mixed.manifest, mixed.storage
    copy = manifest.uri.rstrip("/") + "-damaged/"
    for item in storage.list(manifest.uri):
        name = item.uri.removeprefix(manifest.uri)
        data = b"\0" * item.size if name.startswith("media/") else storage.read_bytes(item.uri)
        storage.write_bytes(copy + name, data)
    damaged = manifest.model_copy(update={"uri": copy})
    assert replace(mixed, manifest=damaged).page(tmp_path).count("no frames: ") == 14


def test_a_set_of_an_older_vthink_is_refused_in_one_line(mixed, tmp_path):
    old = mixed.manifest.model_copy(update={"files": {"data": mixed.manifest.uri}})
    with pytest.raises(UserError, match=r"another version: 'quarantine'"):
        replace(mixed, manifest=old).page(tmp_path)


def test_the_page_and_its_work_do_not_grow_with_the_rows(prepare, tmp_path, monkeypatch):
    parsed = [0]
    parse_row = files.parse_row

    def counted(values, number):
        parsed[-1] += 1
        return parse_row(values, number)

    sizes = []
    monkeypatch.setattr(page_module, "SAMPLED_ROWS", 200)
    for count in (100, 500):
        made = prepare([make_row(n, f"videos/{n % 3}.mp4", question=f"Which way {n:05d}?") for n in range(count)])
        with monkeypatch.context() as patch:
            patch.setattr(prepared, "parse_row", counted)
            sizes.append(len(made.page(tmp_path / str(count), items=10)))
        parsed.append(0)
    assert parsed[0] >= 100
    assert 200 <= parsed[1] <= 220
    assert abs(sizes[1] - sizes[0]) < 0.2 * sizes[0]


def test_rows_to_look_at_come_from_every_split_source_type_and_kind(mixed, tmp_path):
    html = mixed.page(tmp_path, items=5)
    assert html.count("data-item ") == 5
    shown = re.findall(
        r'<article class="card" data-item data-split="(.*?)" data-kind="(.*?)" data-source="(.*?)"', html
    )
    assert len(set(shown)) == 5  # three splits of squares, the free-form question, and the one of another source


def choice(options, answer) -> Sample:
    return Sample.model_validate(make_row(0, "v.mp4", options=options, answer=answer))


def test_questions_whose_longest_option_is_right_are_pointed_out():
    given_away = [choice(["no", "a much longer one", "n"], "B")] * 40
    fair = [choice(["no", "a much longer one", "n"], "ABC"[n % 3]) for n in range(42)]
    ties = [choice(["one", "two"], "A")] * 40
    assert longest_option("train", given_away) == (
        "train: the longest option is right in 100 % of 40 sampled questions (by chance: 33 %).",
        "warn",
    )
    assert longest_option("train", fair)[1] == "plain"
    assert longest_option("train", ties)[1] == "plain"


def test_visual_tokens_follow_from_resolution_and_frames(video):
    resolutions = {"video": {"64x64": 3, "other": 9}, "image": {"64x64": 1}}
    # 64 × 64 becomes 56 × 56: 2 × 2 tokens for each pair of 4 frames, and for the image.
    assert visual_tokens(resolutions, video) == [(8.0, 3), (4.0, 1)]


def test_a_histogram_shows_the_bins_from_the_first_to_the_last_that_hold_something():
    html = histogram_bars(Histogram(edges=(0, 1, 2, 5), counts=[0, 3, 0, 1]), " s")
    assert re.findall(r"bar-label\">(.*?)<", html) == ["1 – 2 s", "2 – 5 s", "5 s or more"]
    assert "75 %" in html
    assert "none" in histogram_bars(Histogram.empty((0, 1)))


def test_tokens_are_counted_with_a_tokenizer(mixed, tmp_path):
    from tokenizers import Tokenizer, models, pre_tokenizers

    tokenizer = Tokenizer(models.WordLevel({"[UNK]": 0}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    count = token_counter(tmp_path / "tokenizer.json")
    assert count("three small words") == 3
    html = mixed.page(tmp_path / "report", 0, count)
    assert "data-item " not in html
    assert re.search(r"question and options</td><td class=\"num\">4<", html)
    (tmp_path / "bad.json").write_text("{}")
    with pytest.raises(UserError, match=r"bad\.json: not a tokenizer\.json"):
        token_counter(tmp_path / "bad.json")


@pytest.mark.browser
@pytest.mark.parametrize(("width", "scheme"), [(1200, "light"), (390, "dark")])
def test_in_a_browser_the_page_renders_filters_and_asks_for_nothing(page, tmp_path, width, scheme):
    if not CHROMIUM.exists():
        if os.environ.get("VTHINK_REQUIRE_ALL") == "1":
            pytest.fail(f"{CHROMIUM} is missing and VTHINK_REQUIRE_ALL=1 forbids skipping")
        pytest.skip(f"needs Chromium at {CHROMIUM}")
    from playwright.sync_api import sync_playwright

    path = tmp_path / "page.html"
    path.write_text(page)
    requests, errors = [], []
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=str(CHROMIUM), args=CHROMIUM_ARGS)
        tab = browser.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme)
        tab.on("request", lambda request: requests.append(request.url))
        tab.on("console", lambda message: errors.append(message.text) if message.type == "error" else None)
        tab.on("pageerror", lambda error: errors.append(str(error)))
        tab.goto(path.as_uri())
        assert tab.title() == "Data"
        assert tab.locator("[data-item]:visible").count() == 14
        tab.click("button[data-key=split]:has-text('test')")
        tab.click("button[data-key=evidence][data-value=yes]")
        assert 0 < tab.locator("[data-item]:visible").count() < 14
        assert tab.evaluate("document.documentElement.scrollWidth <= innerWidth"), "the page scrolls sideways"
        pictures = tab.eval_on_selector_all("[data-item] > .strip img", LOADED_WIDTHS)
        assert len(pictures) == 14 * 4
        assert min(pictures) > 0
        assert tab.title() == "Data"
        browser.close()
    assert not errors
    assert [url for url in requests if not url.startswith("data:")] == [path.as_uri()]
