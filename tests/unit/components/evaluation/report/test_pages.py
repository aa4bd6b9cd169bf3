import math
import re
from dataclasses import replace

from vthink.components.data_prep.config import SynthesizeConfig
from vthink.components.data_prep.world.synthesize import synthesize
from vthink.components.evaluation.benchmarks.registry import BENCHMARKS, benchmark_key
from vthink.components.evaluation.metrics import METRICS
from vthink.components.evaluation.report.cells import published
from vthink.components.evaluation.report.items import folder_clips
from vthink.components.evaluation.report.pages import benchmark_page, evaluation_page
from vthink.components.evaluation.results import read_benchmark
from vthink.components.evaluation.summary import compare

from ..small_world import ATTACK, items_of, make_world, result_of, stage_result, two_models, write_two_models
from .made_report import data_of, make_report, report_of_one


def test_the_report_says_what_was_measured(world, config):
    html, result = make_report(world, config, broken="v000-direction")
    for words in ("base", "sft", "grpo", "shuffled", "another video&#39;s", "mIoU", "mean training span", "direction"):
        assert words in html
    accuracy = result.models["grpo"].conditions["ordered"].metrics["accuracy"]
    assert f"<b>{100 * accuracy.value:.1f} %</b>" in html
    assert "Failed items (1), counted as wrong" in html
    assert "no significant difference" in html
    assert "sign-flip test over videos" in html


def test_no_response_question_or_error_becomes_markup(world, config):
    html, _ = make_report(world, config, broken="v000-direction")
    assert "owned" in str(data_of(html))
    assert "<img src=x" not in html
    assert len(re.findall(r"<script[ >]", html)) == 2  # the data and the page's own
    assert html.count("</script>") == 2
    answers = data_of(html)["items"][0]["answers"]
    assert any(
        ATTACK in cell.get("r", "") or ATTACK in cell.get("e", "") for m in answers.values() for cell in m.values()
    )


def test_every_item_is_in_the_browser_and_every_kind_and_outcome_among_the_pictures(world, config):
    data = data_of(make_report(world, config, broken="v000-direction")[0])
    assert [item["id"] for item in data["items"]] == [sample.id for sample in world.samples]
    pictured = [item for item in data["items"] if "media" in item]
    assert 0 < len(data["media"]) <= config.report_items < len(pictured) + len(data["media"])
    outcomes = {item["answers"]["grpo"]["ordered"]["o"] for item in pictured}
    assert outcomes == {"right", "wrong", "failed"}
    assert {item["kind"] for item in pictured} >= {"direction", "how_bright", "ocr"}
    shown = data["media"][pictured[0]["media"]]
    assert len(shown["frames"]) == len(shown["times"])
    assert shown["frames"][0].startswith("data:image/jpeg;base64,")


def test_an_item_without_frames_is_shown_with_the_reason(world, config):
    world.clips = [ValueError("damaged")] * len(world)
    data = data_of(report_of_one(world, config, "<answer>A</answer>"))
    assert not data["media"]
    assert "no pictures: ValueError: damaged" in {item.get("noframes") for item in data["items"]}


def test_a_report_without_pictures_or_baselines_is_a_page(config):
    world = make_world(videos=1, images=0)
    results = [result_of(world, {"ordered": items_of(world, [""] * len(world), "base")}, "base", config)]
    result = stage_result(results, config).model_copy(
        update={"left_out": {"other_video": "there are fewer than two videos"}}
    )
    html = evaluation_page(result, results, [], world.clip, config.model_copy(update={"report_items": 0}))
    assert "another video&#39;s: not measured, there are fewer than two videos" in html
    assert not data_of(html)["media"]


def test_a_long_response_is_cut_and_says_so(world, config):
    html = report_of_one(world, config.model_copy(update={"report_items": 0}), "x" * 50_000)
    assert data_of(html)["items"][0]["answers"]["base"]["ordered"]["cut"] == "first 2,000 of 50,000 characters"
    assert len(html) < 200_000


# -- benchmarks ----------------------------------------------------------------------------------------------


def test_benchmarks_stand_beside_the_published_figures_with_their_source(config):
    base, ours = two_models().values()
    html = benchmark_page([base, ours], config)
    assert "Video-Thinker-7B @16" in html
    assert "43.2 %" in html
    assert "published: Video-Thinker, arXiv 2510.23473" in html
    assert "VSI" not in html  # not measured here
    difference = compare(ours, base, "accuracy", config.resampling)
    assert difference.verdict == "higher"
    assert f"{100 * difference.value:+.1f} [" in html
    assert 'class="mark good"' in html
    assert f"<b>{100 * ours.ordered.scores['accuracy'].value:.1f} %</b>" in html


def test_several_runs_of_a_model_are_shown_with_mean_and_spread(config):
    results = [replace(result, model="ours") for result in two_models().values()]
    html = benchmark_page(results, config)
    values = [100 * r.ordered.scores["accuracy"].value for r in results]
    mean, spread = sum(values) / 2, abs(values[0] - values[1]) / math.sqrt(2)
    assert f"<b>{mean:.1f} ± {spread:.1f} %</b>" in html
    assert "over 2 runs" in html


def test_published_figures_name_scores_that_the_benchmarks_report():
    scores = {f"{benchmark_key(name)}.{score}" for name, about in BENCHMARKS.items() for score in about.scores}
    for one in published().models:
        assert set(one.values) <= scores
        assert all(0 < value < 100 for value in one.values.values())
    assert set(published().unverified) <= scores
    assert {metric for one in published().abilities for metric in one.values} <= set(METRICS)


