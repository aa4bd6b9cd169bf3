"""Curation against a real HTTP server whose teacher and judge misbehave at known rates.

What the server does with a call follows from a hash of the row, the step and how many different calls of that step it
has seen for the row. From the same hashes, and from the rules as the configuration states them, `expected` works out
what must be kept, without asking anything.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import signal
import subprocess
import threading
import time
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from vthink.components.common.answers.formats import write_response
from vthink.components.common.answers.responses import parse_response
from vthink.components.common.chat_endpoint.endpoint import MAX_REPLY_BYTES, EndpointError
from vthink.components.common.errors import UserError
from vthink.components.common.rows.files import read_samples
from vthink.components.common.rows.sample import Sample
from vthink.components.data_prep.config import CurationConfig
from vthink.components.data_prep.curation.curate import Summary, curate
from vthink.components.data_prep.validate import validate_rows
from vthink.components.data_prep.world.synthesize import write_mp4

from .conftest import VTHINK, clean_environment

KEY = "the-secret-of-this-test"
VIDEO_S = 3.0
TIMEOUT_S = 5.0
# The prompts of these tests are JSON, so that the server knows what it is asked.
PROMPTS = {
    "question": '{"step": "question", "segments": {{ segments|tojson }}}',
    "captions": '{"step": "captions", "question": {{ question|tojson }}, "duration_s": {{ duration_s }}}',
    "trace": '{"step": "trace", "segments": {{ segments|tojson }}, "question": {{ question|tojson }}, '
    '"answer": {{ answer|tojson }}, "failed": {{ failed_captions|tojson }}}',
    "judge": '{"step": "judge", "segments": {{ segments|tojson }}, "question": {{ question|tojson }}}',
    "cot": '{"step": "cot", "question": {{ question|tojson }}}',
}
TROUBLES = {  # per cent of the calls
    "error 500": 6,
    "busy": 4,
    "dropped": 4,
    "stalled": 1,
    "garbage": 2,
    "huge": 1,
    "refused": 1,
    "dead": 1,
}
TEACHER = {
    "not json": 5,
    "cut off": 3,
    "unknown key": 3,
    "wrong letter or segment": 4,
    "tag": 3,
    "control character": 3,
    "fenced": 8,
}
JUDGE = {"wrong": 30, "silent": 8}
COT = {"no format": 20, "wrong": 40}


def drawn(shares: dict[str, int], *what: Any) -> str:
    """One of the names, by its share in per cent; else ``fine``."""
    place = int(hashlib.sha256(json.dumps(what).encode()).hexdigest(), 16) % 100
    for name, share in shares.items():
        place -= share
        if place < 0:
            return name
    return "fine"


class Models:
    """A server of OpenAI chat completions: teacher and judge by the name of the model."""

    def __init__(self) -> None:
        self.answered: Counter[str] = Counter()
        """Complete answers (HTTP 200) by digest of the request."""
        self.text_of: dict[str, str] = {}
        """The answer by digest of the request; no two are equal."""
        self.seen: list[tuple[str, str]] = []
        """Digest and trouble of every request."""
        self.most_at_once: Counter[str] = Counter()
        self.wrong_requests: list[str] = []
        self.delay_s = 0.0
        self.troubles = TROUBLES
        self.shown_frames = {"captions", "cot"}
        """Steps that come with frames."""
        self.first_retry_after_s: int | None = None
        """The first request of all is told to come back after so long."""
        self.arrived_s: list[float] = []
        self._ordinal: dict[str, tuple[str, str, int]] = {}
        self._count: Counter[tuple[str, str]] = Counter()
        self._at_once: Counter[str] = Counter()
        self._lock = threading.Lock()
        self._over = threading.Event()
        models = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                models._serve(self, body)

            def log_message(self, *_: Any) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}/v1"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def item_of(self, digest: str) -> str:
        """The item that a request was about."""
        return self._ordinal[digest][0]

    def close(self) -> None:
        self._over.set()
        self.server.shutdown()
        self.server.server_close()

    def _serve(self, handler: BaseHTTPRequestHandler, raw: bytes) -> None:
        body = json.loads(raw)
        with self._lock:
            self.arrived_s.append(time.monotonic())
            first = len(self.arrived_s) == 1
        if first and self.first_retry_after_s is not None:
            self._send(handler, 429, b"{}", {"Retry-After": str(self.first_retry_after_s)})
            return
        if handler.headers["Authorization"] != f"Bearer {KEY}":
            self.seen.append(("", "wrong key"))
            self._send(handler, 401, b'{"error": {"message": "who are you?"}}')
            return
        if handler.path != "/v1/chat/completions":
            self.wrong_requests.append(handler.path)
        content = body["messages"][0]["content"]
        prompt = content if isinstance(content, str) else content[-1]["text"]
        images = 0 if isinstance(content, str) else sum(part["type"] == "image_url" for part in content)
        asked, _ = json.JSONDecoder().raw_decode(prompt)
        if images != (4 if asked["step"] in self.shown_frames else 0):
            self.wrong_requests.append(f"{asked['step']} with {images} images")
        item = re.search(r"clip \d+", prompt)[0]
        digest = hashlib.sha256(raw).hexdigest()
        with self._lock:
            if digest not in self._ordinal:
                which = (item, asked["step"])
                self._ordinal[digest] = (*which, self._count[which])
                self._count[which] += 1
            before = sum(seen == digest for seen, _ in self.seen)
            trouble = drawn(self.troubles, "trouble", *self._ordinal[digest])
            if before and trouble != "dead" and trouble != "refused":
                trouble = "fine"
            self.seen.append((digest, trouble))
            self._at_once[body["model"]] += 1
            self.most_at_once[body["model"]] = max(self.most_at_once[body["model"]], self._at_once[body["model"]])
        try:
            self._answer(handler, digest, trouble, asked)
        finally:
            with self._lock:
                self._at_once[body["model"]] -= 1

    def _answer(self, handler: BaseHTTPRequestHandler, digest: str, trouble: str, asked: dict[str, Any]) -> None:
        time.sleep(self.delay_s)
        if trouble in ("error 500", "dead"):
            self._send(handler, 500, b"<html>out of order</html>")
        elif trouble == "busy":
            self._send(handler, 429, b'{"error": {"message": "slow down"}}', {"Retry-After": "0"})
        elif trouble == "refused":
            self._send(handler, 400, b'{"error": {"message": "not with me"}}')
        elif trouble == "dropped":
            handler.close_connection = True
            handler.connection.shutdown(2)
        elif trouble == "stalled":
            self._over.wait(3 * TIMEOUT_S)
            handler.close_connection = True
        elif trouble == "huge":
            self._send(handler, 200, b"{" + b" " * (MAX_REPLY_BYTES + 1))
        elif trouble == "garbage":
            self._send(handler, 200, b'{"choices": "none"}')
        else:
            item, step, ordinal = self._ordinal[digest]
            mark = f"{item} {step} {ordinal}"
            text, finish = said(item, step, ordinal, asked, mark)
            self.text_of[digest] = text
            reply = {
                "choices": [{"message": {"role": "assistant", "content": text}, "finish_reason": finish}],
                "usage": {"prompt_tokens": 100, "completion_tokens": 50},
            }
            self._send(handler, 200, json.dumps(reply).encode())
            with self._lock:
                self.answered[digest] += 1

    def _send(self, handler: BaseHTTPRequestHandler, status: int, body: bytes, headers: dict[str, str] | None = None):
        handler.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **(headers or {})}.items():
            handler.send_header(name, value)
        handler.end_headers()
        handler.wfile.write(body)


def said(item: str, step: str, ordinal: int, asked: dict[str, Any], mark: str) -> tuple[str, str]:
    """What the model answers, and why it ended; every text holds ``mark``."""
    if step == "judge":
        right = re.search(r"([A-Z])\. the right one", asked["question"])[1]
        how = drawn(JUDGE, "judge", item, ordinal)
        wrong = "A" if right != "A" else "B"
        return {
            "fine": f"{mark} <answer>{right}</answer>",
            "wrong": f"{mark} <answer>{wrong}</answer>",
            "silent": f"{mark}: I cannot tell.",
        }[how], "stop"
    if step == "cot":
        right = re.search(r"([A-Z])\. the right one", asked["question"])[1]
        how = drawn(COT, "cot", item, ordinal)
        wrong = "A" if right != "A" else "B"
        return {
            "fine": f"<think>{mark} it is so</think><answer>{right}</answer>",
            "wrong": f"<think>{mark} it is so</think><answer>{wrong}</answer>",
            "no format": f"{mark} <answer>{right}</answer>",
        }[how], "stop"
    how = drawn(TEACHER, "teacher", item, step, ordinal)
    caption = {"tag": f"{mark} <answer>A</answer>", "control character": f"{mark} \x07"}.get(how, f"{mark} happens")
    if step == "question":
        options = ["the right one", "the left one", "another one", "no one"]
        answer = "F" if how == "wrong letter or segment" else "A"
        question = f"What follows? {caption}"
        reply: dict[str, Any] = {"question": question, "options": options, "answer": answer, "segments": [1, 2]}
    elif step == "captions":
        end_s = VIDEO_S + 1 if how == "wrong letter or segment" else 2.5
        segments = [
            {"start_s": 0.0, "end_s": 1.25, "caption": f"{caption} first"},
            {"start_s": 1.0, "end_s": end_s, "caption": f"{caption} then"},
        ]
        reply = {"segments": segments}
    else:
        assert asked["answer"].endswith("the right one")
        second = 3 if how == "wrong letter or segment" else 2
        steps = [{"segment": n, "caption": f"{caption}, {n}", "thought": "so it is"} for n in (1, second)]
        reply = {"steps": steps, "reasoning": "Taken together it is so."}
    if how == "unknown key":
        reply["confidence"] = 1
    text = json.dumps(reply)
    if how == "fenced":
        text = f"<think>hm</think>\n```json\n{text}\n```"
    if how == "not json":
        text = f"Here it is: {text}"
    return (text[:-9], "length") if how == "cut off" else (text, "stop")


USABLE = ("fine", "fenced")


def expected(item: str, config: CurationConfig, first_step: str | None) -> tuple[str, int]:
    """What must become of an item by the rules: ``kept`` with the number of traces, or why not."""

    def call_fails(step: str, ordinal: int) -> bool:
        return drawn(TROUBLES, "trouble", item, step, ordinal) in ("refused", "dead")

    def usable_at(step: str, ordinal: int) -> tuple[str, int]:
        for _ in range(config.max_malformed + 1):
            if call_fails(step, ordinal):
                return "failed", ordinal
            ordinal += 1
            if drawn(TEACHER, "teacher", item, step, ordinal - 1) in USABLE:
                return "usable", ordinal
        return "malformed_reply", ordinal

    if first_step is not None and (first := usable_at(first_step, 0)[0]) != "usable":
        return first, 0
    traces = 0
    for attempt in range(config.max_regenerations + 1):
        outcome, traces = usable_at("trace", traces)
        if outcome != "usable":
            return outcome, 0
        if call_fails("judge", attempt):
            return "failed", 0
        if drawn(JUDGE, "judge", item, attempt) == "fine":
            return "kept", attempt + 1
    return ("kept", attempt + 1) if config.when_never_right == "keep" else ("judge_wrong", 0)


@pytest.fixture
def models(monkeypatch):
    monkeypatch.setenv("VTHINK_TEST_KEY", KEY)
    models = Models()
    yield models
    models.close()


@pytest.fixture
def folder(tmp_path) -> Path:
    frames = np.zeros((12, 32, 32, 3), np.uint8)
    frames[:, :, :16] = np.arange(12, dtype=np.uint8)[:, None, None, None] * 20
    write_mp4(tmp_path / "v.mp4", frames, 12 / VIDEO_S)
    prompts = tmp_path / "prompts"
    prompts.mkdir()
    for name, text in PROMPTS.items():
        (prompts / f"{name}.jinja").write_text(text)
    return tmp_path


def settings(models: Models, folder: Path, **changes: Any) -> dict[str, Any]:
    endpoint = {
        "url": models.url,
        "api_key_env": "VTHINK_TEST_KEY",
        "concurrency": 6,
        "timeout_s": TIMEOUT_S,
        "retries": 4,
        "backoff_s": 0.02,
        "usd_per_million_input_tokens": 1.0,
        "usd_per_million_output_tokens": 10.0,
        "max_tokens": 400,
    }
    roles = {"teacher": endpoint | {"model": "t"}, "judge": endpoint | {"model": "j", "concurrency": 3}}
    return {**roles, "prompts": str(folder / "prompts"), "num_frames": 4, **changes}


def config_of(models: Models, folder: Path, **changes: Any) -> CurationConfig:
    return CurationConfig.load(settings(models, folder, **changes))


def captioned(folder: Path, count: int) -> Path:
    """Captioned segments of ``count`` videos."""
    videos = {}
    for number in range(count):
        name = f"clip {number}"
        (folder / f"{name}.mp4").symlink_to(folder / "v.mp4")
        about = {
            "duration": VIDEO_S,
            "timestamps": [[1.5, 3.2], [0, 1.5]],
            "sentences": [f"{name} ends", f"{name} begins"],
        }
        videos[name] = about
    path = folder / "captions.json"
    path.write_text(json.dumps(videos))
    return path


def questions(folder: Path, count: int) -> Path:
    """Questions without segments."""
    rows = [
        {
            "id": f"clip {number}",
            "media": {"kind": "video", "uri": "v.mp4"},
            "question": f"What about clip {number}?",
            "options": ["the left one", "the right one", "no one"],
            "problem_type": "multiple_choice",
            "answer": "B",
            "metadata": {"kind": "test"},
        }
        for number in range(count)
    ]
    path = folder / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def rows_of(path: Path) -> dict[str, Sample]:
    rows = list(read_samples(path))
    assert all(isinstance(row, Sample) for row in rows)
    return {row.id: row for row in rows}


def dropped_of(path: Path) -> dict[str, str]:
    lines = path.with_suffix(".dropped.jsonl").read_text().splitlines()
    return {entry["id"]: entry["reason"] for entry in map(json.loads, lines)}


def check(summary: Summary, output: Path, count: int, config: CurationConfig, first_step: str | None) -> Counter[str]:
    """The outcome of every item is what the rules say; returns how often each outcome was expected."""
    rows, dropped = rows_of(output), dropped_of(output)
    failed = {failure.partition(": ")[0] for failure in summary.failed}
    outcomes: Counter[str] = Counter()
    for number in range(count):
        item = f"clip {number}"
        outcome, attempts = expected(item, config, first_step)
        outcomes[outcome] += 1
        got = "kept" if item in rows else "failed" if item in failed else dropped.get(item)
        assert got == outcome, f"{item}: expected {outcome}, got {got}"
        if outcome == "kept":
            provenance = rows[item].metadata["curation"]
            assert provenance["attempts"] == attempts
            assert (provenance["teacher"], provenance["judge"]) == ("t", "j")
    assert list(rows) == [f"clip {n}" for n in range(count) if f"clip {n}" in rows], "not in the order of the source"
    assert summary.rows == outcomes["kept"]
    return outcomes


def test_of_captioned_segments_exactly_what_the_rules_say_is_kept(models, folder):
    count = 120
    config = config_of(models, folder, max_malformed=1)
    output = folder / "curated.jsonl"
    summary = curate(captioned(folder, count), output, config)
    outcomes = check(summary, output, count, config, "question")
    with pytest.raises(AssertionError, match="expected judge_wrong, got kept"):  # the check can fail
        check(summary, output, count, config.model_copy(update={"max_regenerations": 0}), "question")
    assert min(outcomes[name] for name in ("kept", "failed", "malformed_reply", "judge_wrong")) > 0, outcomes
    assert not models.wrong_requests
    assert {trouble for _, trouble in models.seen} == {*TROUBLES, "fine"}
    assert max(models.answered.values()) == 1
    assert models.most_at_once["t"] <= 6
    assert models.most_at_once["j"] <= 3
    assert KEY not in "".join(path.read_text() for path in folder.glob("curated.*"))
    for row in rows_of(output).values():
        target = parse_response(write_response(row, "video_thinker"))
        assert [(s.start_s, s.end_s) for s in target.segments] == [(0.0, 1.5), (1.5, 3.0)]  # cut at the video's end
        assert [s.caption for s in target.segments] == [e.caption for e in row.evidence]
        assert row.options["ABCD".index(row.answer)] == "the right one"
        assert write_response(row, "video_r1").endswith(f"<answer>{row.answer}</answer>")
    validated = validate_rows(str(output))
    assert validated.ok, validated.problems
    letters = Counter(row.answer for row in rows_of(output).values())
    assert len(letters) == 4, "the teacher's favourite letter was kept"


@pytest.mark.parametrize(("when_never_right", "judge_sees_video"), [("drop", False), ("keep", True)])
def test_of_questions_exactly_what_the_rules_say_is_kept(models, folder, when_never_right, judge_sees_video):
    count = 40
    changes = {"when_never_right": when_never_right, "judge_sees_video": judge_sees_video, "max_regenerations": 1}
    config = config_of(models, folder, **changes)
    models.shown_frames |= {"judge"} if judge_sees_video else set()
    output = folder / "curated.jsonl"
    summary = curate(questions(folder, count), output, config)
    outcomes = check(summary, output, count, config, "captions")
    assert outcomes["kept"]
    assert bool(outcomes["judge_wrong"]) == (when_never_right == "drop")
    verdicts = {row.metadata["curation"]["verdict"] for row in rows_of(output).values()}
    assert verdicts == ({"right"} if when_never_right == "drop" else {"right", "wrong"})
    assert not models.wrong_requests
    assert all(row.metadata["kind"] == "test" for row in rows_of(output).values())


def test_of_sampled_traces_those_above_the_threshold_are_kept(models, folder):
    count = 40
    config = config_of(models, folder, method="cot", max_kept=2)
    output = folder / "curated.jsonl"
    models.troubles = {name: share for name, share in TROUBLES.items() if name not in ("refused", "dead")}
    summary = curate(questions(folder, count), output, config)
    rows = rows_of(output)
    expected_rows = {}
    for number in range(count):
        item = f"clip {number}"
        # The calls of an item are made side by side, so which of them is which is not known; how many pass is.
        passed = sum(drawn(COT, "cot", item, k) == "fine" for k in range(config.num_traces))
        for n in range(min(passed, 2)):
            expected_rows[item if n == 0 else f"{item}-trace2"] = passed / config.num_traces
    assert {name: row.metadata["curation"]["pass_rate"] for name, row in rows.items()} == expected_rows
    assert summary.dropped == {"low_reward": count - sum("-" not in name for name in expected_rows)}
    assert summary.dropped["low_reward"]
    assert not models.wrong_requests
    for row in rows.values():
        assert write_response(row, "video_r1") == f"<think>{row.reasoning}</think>\n<answer>B</answer>"


def start(folder: Path, source: Path, output: Path, changes: dict[str, Any], key: str = KEY) -> subprocess.Popen[str]:
    path = folder / "config.yaml"
    path.write_text(json.dumps({"extends": "laptop", "curation": changes}))
    command = [*VTHINK, "data", "curate", str(source), "-o", str(output), "--config", str(path)]
    environment = {**clean_environment(), "VTHINK_TEST_KEY": key}
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def wait_for_answers(models: Models, process: subprocess.Popen[str], count: int) -> None:
    deadline = time.monotonic() + 120
    while models.answered.total() < count:
        assert process.poll() is None, process.stdout.read()
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_killed_at_any_time_it_asks_nothing_twice_that_is_in_its_journal(models, folder):
    count = 40
    source, output = captioned(folder, count), folder / "curated.jsonl"
    changes = settings(models, folder)
    models.delay_s = 0.03
    journal = output.with_suffix(".journal.jsonl")
    for kills, answers in ((1, 20), (2, 70)):
        process = start(folder, source, output, changes)
        wait_for_answers(models, process, answers)
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        time.sleep(0.2)  # what the server has under way
        texts = {
            json.loads(line).get("text") for line in journal.read_text().splitlines(keepends=True) if line[-1] == "\n"
        }
        known = {digest for digest, text in models.text_of.items() if text in texts}
        assert len(known) >= answers - 9 * kills  # each kill loses at most the calls that were under way
        seen = len(models.seen)
        with journal.open("ab") as file:
            file.write(b'{"key": "torn in the mid')
    models.delay_s = 0.0
    process = start(folder, source, output, changes)
    printed, _ = process.communicate(timeout=240)
    again = {digest for digest, _ in models.seen[seen:]}
    assert again
    assert not again & known
    assert sum(times - 1 for times in models.answered.values()) <= 2 * 9
    # The same as of a run that was never stopped.
    config = config_of(models, folder)
    failed = [f"clip {n}" for n in range(count) if expected(f"clip {n}", config, "question")[0] == "failed"]
    summary = Summary(rows=len(rows_of(output)), failed=[f"{name}: " for name in failed])
    check(summary, output, count, config, "question")
    assert process.returncode == (3 if failed else 0), printed
    assert "Traceback" not in printed
    assert "answers from the journal" in printed
    before = output.read_bytes()
    asked = len(models.seen)
    last = curate(source, output, config)
    assert output.read_bytes() == before
    assert {trouble for _, trouble in models.seen[asked:]} <= {"dead", "refused"}  # nothing but what failed
    assert not last.account.calls


def test_the_budget_is_never_exceeded_and_more_of_it_goes_on(models, folder):
    count = 24
    source, output = captioned(folder, count), folder / "curated.jsonl"
    models.troubles = {}
    unlimited = curate(source, folder / "all.jsonl", config_of(models, folder))
    need = unlimited.account.usd
    assert need == pytest.approx(unlimited.account.calls.total() * (100 * 1.0 + 50 * 10.0) / 1e6)
    asked = len(models.seen)
    first = curate(source, output, config_of(models, folder, budget_usd=need / 2))
    assert not first.complete
    most_usd = (1000 * 1.0 + 400 * 10.0) / 1e6  # of a call
    assert need / 2 - most_usd < first.account.usd <= need / 2
    assert "budget" in first.account.stop_reason
    assert set(rows_of(output)) < set(rows_of(folder / "all.jsonl"))
    second = curate(source, output, config_of(models, folder, budget_usd=2 * need))
    assert second.complete
    assert second.account.usd == pytest.approx(need)
    assert len(models.seen) - asked == asked, "a call was made twice"
    assert output.read_bytes() == (folder / "all.jsonl").read_bytes()


def test_interrupted_it_waits_for_calls_under_way_and_writes_what_is_decided(models, folder):
    source, output = captioned(folder, 40), folder / "curated.jsonl"
    models.delay_s = 0.1
    process = start(folder, source, output, settings(models, folder))
    wait_for_answers(models, process, 30)
    process.send_signal(signal.SIGINT)
    printed, _ = process.communicate(timeout=60)
    assert process.returncode == 130, printed
    assert "Traceback" not in printed
    assert "what is finished is kept" in printed
    assert max(models.answered.values()) == 1
    texts = {json.loads(line).get("text") for line in output.with_suffix(".journal.jsonl").read_text().splitlines()}
    assert {models.text_of[digest] for digest in models.answered} <= texts, "an answer that was waited for was lost"
    rows_of(output)


def test_a_changed_prompt_is_asked_afresh_and_what_came_before_it_is_not(models, folder):
    source, output = captioned(folder, 10), folder / "curated.jsonl"
    models.troubles = {}
    first = curate(source, output, config_of(models, folder))
    before = rows_of(output)
    (folder / "prompts/judge.jinja").write_text(PROMPTS["judge"].replace('"step"', '"version": 2, "step"'))
    second = curate(source, output, config_of(models, folder))
    assert first.replayed == 0
    assert second.replayed >= 20  # questions and first traces
    assert second.account.calls["judge"] >= 10
    hashes = [
        {row.metadata["curation"]["prompts"]["judge"] for row in rows.values()} for rows in (before, rows_of(output))
    ]
    assert len(hashes[0]) == len(hashes[1]) == 1
    assert hashes[0] != hashes[1]
    output.with_suffix(".journal.jsonl").unlink()
    with pytest.raises(UserError, match="without the journal of a curation"):
        curate(source, output, config_of(models, folder))
    output.unlink()
    third = curate(source, output, config_of(models, folder))
    assert third.replayed == 0
    assert third.account.calls["teacher"] >= 20


def test_a_source_and_its_videos_in_a_store_are_read_there(models, folder, storage):
    models.troubles = {}
    here = questions(folder, 4)
    root = storage.config.root_uri
    for path in (here, folder / "v.mp4"):
        storage.upload_file(path, root + path.name)
    output = folder / "curated.jsonl"
    summary = curate(root + "rows.jsonl", output, config_of(models, folder), storage)
    assert summary.complete
    assert {row.media.uri for row in rows_of(output).values()} == {root + "v.mp4"}
    storage.delete(root + "v.mp4")
    curate(root + "rows.jsonl", folder / "again.jsonl", config_of(models, folder), storage)
    assert set(dropped_of(folder / "again.jsonl").values()) == {"missing_media"}
    with pytest.raises(UserError, match="is in a store; say which one"):
        curate(root + "rows.jsonl", output, config_of(models, folder))
    (folder / "empty.jsonl").touch()
    with pytest.raises(UserError, match=r"empty\.jsonl: there are no rows in it"):
        curate(folder / "empty.jsonl", folder / "nothing.jsonl", config_of(models, folder))
    assert not (folder / "nothing.jsonl").exists()


def test_a_server_that_asks_for_a_pause_gets_it_from_all_calls(models, folder):
    models.troubles, models.first_retry_after_s, models.delay_s = {}, 2, 0.2
    assert curate(captioned(folder, 12), folder / "curated.jsonl", config_of(models, folder)).complete
    after_s = sorted(arrived - min(models.arrived_s) for arrived in models.arrived_s)
    at_once = [later for later in after_s if later < 1.0]
    assert len(at_once) <= 6, "calls that were under way already"
    assert after_s[len(at_once)] >= 1.9


def test_media_that_cannot_be_used_cost_nothing_and_may_be_there_the_next_time(models, folder):
    models.troubles = {}
    source, output = captioned(folder, 5), folder / "curated.jsonl"
    about = json.loads(source.read_text())
    about["clip 3"]["timestamps"] = [[0, 1], [1, 99]]
    source.write_text(json.dumps(about))
    (folder / "clip 0.mp4").unlink()
    (folder / "clip 1.mp4").unlink()
    (folder / "clip 1.mp4").write_bytes((folder / "v.mp4").read_bytes()[:700])
    first = curate(source, output, config_of(models, folder))
    unusable = {"clip 0": "missing_media", "clip 1": "damaged_media", "clip 3": "bad_segments"}
    assert unusable.items() <= dropped_of(output).items()
    assert first.complete
    assert not {"clip 0", "clip 1", "clip 3"} & {models.item_of(digest) for digest, _ in models.seen}
    for name in ("clip 0.mp4", "clip 1.mp4"):
        (folder / name).unlink(missing_ok=True)
        (folder / name).symlink_to(folder / "v.mp4")
    asked = len(models.seen)
    curate(source, output, config_of(models, folder))
    assert dropped_of(output)["clip 3"] == "bad_segments"
    assert {models.item_of(digest) for digest, _ in models.seen[asked:]} == {"clip 0", "clip 1"}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"teacher": {"url": None}}, "curation.teacher.url is not set"),
        ({"judge": {"model": ""}}, "curation.judge.model is not set"),
        ({"teacher": {"api_key_env": "VTHINK_NO_SUCH_KEY"}}, "VTHINK_NO_SUCH_KEY is not set"),
    ],
)
def test_settings_without_which_nothing_can_be_asked_are_one_line(models, folder, change, message):
    given = settings(models, folder)
    for role, fields in change.items():
        given[role] = given[role] | fields
    with pytest.raises(EndpointError, match=message):
        curate(captioned(folder, 3), folder / "curated.jsonl", CurationConfig.load(given))
    assert not models.seen
    assert not (folder / "curated.jsonl").exists()


def test_a_server_that_is_gone_is_given_up_after_a_while(models, folder):
    given = settings(models, folder)
    given["teacher"] |= {"retries": 1, "backoff_s": 0.01}
    source, output = captioned(folder, 40), folder / "curated.jsonl"
    models.close()
    with pytest.raises(
        EndpointError, match=r"20 calls in a row failed; the last: the teacher at .* cannot be reached .*, 2 times"
    ):
        curate(source, output, CurationConfig.load(given))
    assert not rows_of(output)


def test_a_refused_key_ends_the_run_with_the_next_thing_to_look_at(models, folder, monkeypatch):
    monkeypatch.setenv("VTHINK_TEST_KEY", "an old key")
    process = start(folder, captioned(folder, 30), folder / "curated.jsonl", settings(models, folder), "an old key")
    printed, _ = process.communicate(timeout=60)
    assert process.returncode == 1
    assert "HTTP 401" in printed
    assert "VTHINK_TEST_KEY" in printed
    assert "an old key" not in printed
    assert "Traceback" not in printed
    assert len(models.seen) <= 6, "it went on asking"
