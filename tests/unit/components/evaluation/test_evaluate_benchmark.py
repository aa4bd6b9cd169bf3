"""Benchmarks asked of real models: a tiny Qwen2.5-VL in this process, and OpenAI-compatible servers over HTTP."""

from __future__ import annotations

import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner
from vthink.components.common.errors import UserError
from vthink.components.common.model import generation
from vthink.components.common.model.config import ModelConfig, TinyModelConfig
from vthink.components.common.model.folder import ModelCard, save_model
from vthink.components.common.model.load import load_model
from vthink.components.common.model.store import ensure_base_model
from vthink.components.common.model.tiny import build_tiny
from vthink.components.common.storage.s3 import Storage
from vthink.components.common.tracking.client import registry_client
from vthink.components.common.tracking.config import TrackingConfig
from vthink.components.common.video.clip import stored
from vthink.components.common.video.config import VideoConfig
from vthink.components.common.video.workers import Decoder
from vthink.components.data_prep.config import SynthesizeConfig
from vthink.components.data_prep.world.synthesize import synthesize
from vthink.components.evaluation.benchmarks.folder import DataFolder, load_questions
from vthink.components.evaluation.benchmarks.registry import BENCHMARKS
from vthink.components.evaluation.conditions import RELIANCE
from vthink.components.evaluation.config import PROTOCOLS, EvaluationConfig
from vthink.components.evaluation.evaluate_benchmark import evaluate_benchmark, under_protocol
from vthink.components.evaluation.models import open_model
from vthink.components.evaluation.results import Result
from vthink.pipelines.cli.main import app

from .published import FORMATS, Published, expected_scores

VIDEO = VideoConfig(num_frames=4, min_pixels=3136, max_pixels=3136)
MODEL = ModelConfig(prompt="compact/1")
CONFIG = EvaluationConfig(max_new_tokens=6, batch_size=8, decode_workers=1, bootstrap_resamples=200, request_attempts=3)


