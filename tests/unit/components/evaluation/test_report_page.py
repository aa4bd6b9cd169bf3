import json
import math
import os
import random
import re
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
from vthink.components.common.errors import UserError
from vthink.components.data_prep.config import SynthesizeConfig
from vthink.components.data_prep.world.synthesize import synthesize
from vthink.components.evaluation.benchmarks.registry import BENCHMARKS
from vthink.components.evaluation.conditions import frame_order, other_videos
from vthink.components.evaluation.config import EvaluationConfig
from vthink.components.evaluation.expressions import METRICS
from vthink.components.evaluation.grounding import baseline_items
from vthink.components.evaluation.report.benchmarks import _published, benchmark_page
from vthink.components.evaluation.report.frames import BenchmarkFrames
from vthink.components.evaluation.report.split import report_page
from vthink.components.evaluation.results import compare, key_of, read_benchmark
from vthink.components.evaluation.run_benchmark import _conclude
from vthink.components.evaluation.summary import conclude

from .conftest import World, look, make_world
from .test_measures import rows_of

CHROMIUM = Path("/usr/bin/chromium")
CHROMIUM_ARGS = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-dev-shm-usage"]
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


def items_of(html: str) -> dict:
    """The data that the page's script works with."""
    return json.loads(re.search(r'<script type="application/json" id="items">(.*?)</script>', html, re.S)[1])


def benchmark_folders(
    folder: Path, videos: int = 30, benchmark: str = "video-holmes", copies: int = 1
) -> dict[str, Path]:
    """What `vthink evaluate --benchmark` leaves, of two models, one of which looks more often."""
    world = make_world(videos=videos, images=0)
    rng, found = random.Random(0), {}
    about = BENCHMARKS[benchmark]
    for model, skill in (("base", 0.2), ("ours", 0.8)):
        rows = {}
        for frames in ("ordered", "shuffled", "blind"):
            texts = []
            for sample, clip in zip(world.samples, world.clips, strict=True):
                sees = frames == "ordered" and rng.random() < skill
                texts.append(look(sample, clip) if sees else f"{ATTACK}<answer>{rng.choice('AB')}</answer>")
            cell = rows_of(world, texts, "model", frames)
            rows[frames] = [
                row
                | {"value": about.scores[about.headline].value(row)}
                | {k: f"{copy}{row[k]}" for k in ("id", "video")}
                for copy in ("", *map(str, range(1, copies)))
                for row in cell
            ]
        engine = SimpleNamespace(about={"kind": "folder", "uri": f"/models/{model}", "prompt": "compact/1"})
        result = _conclude(about, rows, engine, EvaluationConfig(bootstrap_resamples=200))
        result |= {"data": str(folder / "data"), "items": copies * len(world), "videos": copies * videos}
        result |= {"settings": {"questions": "q", "seed": 0, "video": {"num_frames": 8, "max_pixels": 784}}}
        found[model] = folder / f"{model}-{benchmark}"
        found[model].mkdir(parents=True)
        (found[model] / "result.json").write_text(json.dumps(result))
        lines = [json.dumps(row) + "\n" for cell in rows.values() for row in cell]
        (found[model] / "items.jsonl").write_text("".join(lines))
    return found


def test_the_report_says_what_was_measured(world, config):
    html, result = make_report(world, config, broken="v000-direction")
    for words in ("base", "sft", "grpo", "shuffled", "another video&#39;s", "mIoU", "mean training span", "direction"):
        assert words in html
    accuracy = result["models"]["grpo"]["ordered"]["accuracy"]
    assert f"<b>{100 * accuracy['value']:.1f} %</b>" in html
    assert "Failed items (1), counted as wrong" in html
    assert "no significant difference" in html
    assert "sign-flip test over videos" in html


def test_no_response_question_or_error_becomes_markup(world, config):
    html, _ = make_report(world, config, broken="v000-direction")
    assert "owned" in html
    assert "<img src=x" not in html
    assert len(re.findall(r"<script[ >]", html)) == 2  # the data and the page's own
    assert html.count("</script>") == 2
    said = items_of(html)["items"][0]["said"]
    assert any(ATTACK in cell.get("r", "") or ATTACK in cell.get("e", "") for m in said.values() for cell in m.values())


