"""The checks of curation that need no server; tests/integration/test_curate.py runs it against one."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from vthink.components.common.answers.formats import write_response
from vthink.components.common.answers.responses import parse_response
from vthink.components.common.config import ConfigError
from vthink.components.common.rows.files import RowError
from vthink.components.common.rows.sample import Evidence, Media, Sample
from vthink.components.common.video.clip import Clip
from vthink.components.data_prep.config import CurationConfig, EndpointConfig
from vthink.components.data_prep.curation import endpoint, replies
from vthink.components.data_prep.curation.curate import _frames, _inside
from vthink.components.data_prep.curation.estimate import estimate
from vthink.components.data_prep.curation.items import CurateError, Item, _DropError, read_items
from vthink.components.data_prep.curation.journal import Journal, JournalError
from vthink.components.data_prep.curation.prompts import PromptFileError, Prompts
from vthink.components.data_prep.curation.replies import UnusableError
from vthink.components.data_prep.source import open_source

MEDIA = Media(kind="video", uri="/videos/a.mp4")
SEGMENTS = (
    Evidence(start_s=0.0, end_s=4.0, caption="A man picks up a ball."),
    Evidence(start_s=3.5, end_s=9.25, caption="He throws it."),
)
CHOICE = Sample(
    id="a",
    media=MEDIA,
    question="What does he do with the ball?",
    options=("keeps it", "throws it"),
    problem_type="multiple_choice",
    answer="B",
)
QUESTION = {"question": "What then?", "options": ["p", "q", "r", "s"], "answer": "C", "segments": [1, 2]}
TRACE = {
    "steps": [
        {"segment": 1, "caption": "a ball", "thought": "now"},
        {"segment": 2, "caption": "flies", "thought": "so"},
    ],
    "reasoning": "He throws it.",
}


def question(**changes):
    config = CurationConfig()
    return replies.checked_question(json.dumps(QUESTION | changes), "a", MEDIA, SEGMENTS, config)


def trace(**changes):
    return replies.checked_trace(json.dumps(TRACE | changes), CHOICE, SEGMENTS)


def steps(*changes):
    return {"steps": [step | change for step, change in zip(TRACE["steps"], changes, strict=False)]}


@pytest.mark.parametrize("wrapped", ["{}", "```json\n{}\n```", " ```\n{}\n``` \n", "<think>First {{…}}</think>\n{}"])
def test_json_is_read_with_fences_or_thoughts_around_it(wrapped):
    text = wrapped.replace("{}", json.dumps(QUESTION)) if wrapped != "{}" else json.dumps(QUESTION)
    assert replies.checked_question(text, "a", MEDIA, SEGMENTS, CurationConfig()).question == "What then?"


@pytest.mark.parametrize(
    "text",
    [
        "",
        "Sure! " + json.dumps(QUESTION),
        json.dumps([QUESTION]),
        json.dumps(QUESTION | {"why": "so"}),
        json.dumps({key: value for key, value in QUESTION.items() if key != "answer"}),
        json.dumps(QUESTION | {"segments": ["1", "2"]}),
        json.dumps(QUESTION | {"segments": [1.5, 2]}),
        json.dumps(QUESTION)[:-1],
        json.dumps(QUESTION) * 2,
        "[" * 100_000,
        '{"question": "\\ud800"}',
        '{"question": "\ud800"}',
    ],
)
def test_anything_but_one_object_of_the_asked_shape_is_refused(text):
    with pytest.raises(UnusableError) as caught:
        replies.checked_question(text, "a", MEDIA, SEGMENTS, CurationConfig())
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"answer": "E"}, "not the letter of an option"),
        ({"answer": "c"}, "not the letter of an option"),
        ({"answer": "C."}, "not the letter of an option"),
        ({"answer": ""}, "not the letter of an option"),
        ({"options": ["p", "q", "r"]}, "3 options; 4 to 6"),
        ({"options": list("pqrstuv")}, "7 options; 4 to 6"),
        ({"options": ["p", "q", "r", "P"]}, "the same"),
        ({"options": ["p", "q", "r", " "]}, "empty"),
        ({"options": ["p", "q", "r", "None of the above"]}, "refers to others"),
        ({"options": ["p", "q", "r", "as in option A"]}, "refers to others"),
        ({"segments": [1, 3]}, "there are 1 to 2"),
        ({"segments": [0, 1]}, "there are 1 to 2"),
        ({"segments": [2, 2]}, "needs 1 segments"),
        ({"question": "What <answer>C</answer>"}, "a tag"),
        ({"question": "x" * 1001}, "at most 1000"),
    ],
)
def test_a_question_that_breaks_a_rule_is_refused(changes, problem):
    assert question().answer in "ABCD"
    with pytest.raises(UnusableError, match=problem):
        question(**changes)


def test_options_are_put_in_an_order_of_the_row_s_own_and_the_answer_follows():
    letters = set()
    for number in range(40):
        row = replies.checked_question(json.dumps(QUESTION), f"row {number}", MEDIA, SEGMENTS, CurationConfig())
        assert row.options["ABCD".index(row.answer)] == "r"
        again = replies.checked_question(json.dumps(QUESTION), f"row {number}", MEDIA, SEGMENTS, CurationConfig())
        assert again == row
        letters.add(row.answer)
    assert letters == set("ABCD")


@pytest.mark.parametrize(
    "bad",
    [
        "a <caption>b</caption>",
        "a</think>",
        "<|im_end|>",
        "<|video_pad|>",
        "<!-- a -->",
        "\x00",
        "\x1b[31m",
        "\x85",
        "\u202e",
        "\ue000",
        " \n ",
    ],
)
def test_tags_and_control_characters_are_refused_in_every_text(bad):
    for what, changes in (
        ("caption", steps({"caption": f"a {bad}" if bad.strip() else bad})),
        ("thought", steps({"thought": f"a {bad}" if bad.strip() else bad})),
        ("reasoning", {"reasoning": f"a {bad}" if bad.strip() else bad}),
    ):
        with pytest.raises(UnusableError, match=f"a {what} "):
            trace(**changes)


def test_ordinary_text_of_any_language_passes():
    for text in (
        "3 < 5 and 7 > 6",
        "naïve café — “so”",
        "ボールを投げる",
        "پرتاب می‌کند",
        "a 👨‍👩‍👧 family",
        "two\nlines",
    ):
        assert trace(**steps({"caption": text}, {}))


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"steps": []}, "there are 1 to 2"),
        (steps({"segment": 3}, {}), "there are 1 to 2"),
        (steps({"segment": 2}, {"segment": 1}), "not in the order"),
        (steps({"segment": 2}, {"segment": 2}), "not in the order"),
        (steps({"caption": "the answer is B"}), "names the answer"),
        (steps({"caption": "so option (B) is right"}), "names the answer"),
        (steps({"caption": "Answer: B"}), "names the answer"),
    ],
)
def test_a_trace_that_breaks_a_rule_is_refused(changes, problem):
    with pytest.raises(UnusableError, match=problem):
        trace(**changes)


def test_a_caption_may_speak_of_answers_without_naming_one():
    assert trace(**steps({"caption": "He gives an answer. A woman has no other choice."}))


def test_a_trace_becomes_a_target_that_reads_back_the_same():
    row = trace()
    target = write_response(row, "video_thinker")
    parsed = parse_response(target)
    assert [(s.start_s, s.end_s, s.caption, s.thought) for s in parsed.segments] == [
        (0.0, 4.0, "a ball", "now"),
        (3.5, 9.25, "flies", "so"),
    ]
    assert parsed.answer == "B"
    assert target.startswith(
        "<time>00:00-00:04</time><caption>a ball</caption><think>now</think><time>3.5-9.25 seconds"
    )
    assert [e.caption for e in row.evidence] == ["a ball", "flies"]


@pytest.mark.parametrize(
    ("segments", "problem"),
    [
        ([], "no segments"),
        ([(2, 2)], "does not end after it starts"),
        ([(3, 2)], "does not end after it starts"),
        ([(0, 10.02)], "behind the video's end"),
        ([(5, 6), (4, 7)], "starts before segment 1"),
        ([(-1, 2)], "greater than or equal to 0"),
        ([(0, 1e999)], "segments"),
        ([("0", 1)], "segments"),
        ([(True, 2)], "segments"),
    ],
)
def test_found_segments_must_lie_in_the_video_and_in_order(segments, problem):
    def reply(spans):
        return json.dumps({"segments": [{"start_s": a, "end_s": b, "caption": "x"} for a, b in spans]})

    assert len(replies.checked_captions(reply([(0, 4.5), (4, 10)]), 10.0)) == 2
    with pytest.raises(UnusableError, match=problem):
        replies.checked_captions(reply(segments), 10.0)


@pytest.mark.parametrize(
    ("text", "reward"),
    [
        ("<think>so</think><answer>B</answer>", 1.0),
        ("<think>so</think>\n<answer>(B) throws it</answer>", 1.0),
        ("<think>so</think><answer>A</answer>", 0.0),
        ("<answer>B</answer>", 0.0),
        ("<think>so</think><answer>B</answer> or so", 0.0),
        ("<think>so <|im_end|></think><answer>B</answer>", 0.0),
        ("<think></think><answer>B</answer>", 0.0),
        ("", 0.0),
    ],
)
def test_a_sampled_trace_earns_its_answer_s_grade_when_its_format_is_right(text, reward):
    assert replies.checked_cot(text, CHOICE)[0] == reward


# --- sources


def read(path: Path, config: CurationConfig | None = None, **options: Any) -> list[Item | RowError]:
    return list(read_items(open_source(str(path), None, path.parent), config or CurationConfig(), **options))


def captions(folder: Path, videos: object) -> Path:
    path = folder / "captions.json"
    path.write_text(json.dumps(videos))
    return path


def test_captioned_segments_are_read_in_the_order_of_time(tmp_path):
    about = {"duration": 9.0, "timestamps": [[4, 9], [0, 5.5]], "sentences": [" then ", "first"]}
    (item,) = read(captions(tmp_path, {"v_1": about}), CurationConfig(videos="clips/{id}.mkv"))
    assert item.media.uri == str(tmp_path / "clips/v_1.mkv")
    assert [(s.start_s, s.end_s, s.caption) for s in item.segments] == [(0, 5.5, "first"), (4, 9, "then")]


@pytest.mark.parametrize(
    "about",
    [
        {"timestamps": [[0, 1]], "sentences": []},
        {"timestamps": [[0, 1]]},
        {"timestamps": [[1, 0]], "sentences": ["x"]},
        {"timestamps": [[0, float("nan")]], "sentences": ["x"]},
        {"timestamps": [[0, 1, 2]], "sentences": ["x"]},
        {"timestamps": [5], "sentences": ["x"]},
        {"timestamps": None, "sentences": ["x"]},
        {"timestamps": [[0, 1]], "sentences": ["<answer>"]},
        {"timestamps": [[0, 1]], "sentences": [None]},
    ],
)
def test_segments_that_cannot_be_right_are_reported_and_the_others_read(tmp_path, about):
    good = {"timestamps": [[0, 1]], "sentences": ["x"]}
    bad, item = read(captions(tmp_path, {"bad": about, "good": good}))
    assert isinstance(bad, RowError)
    assert bad.reason.startswith("bad_segments: 'bad': ")
    assert item.id == "good"


@pytest.mark.parametrize("text", ['{"v": 5}', '{"v": ', '{"v": ' + "[" * 100_000])
def test_a_file_that_is_no_file_of_segments_is_one_line(tmp_path, text):
    path = tmp_path / "captions.json"
    path.write_text(text)
    with pytest.raises(CurateError, match=r"captions\.json: "):
        read(path)


def test_questions_are_read_in_any_format_of_rows_with_roots_and_ids_of_their_own(tmp_path):
    row = {
        "problem_id": 7,
        "problem": "Which way?",
        "data_type": "video",
        "problem_type": "multiple choice",
        "options": ["A. left", "B. right"],
        "solution": "<answer>B</answer>",
        "path": "./clips/a.mp4",
        "data_source": "STAR",
    }
    path = tmp_path / "Video-R1-260k.json"
    path.write_text(json.dumps([row, row]))
    items = read(path, roots={"STAR": "/data/star"})
    assert [item.sample.answer for item in items] == ["B", "B"]
    assert len({item.id for item in items} | {item.sample.id for item in items}) == 2
    assert {item.media.uri for item in items} == {"/data/star/clips/a.mp4"}


def test_an_object_a_line_in_a_json_file_is_read_as_rows(tmp_path):
    path = tmp_path / "rows.json"
    path.write_text((CHOICE.model_dump_json() + "\n") * 2)
    first, second = read(path)
    assert first.sample == CHOICE
    assert second.reason == "duplicate_id: the id 'a' is already that of 1"


def test_segments_are_cut_at_the_video_s_end_within_reason():
    assert _inside(SEGMENTS, 9.0)[-1].end_s == 9.0
    assert _inside(SEGMENTS, 20.0) == SEGMENTS
    with pytest.raises(_DropError, match=r"ends at 9\.25 s, the video already at 8\.00 s"):
        _inside(SEGMENTS, 8.0)


def test_frames_are_shown_each_after_its_time():
    clip = Clip(np.zeros((2, 8, 8, 3), np.uint8), np.array([0.0, 1.5]), 3.0)
    parts = list(_frames(clip))
    assert [part["text"] for part in parts[::2]] == ["[0.0 s]", "[1.5 s]"]
    assert all(part["image_url"]["url"].startswith("data:image/jpeg;base64,") for part in parts[1::2])


# --- prompts


def test_our_prompts_say_what_the_checks_ask_for():
    prompts = Prompts.read(None)
    listed = replies.listed(SEGMENTS)
    question = prompts.render("question", segments=listed, min_segments=2, min_options=4, max_options=6)
    assert "1. [00:00-00:04] A man picks up a ball." in question
    assert '{"question": "…", "options"' in question
    told = {"question": replies.with_options(CHOICE), "answer": "B. throws it"}
    text = prompts.render("trace", segments=listed, failed_captions=["a ball"], **told)
    assert "- a ball" in text
    assert "A. keeps it" in text
    assert "- a ball" not in prompts.render("trace", segments=listed, failed_captions=None, **told)
    judge = prompts.render("judge", segments=listed, question=replies.as_asked(CHOICE))
    assert "throws it" in judge
    assert "right answer" not in judge


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("trace.jinja", "{{ segmnts }}", "'segmnts' is undefined.*there are: segments, question, answer"),
        ("trace.jinja", "\n{% for %}", r"trace\.jinja:2: "),
        ("traces.jinja", "x", r"no step uses it; prompts are called captions\.jinja, cot\.jinja"),
        ("trace.jinja", "{{ ''.__class__.__mro__ }}", "unsafe"),
    ],
)
def test_a_prompt_that_cannot_be_used_is_one_line_that_names_it(tmp_path, name, text, message):
    (tmp_path / name).write_text(text)
    with pytest.raises(PromptFileError, match=message):
        Prompts.read(str(tmp_path))


# --- the journal


def test_a_journal_loses_a_torn_last_line_and_nothing_else(tmp_path):
    path = tmp_path / "j.jsonl"
    with Journal(path) as journal:
        journal.add("aa" * 32, usd=0.5, text="one\ntwo \ud800")
        journal.add("bb" * 32, usd=0.25)
    whole = path.read_bytes()
    for torn in (b'{"key": "cc', b"{", b"\x00" * 30, b'{"key": 5}\n'):
        path.write_bytes(whole + torn)
        with Journal(path) as journal:
            assert journal.spent_usd == 0.75
            assert journal.find("aa" * 32)["text"] == "one\ntwo \ud800"
            assert journal.find("cc" * 32) is None
            journal.add("dd" * 32)
        assert path.read_bytes().startswith(whole)
        with Journal(path) as journal:
            assert journal.find("dd" * 32) is not None
    path.write_bytes(b"{}\n" + whole)
    with pytest.raises(JournalError, match=":1: damaged"):
        Journal(path)


def test_a_journal_is_written_by_one_at_a_time(tmp_path):
    with Journal(tmp_path / "j.jsonl"), pytest.raises(JournalError, match="another vthink data curate"):
        Journal(tmp_path / "j.jsonl")


# --- servers and settings


def test_retry_after_is_a_number_of_seconds_or_a_date():
    soon = format_datetime(datetime.now(UTC) + timedelta(seconds=30), usegmt=True)
    assert endpoint._retry_after_s("7") == 7
    assert 25 < endpoint._retry_after_s(soon) <= 30
    for nothing in (None, "", "-5", "soon", "1e9999", format_datetime(datetime.now(UTC) - timedelta(days=1))):
        assert endpoint._retry_after_s(nothing) == 0


def test_waits_double_are_random_and_at_least_what_the_server_asks_for():
    one = endpoint.Endpoint("teacher", EndpointConfig(url="http://h/v1", model="m"), endpoint.Account())
    for attempt, longest in ((0, 1.0), (3, 8.0), (20, 60.0)):
        waits = [one._backoff_s(attempt, 0.0) for _ in range(300)]
        assert 0.8 * longest < max(waits) <= longest
        assert min(waits) < 0.2 * longest
    assert 5.0 <= one._backoff_s(0, 5.0) <= 6.0
    assert one._backoff_s(0, 1e9) <= 601


def test_extra_fields_are_sent_and_a_null_removes_one():
    extra = {"max_tokens": None, "max_completion_tokens": 9, "top_p": 0.9}
    one = endpoint.Endpoint("t", EndpointConfig(url="http://h/v1", model="m", extra=extra), endpoint.Account())
    body = one._body([{"role": "user", "content": "hi"}], 3)
    assert body.keys() == {"model", "messages", "seed", "temperature", "max_completion_tokens", "top_p"}


def test_a_server_s_words_are_one_short_line():
    assert (
        endpoint._message(json.dumps({"error": {"message": "no\n\x1b[31m way " + "x" * 500}}).encode())[:8]
        == "no [31m "
    )
    assert len(endpoint._message(b"\xff" * 10_000)) == 200
    assert endpoint._message(b"") == "no reason given"


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"teacher": {"url": "127.0.0.1:8000"}}, "must look like http"),
        ({"teacher": {"url": "file:///etc/passwd"}}, "must look like http"),
        ({"teacher": {"url": "https://me:secret@host/v1"}}, "must not hold a name or password"),
        ({"teacher": {"extra": {"messages": []}}}, "extra cannot set messages"),
        ({"teacher": {"api_key_env": "sk-123"}}, "api_key_env"),
        ({"budget_usd": 5.0}, "needs the prices of the teacher"),
        ({"min_options": 5, "max_options": 4}, "min_options must not exceed"),
        ({"max_kept": 5, "num_traces": 4}, "max_kept must not exceed"),
        ({"teachr": {}}, "did you mean 'teacher'"),
    ],
)
def test_settings_that_contradict_each_other_are_refused(settings, message):
    with pytest.raises(ConfigError, match=message):
        CurationConfig.load(settings)


def test_a_seed_for_everything_leaves_the_judge_its_own_defaults():
    from vthink.pipelines.config import load

    config = load("laptop", ["seed=7", "curation.judge.model=j"]).curation
    assert config.seed == 7
    assert (config.teacher.temperature, config.judge.temperature) == (0.7, 0.0)


def test_a_dry_run_counts_the_fewest_and_the_most_calls(tmp_path):
    good = {"timestamps": [[0, 1], [1, 2]], "sentences": ["x", "y"]}
    source = captions(tmp_path, {"a": good, "b": good, "c": {}})
    prices = {"usd_per_million_input_tokens": 1.0, "usd_per_million_output_tokens": 2.0}
    config = CurationConfig.load({"teacher": prices, "judge": prices, "max_malformed": 1, "max_regenerations": 2})
    found = estimate(source, tmp_path / "out.jsonl", config)
    assert (found.items, found.decided) == (3, 1)
    assert found.min_calls == 2 * (1 + 1 + 1)
    assert found.max_calls == 2 * (2 + 2 * 3 + 3)
    assert 0 < found.min_usd < found.max_usd
    assert not (tmp_path / "out.journal.jsonl").exists()


def test_a_proxy_of_the_environment_is_not_asked_about_this_machine():
    assert endpoint._is_loopback("http://localhost:80/v1")
    assert endpoint._is_loopback("http://[::1]:80/v1")
    assert not endpoint._is_loopback("http://localhost.example.org/v1")