@pytest.fixture(scope="module")
def videos(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Four real mp4 files."""
    folder = tmp_path_factory.mktemp("world")
    synthesize(SynthesizeConfig(num_train=0, num_validation=0, num_test=4), folder)
    return sorted((folder / "videos").glob("*.mp4"))


@pytest.fixture(scope="module")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model folder with its card."""
    folder = tmp_path_factory.mktemp("model") / "tiny"
    model, processor = build_tiny(TinyModelConfig(), VIDEO, 0)
    save_model(folder, model, processor, ModelCard(prompt="compact/1", video=VIDEO))
    return folder


def run(name: str, data: Path | str, model: Path | str, output: Path, **more: Any) -> Result:
    config = more.pop("config", CONFIG)
    work_dir = output.parent / "work"
    return evaluate_benchmark(
        name, str(data), str(model), output, config=config, model_config=MODEL, work_dir=work_dir, **more
    )


def items_in(output: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (output / "items.jsonl").read_text().splitlines()]


def holmes(folder: Path, videos: list[Path], questions: int = 12, films: int = 4) -> Published:
    published = FORMATS["video-holmes"](random.Random(0), questions, films)
    published.write(folder, videos)
    return published


# -- in this process -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", FORMATS)
def test_every_benchmark_runs_from_its_published_files_to_its_scores(name, videos, tiny_model, tmp_path: Path):
    published = FORMATS[name](random.Random(0), 24 if name == "cg-bench-reasoning" else 12, 4)
    places = list(published.videos.values())
    data = published.write(tmp_path / "data", videos)
    damaged = next(iter(data.rglob(Path(places[1]).name)))
    damaged.unlink()
    damaged.write_bytes(videos[1].read_bytes()[: videos[1].stat().st_size // 2])
    result = run(name, data, tiny_model, tmp_path / "out")

    assert (
        Result.model_validate_json((tmp_path / "out" / "result.json").read_text()).model_dump_json()
        == result.model_dump_json()
    )
    items = items_in(tmp_path / "out")
    assert len(items) == result.items == len(published.truths)
    failed = {row["id"]: row["error"] for row in items if row["error"]}
    assert {failure.id for failure in result.failed} == set(failed)
    kinds = Counter(error.split(":")[0] for error in failed.values())
    assert kinds["no video"] >= 1  # the last video is missing in every set
    assert kinds["DecodeError"] >= 1
    assert not any(row["correct"] or row["value"] for row in items if row["error"])
    answered = [row for row in items if not row["error"]]
    assert answered
    assert all(row["token_ids"] and row["duration_s"] > 0 for row in answered)
    benchmark = BENCHMARKS.get(name)
    counted = [row for row in items if row["value"] is not None]
    assert result.metrics[result.headline].n == len(counted)
    assert set(result.metrics) >= set(benchmark.scores)
    assert result.settings.video["num_frames"] == 4


def test_answers_are_those_of_the_engine_asked_one_by_one(videos, tiny_model, tmp_path: Path):
    holmes(tmp_path / "data", videos)
    run("video-holmes", tmp_path / "data", tiny_model, tmp_path / "out")
    model = load_model(tiny_model)
    rows = json.loads((tmp_path / "data" / "test_Video-Holmes.json").read_text())
    found = {row["id"]: row["token_ids"] for row in items_in(tmp_path / "out")}
    with Decoder(VIDEO) as decoder:
        for row in rows:
            if row["video ID"] == "film3":
                continue
            clip = stored(decoder.read(tmp_path / "data" / "videos" / f"{row['video ID']}.mp4"), VIDEO)
            options = [text for text in row["Options"].values() if text]
            prompt = model.encoder.encode(row["Question"], options, "multiple_choice", clip)
            limit = generation.Sampling(max_new_tokens=6)
            [[completion]] = generation.sample(model.model, model.encoder, [prompt], limit)
            assert found[f"{row['video ID']}-{row['Question ID']}"] == completion.token_ids
    assert len({tuple(ids) for ids in found.values()}) > 2  # equal tokens say something


def test_a_video_is_decoded_once_and_its_questions_share_one_tensor_of_pixels(
    videos, tiny_model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    holmes(tmp_path / "data", videos, questions=32)
    decoded: list[str] = []
    batches: list[tuple[int, int]] = []
    blind = 0
    read, sample = Decoder.read, generation.sample

    def counting_read(self: Decoder, path: Path, *more: Any) -> Any:
        decoded.append(Path(path).name)
        return read(self, path, *more)

    def counting_sample(model: Any, encoder: Any, prompts: Any, *more: Any, **named: Any) -> Any:
        nonlocal blind
        if named["blind"]:
            blind += len(prompts)
        else:
            batches.append((len(prompts), len({id(prompt.pixel_values) for prompt in prompts})))
        return sample(model, encoder, prompts, *more, **named)

    monkeypatch.setattr(Decoder, "read", counting_read)
    monkeypatch.setattr(generation, "sample", counting_sample)
    result = run("video-holmes", tmp_path / "data", tiny_model, tmp_path / "out", reliance=True)
    assert sorted(decoded) == ["film0.mp4", "film1.mp4", "film2.mp4"]
    assert sum(questions for questions, _ in batches) == 4 * 24  # four conditions, the missing video's apart
    assert blind == 24
    assert all(questions == 8 * tensors for questions, tensors in batches)  # 8 questions a video
    assert set(result.conditions) == {"ordered", *RELIANCE}
    assert set(result.reliance) == set(RELIANCE)
    for cell in result.conditions.values():
        assert cell.scores["accuracy"].n == 32
        assert cell.failed == 8


def test_a_protocol_sets_frames_pixels_and_sampling(oracle: Oracle, tiny_model, tmp_path: Path):
    result = run("video-holmes", tmp_path / "data", oracle.url, tmp_path / "out", protocol="video_r1", num_frames=32)
    settings = result.settings
    assert (settings.temperature, settings.top_p, settings.max_new_tokens) == (0.1, 0.001, 1024)
    assert settings.protocol == "video_r1"
    assert {(body["temperature"], body["top_p"], body["max_tokens"]) for body in oracle.bodies} == {(0.1, 0.001, 1024)}
    assert result.left_out["frames"] == "an endpoint takes frames and pixels as it was started"
    _, override = under_protocol(CONFIG, "video_thinker", 64)
    video = open_model(str(tiny_model), MODEL, CONFIG, tmp_path, override=override).video
    assert video is not None
    assert (video.num_frames, video.max_pixels) == (64, PROTOCOLS["video_thinker"].max_pixels)
    assert open_model(str(tiny_model), MODEL, CONFIG, tmp_path).video == VIDEO
    with pytest.raises(UserError, match="unknown protocol 'video_r2'; there are: video_r1, video_thinker"):
        under_protocol(CONFIG, "video_r2", None)


def test_a_batch_that_is_too_large_for_memory_is_asked_in_smaller_ones(
    videos, tiny_model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    holmes(tmp_path / "data", videos)
    clean = run("video-holmes", tmp_path / "data", tiny_model, tmp_path / "clean")
    sample, sizes, never = generation.sample, [], "number 4?"  # of film 0

    def small_memory(model: Any, encoder: Any, prompts: Any, *more: Any, **named: Any) -> Any:
        sizes.append(len(prompts))
        if len(prompts) > 2 or any(never in encoder.decode(prompt.input_ids) for prompt in prompts):
            raise torch.cuda.OutOfMemoryError("out of memory")
        return sample(model, encoder, prompts, *more, **named)

    monkeypatch.setattr(generation, "sample", small_memory)
    result = run("video-holmes", tmp_path / "data", tiny_model, tmp_path / "out")
    failed = {failure.id: failure.error for failure in result.failed if "no video" not in failure.error}
    assert failed == {"film0-1": "OutOfMemoryError: out of memory"}
    before, after = ({row["id"]: row for row in items_in(tmp_path / out)} for out in ("clean", "out"))
    assert all(after[name]["token_ids"] == row["token_ids"] for name, row in before.items() if name not in failed)
    assert max(sizes) > 2
    assert result.items == clean.items


def test_a_plain_hugging_face_folder_is_asked_with_the_prompt_of_the_settings(videos, tiny_model, tmp_path: Path):
    plain = tmp_path / "plain"
    shutil.copytree(tiny_model, plain)
    (plain / "vthink.json").unlink()
    holmes(tmp_path / "data", videos, questions=4)
    result = run("video-holmes", tmp_path / "data", plain, tmp_path / "out", video=VIDEO)
    other = run("video-holmes", tmp_path / "data", tiny_model, tmp_path / "other")
    assert result.model.prompt == "compact/1"
    assert [r["token_ids"] for r in items_in(tmp_path / "out")] == [
        r["token_ids"] for r in items_in(tmp_path / "other")
    ]
    assert result.metrics == other.metrics
    assert not (plain / "vthink.json").exists()


def test_model_and_videos_may_lie_in_the_store_and_the_model_in_the_registry(
    videos, storage: Storage, tracking: TrackingConfig, tmp_path: Path
):
    uri = ensure_base_model(storage, MODEL, VIDEO)
    holmes(tmp_path / "data", videos)
    for path in sorted((tmp_path / "data").rglob("*")):
        if path.is_file():
            storage.upload_file(path, f"{storage.config.root_uri}sets/holmes/{path.relative_to(tmp_path / 'data')}")
    client = registry_client(tracking, storage.config)
    client.create_registered_model("thinker")
    version = client.create_model_version("thinker", uri)
    client.set_registered_model_alias("thinker", "champion", version.version)
    where: dict[str, Any] = {"storage": storage, "tracking": tracking}
    remote = f"{storage.config.root_uri}sets/holmes"
    by_alias = run("video-holmes", remote, "models:/thinker@champion", tmp_path / "out", **where)
    by_prefix = run("video-holmes", tmp_path / "data", uri, tmp_path / "other", **where)
    assert (by_alias.model.version, by_alias.model.source, by_alias.model.kind) == (1, uri, "registry")
    assert by_alias.model.fingerprint == by_prefix.model.fingerprint
    assert by_alias.metrics == by_prefix.metrics
    assert len(by_alias.failed) == 3
    assert not list((tmp_path / "work").glob("fetched-*"))  # videos do not pile up
    with pytest.raises(UserError, match=r"model 'models:/thinker@chump': .*chump"):
        run("video-holmes", remote, "models:/thinker@chump", tmp_path / "no", **where)
    with pytest.raises(UserError, match="a registered model is models:/name@alias or models:/name/3"):
        run("video-holmes", remote, "models:/thinker", tmp_path / "no", **where)


@pytest.mark.parametrize(
    ("data", "model", "said"),
    [
        ("nowhere", "tiny", "nowhere: there is no such folder"),
        ("empty", "tiny", "empty: nothing there"),
        ("data", "nothing", "model 'nothing': no such folder, and no object store to look in"),
        ("s3://bucket/set/", "tiny", "s3://bucket/set/: no object store to look in"),
    ],
)
def test_what_is_not_there_is_named(data, model, said, videos, tiny_model, tmp_path: Path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    holmes(tmp_path / "data", videos)
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=said):
        run("video-holmes", data, tiny_model if model == "tiny" else model, tmp_path / "out")


# -- an endpoint -----------------------------------------------------------------------------------------------


@dataclass
class Oracle:
    """An OpenAI-compatible server with scripted answers, failures and refusals; it is asked over HTTP."""

    answers: dict[str, str]
    """By number of the question."""
    trouble: dict[str, list[int]] = field(default_factory=dict)
    """HTTP statuses that a question gets, one per attempt, before its answer; 0: the connection breaks."""
    asked: list[str] = field(default_factory=list)
    bodies: list[dict[str, Any]] = field(default_factory=list)
    url: str = ""
    headers: list[str | None] = field(default_factory=list)

    def start(self) -> ThreadingHTTPServer:
        oracle = self

        class Handler(BaseHTTPRequestHandler):
            def log_message(self, *_: object) -> None:
                pass

            def reply(self, status: int, body: Any) -> None:
                data = json.dumps(body).encode()
                self.send_response(status)
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            def do_GET(self) -> None:
                self.reply(200, {"data": [{"id": "oracle-7b", "object": "model", "owned_by": "someone"}]})

            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                text = body["messages"][-1]["content"][-1]["text"]
                number = re.search(r"number (\d+)", text)[1]
                status = oracle.trouble[number].pop(0) if oracle.trouble.get(number) else 200
                if status == 0:
                    self.close_connection = True
                    self.connection.close()
                    return
                if status != 200:
                    return self.reply(status, {"error": {"message": "not\nnow"}})
                oracle.asked.append(number)
                oracle.bodies.append(body)
                oracle.headers.append(self.headers.get("Authorization"))
                message = {
                    "role": "assistant",
                    "content": f"<think>so</think><answer>{oracle.answers[number]}</answer>",
                }
                self.reply(200, {"choices": [{"message": message, "finish_reason": "stop"}]})

        server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{server.server_port}"
        threading.Thread(target=server.serve_forever, daemon=True).start()
        return server


@pytest.fixture
def oracle(videos, tmp_path: Path) -> Iterator[Oracle]:
    """A server that knows every second answer to the questions in ``tmp_path / "data"``."""
    published = holmes(tmp_path / "data", videos, questions=32)
    answers = {
        str(number): truth["answer"] if number % 2 else "ABC".replace(truth["answer"], "")[0]
        for number, truth in enumerate(published.truths)
    }
    oracle = Oracle(answers)
    server = oracle.start()
    yield oracle
    server.shutdown()
    server.server_close()


def test_an_endpoint_is_sent_the_video_with_the_whole_prompt(oracle: Oracle, tmp_path: Path, monkeypatch):
    monkeypatch.setenv("VTHINK_API_KEY", "sesame")
    model = ModelConfig(prompt="video_thinker/1")
    result = evaluate_benchmark(
        "video-holmes",
        str(tmp_path / "data"),
        f"{oracle.url}/v1/",
        tmp_path / "out",
        config=CONFIG,
        model_config=model,
        work_dir=tmp_path / "work",
        reliance=True,
    )
    # 32 questions on 4 videos: the last video is missing, of the others every odd question is answered right.
    right = sum(number % 2 for number in range(32) if number % 4 != 3)
    assert result.metrics["accuracy"].value == pytest.approx(right / 32)
    assert result.metrics["accuracy"].n == 32
    seen = [body for body in oracle.bodies if "data:video" in json.dumps(body)]
    blind = [body for body in oracle.bodies if body not in seen]
    there = [number for number in range(32) if number % 4 != 3]
    assert len(seen) == len(blind) == len(there)
    assert sorted(map(int, oracle.asked)) == sorted([*there, *there])
    assert {block["type"] for body in blind for block in body["messages"][1]["content"]} == {"text"}
    assert result.model.name == "oracle-7b"
    assert set(result.left_out) == set(RELIANCE) - {"blind"}
    body = seen[0]
    assert (body["model"], body["temperature"], body["max_tokens"]) == ("oracle-7b", 0.0, 6)
    assert [message["role"] for message in body["messages"]] == ["system", "user"]
    video, text = body["messages"][1]["content"]
    assert video["video_url"]["url"].startswith("data:video/mp4;base64,")
    assert "\nA. clue A of" in text["text"]
    assert "Put only the letter" in text["text"]
    assert set(oracle.headers) == {"Bearer sesame"}


@pytest.mark.parametrize("name", FORMATS)
def test_scores_over_http_equal_an_independent_computation_over_more_than_200_answers(name, oracle, videos, tmp_path):
    rng = random.Random(name)
    questions = 480 if name in ("cg-bench-reasoning", "tempcompass") else 240
    published = FORMATS[name](rng, questions, 5)
    data = published.write(tmp_path / name, videos * 3)
    found = BENCHMARKS.get(name)
    folder = DataFolder(name, [path.relative_to(data).as_posix() for path in data.rglob("*") if path.is_file()])
    read = load_questions(found, folder, lambda file: data / file)
    said: list[str | None] = []
    oracle.answers = {}
    for sample, truth in zip(read.samples, published.truths, strict=True):
        text = rng.choice([truth["answer"], *truth["says"]])
        oracle.answers[re.search(r"number (\d+)", sample.question)[1]] = text
        fails = sample.id in read.missing or truth.get("clip", (None, None)) != (None, None)
        said.append(None if fails else text)
    assert len(oracle.answers) == len(said) >= 200  # every question by its number
    config = CONFIG.model_copy(update={"batch_size": 256})
    result = run(name, data, oracle.url, tmp_path / "out", config=config)
    assert 0 < len(result.failed) == said.count(None) < len(said)
    expected, _, _ = expected_scores(name, published.truths, said)
    assert {score: result.metrics[score].value for score in expected} == pytest.approx(expected, abs=1e-6)
    assert all(0 < value < 1 for value in expected.values())


def test_a_question_that_fails_at_an_endpoint_is_repeated_then_wrong_and_touches_no_other(
    oracle: Oracle, tmp_path: Path, monkeypatch
):
    pauses: list[int] = []
    monkeypatch.setattr(
        "vthink.components.common.retry.Backoff.pause_s", lambda self, failures: pauses.append(failures) or 0.0
    )
    clean = run("video-holmes", tmp_path / "data", oracle.url, tmp_path / "clean")
    oracle.trouble = {"1": [503, 429], "5": [0, 0], "9": [500, 500, 500], "13": [400]}
    result = run("video-holmes", tmp_path / "data", oracle.url, tmp_path / "out")
    failed = {failure.id: failure.error for failure in result.failed if "no video" not in failure.error}
    assert failed == {
        "film1-2": f"CallFailedError: {oracle.url} answered HTTP 500: not now, 3 times",  # question 9
        "film1-3": f"CallFailedError: {oracle.url} answered HTTP 400: not now",  # question 13, not repeated
    }
    before, after = ({row["id"]: row for row in items_in(tmp_path / out)} for out in ("clean", "out"))
    assert all(after[name]["response"] == row["response"] for name, row in before.items() if name not in failed)
    lost = clean.metrics["accuracy"].value - result.metrics["accuracy"].value
    assert lost == pytest.approx(2 / 32, abs=1e-6)
    assert sorted(pauses) == [1, 1, 1, 2, 2, 2]  # before the second and third attempts at questions 1, 5 and 9
    # what failed can be asked again, and nothing else is
    oracle.asked.clear()
    again = run("video-holmes", tmp_path / "data", oracle.url, tmp_path / "out", retry_failed=True)
    assert sorted(oracle.asked) == ["13", "9"]
    assert again.metrics == clean.metrics


def test_an_endpoint_that_fails_every_question_ends_the_evaluation_without_recording_it(
    oracle: Oracle, tmp_path: Path, monkeypatch
):
    monkeypatch.setattr("vthink.components.common.retry.Backoff.pause_s", lambda self, failures: 0.0)
    oracle.trouble = {str(number): [500] * 9 for number in range(32)}
    with pytest.raises(UserError, match=r"all 8 items of a batch failed .*HTTP 500"):
        run("video-holmes", tmp_path / "data", oracle.url, tmp_path / "out")
    assert {row["error"].split(":")[0] for row in items_in(tmp_path / "out")} == {"no video"}
    oracle.trouble = {}
    result = run("video-holmes", tmp_path / "data", oracle.url, tmp_path / "out")
    assert len(result.failed) == 8


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("http://127.0.0.1:9", "http://127.0.0.1:9 cannot be reached"),
        ("http://", "'http://' is not a server's address"),
        ("http://[", "'http://[' is not a server's address"),
    ],
)
def test_an_address_without_a_server_is_one_line(url, said, tmp_path: Path):
    with pytest.raises(UserError, match=re.escape(said)) as raised:
        open_model(url, MODEL, CONFIG, tmp_path)
    assert "\n" not in str(raised.value)


def test_a_part_of_a_video_is_not_silently_asked_as_the_whole(oracle: Oracle, videos, tmp_path: Path):
    published = FORMATS["mvbench"](random.Random(0), 12, 2)
    published.write(tmp_path / "mv", [*videos, *videos[:1]])
    oracle.answers = {str(number): "A" for number in range(9)}
    result = run("mvbench", tmp_path / "mv", oracle.url, tmp_path / "out")
    parts = [row for row in items_in(tmp_path / "out") if row["kind"] == "action_sequence"]
    assert len(parts) == 4
    assert all("part of a video" in row["error"] for row in parts)
    assert result.items == 12


# -- the command -----------------------------------------------------------------------------------------------


def command(*arguments: str) -> Any:
    return CliRunner().invoke(app, ["evaluate", *arguments], env={"COLUMNS": "200", "NO_COLOR": "1"})


def test_the_command_shows_the_scores_and_where_they_are(oracle: Oracle, tmp_path: Path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    done = command("--benchmark", "video-holmes", "--data", "data", "--model", oracle.url, "--output", "out/holmes")
    assert done.exit_code == 0, done.output
    right = sum(number % 2 for number in range(32) if number % 4 != 3) / 32
    assert re.search(rf"accuracy +{right:.3f} +\[[01]\.\d+, [01]\.\d+\] +32", done.output), done.output
    assert "Video-Holmes: 32 questions, 4 videos, 1 of them missing; 8 failed, counted as wrong" in done.output
    assert "out/holmes/result.json" in done.output
    assert json.loads(Path("out/holmes/result.json").read_text())["benchmark"] == "video-holmes"
    assert not Path(".vthink/s3").exists()  # nothing here needs a store


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--benchmark", "video-holmes", "--data", "d"], "--benchmark needs --model, --output"),
        (["--benchmark", "nonsense", "--data", "d", "--model", "m", "--output", "o"], "unknown benchmark 'nonsense'"),
        (["--benchmark", "mmvu", "--sft", "x"], "--sft, --grpo and --report are for the held-out split"),
        (["--model", "m", "--reliance"], "--model, --reliance only with --benchmark NAME"),
    ],
)
def test_a_mistake_on_the_command_line_is_one_line(arguments, said, tmp_path: Path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    done = command(*arguments)
    assert isinstance(done.exception, UserError)
    assert said in str(done.exception)
    assert "\n" not in str(done.exception)


def test_a_limited_number_of_items_is_a_random_choice_that_can_be_repeated(oracle: Oracle, tmp_path: Path):
    limited = CONFIG.model_copy(update={"max_items": 5})
    first = run("video-holmes", tmp_path / "data", oracle.url, tmp_path / "a", config=limited)
    run("video-holmes", tmp_path / "data", oracle.url, tmp_path / "b", config=limited)
    run("video-holmes", tmp_path / "data", oracle.url, tmp_path / "c", config=limited.model_copy(update={"seed": 1}))
    a, b, c = ([row["id"] for row in items_in(tmp_path / name)] for name in "abc")
    assert first.items == len(a) == 5
    assert a == b != c


# -- killed, and run again -------------------------------------------------------------------------------------


def test_cut_off_anywhere_it_asks_only_what_is_missing_and_ends_with_the_same_numbers(oracle: Oracle, tmp_path: Path):
    data, rng = tmp_path / "data", random.Random(3)
    whole = run("video-holmes", data, oracle.url, tmp_path / "out")
    asked_whole = Counter(oracle.asked)
    assert set(asked_whole.values()) == {1}
    journal = (tmp_path / "out" / "items.jsonl").read_bytes()
    for place, cut in enumerate([0, 1, len(journal) - 1, *rng.sample(range(len(journal)), 5)]):
        out = tmp_path / f"cut{place}"
        out.mkdir()
        shutil.copy(tmp_path / "out" / "settings.json", out)
        (out / "items.jsonl").write_bytes(journal[:cut])
        kept = [json.loads(line) for line in journal[:cut].split(b"\n")[:-1]]
        oracle.asked.clear()
        result = run("video-holmes", data, oracle.url, out)
        already = {row["id"] for row in kept}
        expected = [n for n in range(32) if n % 4 != 3 and f"film{n % 4}-{n // 4}" not in already]
        assert sorted(map(int, oracle.asked)) == expected
        assert (out / "items.jsonl").read_bytes() == journal
        assert result.asked_now == 32 - len(kept)
        different = {"asked_now", "seconds"}
        assert result.model_dump(exclude=different) == whole.model_dump(exclude=different)


def test_a_finished_evaluation_asks_nothing_and_loads_no_model(videos, tiny_model, tmp_path: Path, monkeypatch):
    holmes(tmp_path / "data", videos)
    first = run("video-holmes", tmp_path / "data", tiny_model, tmp_path / "out")

    def load(*_: object, **__: object) -> None:
        raise AssertionError("a model was loaded")

    monkeypatch.setattr("vthink.components.common.model.load.load_model", load)
    wider = CONFIG.model_copy(update={"confidence": 0.8, "batch_size": 3})
    again = run("video-holmes", tmp_path / "data", tiny_model, tmp_path / "out", config=wider)
    assert again.asked_now == 0
    assert again.metrics["accuracy"].value == first.metrics["accuracy"].value
    with pytest.raises(AssertionError, match="a model was loaded"):  # the control
        run("video-holmes", tmp_path / "data", tiny_model, tmp_path / "fresh")


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"config": CONFIG.model_copy(update={"temperature": 0.5})}, "temperature"),
        ({"protocol": "video_r1"}, "protocol, temperature, top_p, max_new_tokens"),
        ({"name": "videomme"}, "benchmark, questions, files"),
    ],
)
def test_a_folder_is_not_filled_with_two_evaluations(change, named, oracle: Oracle, videos, tmp_path: Path):
    FORMATS["videomme"](random.Random(0), 4, 4).write(tmp_path / "data", videos)
    run("video-holmes", tmp_path / "data", oracle.url, tmp_path / "out")
    name = change.get("name", "video-holmes")
    more = {key: value for key, value in change.items() if key != "name"}
    with pytest.raises(UserError, match=rf"out holds another evaluation \({named} differ\)"):
        run(name, tmp_path / "data", oracle.url, tmp_path / "out", **more)