def test_every_item_is_in_the_browser_and_every_kind_and_outcome_among_the_pictures(world, config):
    data = items_of(make_report(world, config, broken="v000-direction")[0])
    assert [item["id"] for item in data["items"]] == [sample.id for sample in world.samples]
    pictured = [item for item in data["items"] if "media" in item]
    assert 0 < len(data["media"]) <= config.report_items < len(pictured) + len(data["media"])
    outcomes = {item["said"]["grpo"]["ordered"]["o"] for item in pictured}
    assert outcomes == {"right", "wrong", "failed"}
    assert {item["kind"] for item in pictured} >= {"direction", "how_bright", "ocr"}
    shown = data["media"][pictured[0]["media"]]
    assert len(shown["frames"]) == len(shown["times"])
    assert shown["frames"][0].startswith("data:image/jpeg;base64,")


def test_an_item_without_frames_is_shown_with_the_reason(world, config):
    world.clips = [ValueError("damaged")] * len(world)
    texts = ["<answer>A</answer>"] * len(world)
    rows = {("base", "ordered"): rows_of(world, texts, "base")}
    result = conclude(rows, {"base": {"uri": "s3://b/base/", "fingerprint": "x"}}, {}, config)
    result |= {"split": "test", "items": len(world), "videos": 12, "left_out": {}}
    data = items_of(report_page(result, rows, world, range(len(world)), config))
    assert not data["media"]
    assert "no pictures: ValueError: damaged" in {item.get("noframes") for item in data["items"]}


def test_a_report_without_items_or_baselines_is_a_page(config):
    world = make_world(videos=1, images=0)
    cell = {("base", "ordered"): rows_of(world, [""] * len(world), "base")}
    result = conclude(cell, {"base": {"uri": "s3://b/base/", "fingerprint": "x"}}, {}, config)
    result |= {"split": "test", "items": 2, "videos": 1, "left_out": {"other_video": "there are fewer than two videos"}}
    html = report_page(result, cell, world, range(2), config.model_copy(update={"report_items": 0}))
    assert "there are fewer than two videos" in html
    assert not items_of(html)["media"]
    json.dumps(result, allow_nan=False)


def test_a_long_response_is_cut_and_says_so(world, config):
    rows = {("base", "ordered"): rows_of(world, ["x" * 50_000] * len(world), "base")}
    result = conclude(rows, {"base": {"uri": "s3://b/base/", "fingerprint": "x"}}, {}, config)
    result |= {"split": "test", "items": len(world), "videos": 12, "left_out": {}}
    html = report_page(result, rows, world, range(len(world)), config.model_copy(update={"report_items": 0}))
    assert items_of(html)["items"][0]["said"]["base"]["ordered"]["cut"] == "first 2,000 of 50,000 characters"
    assert len(html) < 200_000


# -- benchmarks ----------------------------------------------------------------------------------------------


def test_benchmarks_stand_beside_the_published_figures_with_their_source(tmp_path, config):
    folders = benchmark_folders(tmp_path)
    results = [read_benchmark(folder, name) for name, folder in folders.items()]
    html = benchmark_page(results, config)
    assert "Video-Thinker-7B @16" in html
    assert "43.2 %" in html
    assert "published: Video-Thinker, arXiv 2510.23473" in html
    assert "VSI" not in html  # not measured here
    ours, base = results[1], results[0]
    difference = compare(ours, base, "accuracy", config)
    assert difference.verdict == "higher"
    assert f"{100 * difference.value:+.1f} [" in html
    assert 'class="mark good"' in html
    cell = ours.cells["ordered"]["accuracy"]
    assert f"<b>{100 * cell['value']:.1f} %</b>" in html