def test_pictures_come_from_the_benchmarks_folder_and_a_damaged_video_says_so(tmp_path, config):
    synthesize(SynthesizeConfig(num_train=0, num_validation=0, num_test=2), tmp_path / "world")
    one, two = sorted((tmp_path / "world" / "videos").glob("*.mp4"))[:2]
    data = tmp_path / "data" / "videos"
    data.mkdir(parents=True)
    (data / "000.mp4").write_bytes(one.read_bytes())
    (data / "001.mp4").write_bytes(two.read_bytes()[:2000])
    results = [read_benchmark(folder, name) for name, folder in write_two_models(tmp_path, videos=3).items()]
    with folder_clips(results) as clips:
        items = data_of(benchmark_page(results, config, clips))
        by_video = {item["video"]: item for item in items["items"]}
        assert len(items["media"][by_video["videos/000.mp4"]["media"]]["frames"]) == 16
        assert by_video["videos/001.mp4"]["noframes"].startswith("no pictures: DecodeError")
        assert "media" not in by_video["videos/002.mp4"]  # not there
        item = results[0].items["ordered"][0]
        (tmp_path / "secret.mp4").write_bytes(one.read_bytes())
        for name in ("../secret.mp4", str(tmp_path / "secret.mp4"), "videos/../../secret.mp4"):
            assert clips(item.model_copy(update={"video": name})) is None
        assert clips(item.model_copy(update={"video": "videos/000.mp4"})) is not None


def test_the_page_opens_with_which_model_is_better_and_how_sure_that_is(config):
    base, ours = two_models().values()
    html = benchmark_page([base, ours], config)
    opening = html.index("In one sentence")
    assert opening < html.index("<table")
    difference = compare(ours, base, "accuracy", config.resampling)
    assert f"ours is better than base on Video-Holmes: {100 * difference.value:+.1f} points [" in html
    assert "Answers were there in 100 % (tagged: 100 %), before in 100 % (100 %)." in html
    same = benchmark_page([base, replace(base, model="again")], config)
    assert "again and base cannot be told apart on Video-Holmes: +0.0 points" in same
    alone = benchmark_page([base], config)
    assert "Spans of base: " in alone  # all that can be said of one model
    assert "better than" not in alone
    assert "told apart" not in alone


def test_the_chart_shows_every_kind_of_every_model_and_the_last_one_without_order_or_video(config):
    base, ours = two_models().values()
    html = benchmark_page([base, ours], config)
    chart = html[html.index('<figure class="dots">') : html.index("</figure>")]
    kinds = ["all questions", *ours.ordered.by_kind]
    assert len(kinds) == 3
    assert len(re.findall("<circle", chart)) == len(kinds) * 4  # base, ours, ours shuffled, ours without the video
    whole = 100 * ours.ordered.estimate("accuracy").value
    assert f'cx="{whole:.2f}%"' in chart
    assert html.index("<svg") < html.index("<table")
    assert html.index("What got worse") < html.index('<details class="fold">') < html.index("<table")


def test_what_got_worse_is_named_and_how_sure_that_is(config):
    base, ours = two_models().values()
    assert "No kind of question got worse." in benchmark_page([base, ours], config)
    html = benchmark_page([ours, base], config)
    kinds = {
        kind: compare(base, ours, "accuracy", config.resampling, group=("by_kind", kind))
        for kind in ours.ordered.by_kind
    }
    assert {difference.verdict for difference in kinds.values()} == {"lower", "no significant difference"}
    for kind, difference in kinds.items():
        listed = f"{kind}: {100 * difference.value:+.1f} ["
        assert (f"<li>{listed}" in html) == (difference.verdict == "lower")
        assert listed in html[html.index("What got worse") : html.index("<details")]
    assert "What got worse" not in benchmark_page([base], config)


def test_examples_are_telling(config):
    base, ours = two_models().values()
    html = benchmark_page([base, ours], config)
    shown = re.findall(r"<h3>(Fixed|Broken|Right for wrong reasons)</h3>", html)
    assert shown[:1] == ["Fixed"]
    assert "was wrong, is right · 0" in html  # and the video's name
    item = next(item for item in ours.items["ordered"] if item.correct)
    other = item.model_copy(update={"metrics": item.metrics | {"follows": 0.0}})
    items = {
        "ordered": [
            other if one is item else one.model_copy(update={"metrics": one.metrics | {"follows": 1.0}})
            for one in ours.items["ordered"]
        ]
    }
    assert "its own reasoning says something else" in benchmark_page([replace(ours, items=items)], config)


def test_no_button_of_a_regression_leaves_its_cell(config):
    base, ours = two_models().values()
    html = benchmark_page([ours, base], config)  # the worse one last
    assert "Worst regressions" in html
    assert "data-show=" in html
    assert not re.search(r'data-sort="[^"]*<', html)
    assert not re.search(r"show&#34;&gt;|show\">show", html)


def test_a_kind_of_question_is_shown_by_its_own_metric(config):
    results = [replace(one, result=one.result) for one in two_models(benchmark="vsi-bench").values()]
    html = benchmark_page(results, config)
    group = ("by_type", "regression")
    own = results[1].ordered.estimate("mra_inclusive", group).value
    assert own != results[1].ordered.estimate("accuracy", group).value
    row = re.search(r"<tr[^>]*><td[^>]*>regression</td>.*?</tr>", html, re.DOTALL)[0]
    assert "MRA (≤)" in row
    assert f"<b>{100 * own:.1f} %</b>" in row