@pytest.mark.slow
def test_a_killed_benchmark_resumes_and_ends_with_the_same_answers(videos, tiny_model, tmp_path: Path):
    holmes(tmp_path / "data", videos, questions=32)
    config = CONFIG.model_copy(update={"max_new_tokens": 32})
    whole = run("video-holmes", tmp_path / "data", tiny_model, tmp_path / "whole", config=config, reliance=True)
    code = (
        "import sys; from pathlib import Path; "
        "from vthink.components.evaluation.evaluate_benchmark import evaluate_benchmark as run; "
        "from vthink.components.evaluation.config import EvaluationConfig as E; "
        "from vthink.components.common.model.config import ModelConfig as M; d, m, o, w, c = sys.argv[1:]; "
        "run('video-holmes', d, m, Path(o), config=E.load(c), model_config=M(), work_dir=Path(w), reliance=True)"
    )
    arguments = [str(tmp_path / "data"), str(tiny_model), str(tmp_path / "out"), str(tmp_path / "w"), config.to_json()]
    items = tmp_path / "out" / "items.jsonl"

    def lines() -> int:
        return items.read_bytes().count(b"\n") if items.exists() else 0

    for target in (50, 90):
        kept = items.read_bytes() if items.exists() else b""
        with (tmp_path / "log").open("w") as log:
            process = subprocess.Popen(
                [sys.executable, "-c", code, *arguments],
                stdout=log,
                stderr=log,
                env={**os.environ, "OMP_NUM_THREADS": "1"},
            )
            while process.poll() is None and lines() < target:
                time.sleep(0.005)
            process.send_signal(signal.SIGKILL)
            process.wait()
        assert process.returncode == -signal.SIGKILL, (tmp_path / "log").read_text()[-2000:]
        assert items.read_bytes().startswith(kept)  # what was answered stays as it is
        assert target <= lines() < 5 * 32
    before = lines()
    result = run("video-holmes", tmp_path / "data", tiny_model, tmp_path / "out", config=config, reliance=True)
    assert result.asked_now == 5 * 32 - before
    assert items.read_bytes() == (tmp_path / "whole" / "items.jsonl").read_bytes()
    assert result.conditions == whole.conditions