def test_several_runs_of_a_model_are_shown_with_mean_and_spread(tmp_path, config):
    folders = benchmark_folders(tmp_path)
    results = [read_benchmark(folders[name], "ours") for name in ("base", "ours")]
    html = benchmark_page(results, config)
    values = [100 * r.cells["ordered"]["accuracy"]["value"] for r in results]
    mean, spread = sum(values) / 2, abs(values[0] - values[1]) / math.sqrt(2)
    assert f"<b>{mean:.1f} ± {spread:.1f} %</b>" in html
    assert "over 2 runs" in html


def test_published_figures_name_scores_that_the_benchmarks_report():
    scores = {f"{key_of(name)}.{score}" for name, about in BENCHMARKS.items() for score in about.scores}
    for one in _published()["models"]:
        assert set(one["values"]) <= scores
        assert all(0 < value < 100 for value in one["values"].values())
    assert set(_published()["unverified"]) <= scores
    assert {m for one in _published()["abilities"] for m in one["values"]} <= set(METRICS)


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda r: r.pop("settings"), "field 'settings': Field required"),
        (lambda r: r["settings"].pop("questions"), "field 'settings.questions': Field required"),
        (lambda r: r.update(headline="nothing"), "'nothing' is none of the scores"),
        (lambda r: r["conditions"].pop("ordered"), "field 'conditions.ordered': missing"),
        (
            lambda r: r["conditions"]["ordered"]["accuracy"].update(value="0.5"),
            "'conditions.ordered.accuracy', field 'v",
        ),
        (lambda r: r["conditions"]["ordered"]["accuracy"].update(value=math.inf), "ordered.accuracy"),
        (lambda r: r["conditions"]["ordered"].update(by_kind=[1]), "field 'conditions.ordered.by_kind'"),
        (
            lambda r: r["conditions"].update(upside_down={"scores": {}}),
            "'conditions.upside_down': not a frame condition",
        ),
        (
            lambda r: r.update(failed=[{"id": "a", "frames": "x", "error": "e"}]),
            "'conditions.x': not a frame condition",
        ),
        (lambda r: r["settings"].update(video="16 frames"), "field 'settings.video'"),
    ],
)
def test_a_result_that_is_not_what_the_command_writes_is_refused_in_one_line(tmp_path, damage, said):
    folder = benchmark_folders(tmp_path, videos=3)["base"]
    result = json.loads((folder / "result.json").read_text())
    damage(result)
    (folder / "result.json").write_text(json.dumps(result))
    with pytest.raises(UserError) as failure:
        read_benchmark(folder)
    assert said in str(failure.value)
    assert "\n" not in str(failure.value)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda row: row.pop("metrics"), "field 'metrics'"),
        (lambda row: row["metrics"].update(accuracy="1"), "field 'metrics.accuracy'"),
        (lambda row: row["metrics"].update(accuracy=math.nan), "line 3"),
        (lambda row: row.update(evidence=[[0, "later", "x"]]), "field 'evidence.0.1'"),
        (lambda row: row.update(options="AB"), "field 'options'"),
        (lambda row: row.update(clip=[0]), "field 'clip.1'"),
    ],
)
def test_a_damaged_item_is_named_by_its_line_and_field(tmp_path, change, said):
    folder = benchmark_folders(tmp_path, videos=3)["base"]
    lines = (folder / "items.jsonl").read_text().splitlines()
    row = json.loads(lines[2])
    change(row)
    lines[2] = json.dumps(row)
    (folder / "items.jsonl").write_text("\n".join(lines))
    with pytest.raises(UserError, match=r"items.jsonl, line 3") as failure:
        read_benchmark(folder)
    assert said in str(failure.value)
    assert "\n" not in str(failure.value)


@pytest.mark.parametrize("line", ["{", "[]", "3", '{"id": ' + "[" * 5000])
def test_a_line_that_is_no_item_is_named(tmp_path, line):
    folder = benchmark_folders(tmp_path, videos=3)["base"]
    with (folder / "items.jsonl").open("a") as file:
        file.write(line + "\n")
    with pytest.raises(UserError, match=r"items.jsonl, line 19: "):
        read_benchmark(folder)


def test_pictures_come_from_the_benchmarks_folder_and_a_damaged_video_says_so(tmp_path, config):
    synthesize(SynthesizeConfig(num_train=0, num_validation=0, num_test=2), tmp_path / "world")
    one, two = sorted((tmp_path / "world" / "videos").glob("*.mp4"))[:2]
    data = tmp_path / "data" / "videos"
    data.mkdir(parents=True)
    (data / "000.mp4").write_bytes(one.read_bytes())
    (data / "001.mp4").write_bytes(two.read_bytes()[:2000])
    results = [read_benchmark(folder, name) for name, folder in benchmark_folders(tmp_path, videos=3).items()]
    with BenchmarkFrames(results) as frames:
        items = items_of(benchmark_page(results, config, frames))
        found = {item["video"]: item for item in items["items"]}
        assert len(items["media"][found["videos/000.mp4"]["media"]]["frames"]) == 16
        assert found["videos/001.mp4"]["noframes"].startswith("no pictures: DecodeError")
        assert "media" not in found["videos/002.mp4"]  # not there
        (tmp_path / "secret.mp4").write_bytes(one.read_bytes())
        for name in ("../secret.mp4", str(tmp_path / "secret.mp4"), "videos/../../secret.mp4"):
            assert frames({"video": name}) is None
        assert frames({"video": "videos/000.mp4"}) is not None


def test_a_folder_with_nothing_in_it_says_what_to_give(tmp_path):
    with pytest.raises(UserError, match=r"give a folder that `vthink evaluate --benchmark"):
        read_benchmark(tmp_path)


# -- in a browser --------------------------------------------------------------------------------------------


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
        items = items_of(html)["items"]
        assert page.inner_text(".browser .count") == f"{len(items)} of {len(items)} items"
        for outcome in ("right", "wrong", "failed"):
            page.select_option("[data-choose=outcome]", outcome)
            expected = [item["id"] for item in items if item["said"]["grpo"]["ordered"]["o"] == outcome]
            listed = page.eval_on_selector_all("[data-entry]", "all => all.map(x => x.dataset.entry)")
            assert listed == expected[:10]
            assert page.inner_text(".browser .count") == f"{len(expected)} of {len(items)} items"
        page.select_option("[data-choose=outcome]", "right")
        page.select_option("[data-choose=kind]", "direction")  # both hold at once
        both = [i["id"] for i in items if i["said"]["grpo"]["ordered"]["o"] == "right" and i["kind"] == "direction"]
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
            i for i in items if "media" in i and i["kind"] == "direction" and "s" in i["said"]["grpo"]["ordered"]
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
    folders = benchmark_folders(tmp_path) | {
        f"{name} 2": folder for name, folder in benchmark_folders(tmp_path, benchmark="videomme").items()
    }
    results = [read_benchmark(folder, name.split()[0]) for name, folder in folders.items()]
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
        assert opened == name if kind == "video" else page.input_value("[data-choose=kind]") == name
        page.click("[data-open] [data-video]")  # all questions about the same video, then all videos again
        page.select_option("[data-choose=change]", "")
        page.select_option("[data-choose=set]", "")
        assert page.inner_text(".browser .count") == "4 of 120 items"
        page.click(".controls button:has-text('videos/')")
        page.select_option("[data-choose=set]", "videomme")
        assert page.inner_text(".browser .count") == "60 of 120 items"
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth"), "the page scrolls sideways"
        if folder := os.environ.get("VTHINK_SCREENSHOTS"):
            page.screenshot(path=f"{folder}/benchmarks.png", full_page=True)


@pytest.mark.browser
def test_five_thousand_items_open_quickly_and_are_shown_page_by_page(tmp_path, config):
    need_chromium()
    folders = benchmark_folders(tmp_path, videos=250, copies=10)
    results = [read_benchmark(folder, name) for name, folder in folders.items()]
    path = tmp_path / "report.html"
    path.write_text(benchmark_page(results, config))
    assert path.stat().st_size < 30 * 2**20
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
