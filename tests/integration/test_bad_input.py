"""Bad input through the command line: a clear line or a quarantined row each, never a traceback or a silent loss."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from mlflow import MlflowClient
from vthink.components.common.launch.process import free_port
from vthink.components.common.rows.prepared import PreparedSet
from vthink.components.common.storage.config import StorageConfig
from vthink.components.common.storage.manifest import Manifest
from vthink.components.common.video.clip import stored
from vthink.components.common.video.decode import read_clip
from vthink.components.data_prep.world.synthesize import write_mp4

MICRO = str(Path(__file__).with_name("micro.yaml"))
Vthink = Callable[..., subprocess.CompletedProcess[str]]


def row(name: str, uri: str, **changes: Any) -> dict[str, Any]:
    """A good row."""
    return {
        "id": name,
        "media": {"kind": "video", "uri": uri},
        "question": "Which way does it move?",
        "options": ["left", "right"],
        "problem_type": "multiple_choice",
        "answer": "B",
        "split": "train",
        **changes,
    }


def without(row: Mapping[str, Any], *fields: str) -> dict[str, Any]:
    return {name: value for name, value in row.items() if name not in fields}


def moving_square(number: int) -> np.ndarray:
    """Sixteen frames of 64 × 64; the colour of the square is that video's own."""
    frames = np.full((16, 64, 64, 3), 20, np.uint8)
    colour = [(230, 40, 40), (40, 230, 40), (40, 40, 230), (230, 230, 40)][number]
    for index, frame in enumerate(frames):
        frame[24:40, 3 * index : 3 * index + 16] = colour
    return frames


def write_sound(path: Path) -> None:
    """An mp4 that holds sound alone."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("aac", rate=16000, layout="mono")
        for start in range(0, 16000, 1024):
            tone = np.sin(2 * np.pi * 440 * np.arange(start, start + 1024) / 16000).astype(np.float32)
            sound = av.AudioFrame.from_ndarray(tone[None], format="fltp", layout="mono")
            sound.sample_rate, sound.pts = 16000, start
            container.mux(stream.encode(sound))
        container.mux(stream.encode(None))


def write_index_first(source: Path, path: Path) -> None:
    """The same video with its index before the pictures, so that a part of the file can be opened."""
    with av.open(str(source)) as reader, av.open(str(path), "w", options={"movflags": "faststart"}) as writer:
        stream = writer.add_stream_from_template(reader.streams.video[0])
        for packet in reader.demux(reader.streams.video[0]):
            if packet.dts is not None:
                packet.stream = stream
                writer.mux(packet)


GOOD = ("good-0", "good-1", "good-2", "good-3")
BAD: dict[str, tuple[dict[str, Any] | str, str, str]] = {
    "empty file": (row("bad-empty", "empty.mp4"), "damaged_media", "empty"),
    "truncated mp4": (row("bad-cut", "cut.mp4"), "damaged_media", ""),
    "truncated mp4 that opens": (row("bad-cut-late", "cut-late.mp4"), "damaged_media", ""),
    "audio-only file": (row("bad-sound", "sound.mp4"), "damaged_media", "no video"),
    "text named .mp4": (row("bad-text", "text.mp4"), "damaged_media", ""),
    "row with missing fields": (without(row("bad-fields", "0.mp4"), "question"), "unreadable_row", "question"),
    "unknown problem type": (row("bad-type", "0.mp4", problem_type="multiple_chioce"), "unreadable_row", "multiple_ch"),
    "options without the answer": (row("bad-answer", "0.mp4", answer="C"), "unreadable_row", "letters A to B"),
    "no file": (row("bad-gone", "gone.mp4"), "missing_media", "no such file"),
    "half a line": ('{"id": "bad-half", "media": {"kin', "unreadable_row", "not JSON"),
}
"""By name of the case: a row, the kind of reason it is quarantined for, and words that the reason must hold."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Files good and bad, and ``rows.jsonl``: every bad row has a good one before or after it."""
    folder = tmp_path_factory.mktemp("bad-input")
    for number in range(len(GOOD)):
        write_mp4(folder / f"{number}.mp4", moving_square(number), 4.0)
    whole = (folder / "1.mp4").read_bytes()
    (folder / "empty.mp4").write_bytes(b"")
    (folder / "cut.mp4").write_bytes(whole[: len(whole) // 2])
    write_index_first(folder / "1.mp4", folder / "index-first.mp4")
    movable = (folder / "index-first.mp4").read_bytes()
    (folder / "cut-late.mp4").write_bytes(movable[: len(movable) * 4 // 5])
    write_sound(folder / "sound.mp4")
    (folder / "text.mp4").write_text("This is not a video.\n" * 100)
    lines: list[str] = []
    for index, (bad, _, _) in enumerate(BAD.values()):
        if index % 3 == 0:
            lines.append(json.dumps(row(GOOD[index // 3], f"{index // 3}.mp4")))
        lines.append(bad if isinstance(bad, str) else json.dumps(bad))
    (folder / "rows.jsonl").write_text("\n".join(lines) + "\n")
    return folder


@pytest.fixture(scope="module")
def prepared(folder: Path, vthink: Vthink) -> tuple[subprocess.CompletedProcess[str], Path]:
    """``vthink data prepare rows.jsonl``, and the folder in the store that it filled."""
    done = vthink(
        folder, "data", "prepare", "rows.jsonl", "--config", MICRO, "--set", "data.max_quarantined=0.8"
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done, folder / ".vthink/s3" / done.stdout.split()[-1].removeprefix("s3://").removesuffix("manifest.json")


def told(done: subprocess.CompletedProcess[str]) -> str:
    """The one line of a command that failed because of what it was given."""
    assert done.returncode == 1
    assert "Traceback" not in done.stdout + done.stderr
    lines = [line for line in done.stderr.splitlines() if line.startswith("vthink: ")]
    assert len(lines) == 1, done.stderr
    return lines[0]


def quarantine(prepared: Path) -> dict[int, dict[str, Any]]:
    """What was left out, by line."""
    lines = (prepared / "quarantine.jsonl").read_text("utf-8").splitlines()
    return {entry["line"]: entry for entry in map(json.loads, lines)}


# --- rows and files: quarantined, beside good rows that are not ---


@pytest.mark.parametrize("case", BAD)
def test_a_bad_row_is_quarantined_with_its_reason(
    case: str, folder: Path, prepared: tuple[subprocess.CompletedProcess[str], Path]
) -> None:
    bad, reason, words = BAD[case]
    text = bad if isinstance(bad, str) else json.dumps(bad)
    line = (folder / "rows.jsonl").read_text().splitlines().index(text) + 1
    entry = quarantine(prepared[1])[line]
    assert entry["reason"] == reason
    assert words in entry["detail"]
    assert entry["detail"]
    assert "\n" not in entry["detail"]
    assert "Traceback" not in entry["detail"]


def test_no_row_is_lost(folder: Path, prepared: tuple[subprocess.CompletedProcess[str], Path]) -> None:
    done, store = prepared
    counts = json.loads((store / "manifest.json").read_text("utf-8"))["counts"]
    assert counts["rows_in"] == len((folder / "rows.jsonl").read_text().splitlines()) == len(GOOD) + len(BAD)
    assert counts["rows_in"] == counts["rows_out"] + counts["quarantined"]
    assert counts["quarantined"] == len(BAD) == len(quarantine(store))
    assert f"quarantined: {len(BAD)}" in done.stdout
    assert "Traceback" not in done.stdout + done.stderr


def test_the_good_rows_beside_bad_ones_keep_their_own_frames(
    folder: Path, prepared: tuple[subprocess.CompletedProcess[str], Path]
) -> None:
    store = prepared[1]
    written = json.loads((store / "manifest.json").read_text("utf-8"))
    found = PreparedSet(store, Manifest.load(without(written, "sha256"), "manifest.json"))
    items = found.split("train")
    assert [item.sample.id for item in items] == list(GOOD)
    for number, item in enumerate(items):
        expected = stored(read_clip(folder / f"{number}.mp4", found.video, "video"), found.video)
        assert np.array_equal(item.clip.frames, expected.frames)
    # The check can fail: another video's frames are others.
    assert not np.array_equal(items[0].clip.frames, items[1].clip.frames)


@pytest.mark.parametrize("case", ["row with missing fields", "unknown problem type", "options without the answer"])
def test_validation_lists_a_bad_row_with_its_line(case: str, folder: Path, vthink: Vthink) -> None:
    (folder / "two.jsonl").write_text(json.dumps(row("good", "0.mp4")) + "\n" + json.dumps(BAD[case][0]) + "\n")
    done = vthink(folder, "data", "validate", "two.jsonl")
    assert done.returncode == 1
    problem, total, types, media = done.stdout.splitlines()
    assert problem.startswith("two.jsonl:2: ")
    assert BAD[case][2] in problem
    assert total == "two.jsonl: 1 rows are fine, 1 are not (format vthink)"
    assert types == "  types: multiple_choice 1; sources: no source 1; splits: train 1"
    assert media == "  videos and images: 1, of which 0 are missing"
    assert done.stderr == ""


def test_validation_passes_good_rows(folder: Path, vthink: Vthink) -> None:
    rows = [row(name, f"{number}.mp4") for number, name in enumerate(GOOD)]
    (folder / "good.jsonl").write_text("".join(json.dumps(entry) + "\n" for entry in rows))
    done = vthink(folder, "data", "validate", "good.jsonl")
    assert done.returncode == 0
    assert done.stdout.splitlines()[0] == "good.jsonl: 4 rows are fine, 0 are not (format vthink)"


# --- what cannot be worked with at all: one line ---


def test_a_run_on_rows_that_are_all_bad_says_which_and_why(tmp_path: Path, vthink: Vthink) -> None:
    (tmp_path / "empty.mp4").write_bytes(b"")
    (tmp_path / "rows.jsonl").write_text(json.dumps(row("one", "empty.mp4")) + "\n")
    line = told(vthink(tmp_path, "run", "--config", MICRO, "--set", "data.source=rows.jsonl"))
    assert line.startswith("vthink: rows: rows.jsonl: 1 of 1 rows cannot be used, the first in line 1")
    assert "empty" in line


@pytest.mark.parametrize("content", ["", "\n\n"])
def test_rows_that_are_empty_are_one_line(content: str, tmp_path: Path, vthink: Vthink) -> None:
    (tmp_path / "rows.jsonl").write_text(content)
    done = vthink(tmp_path, "data", "prepare", "rows.jsonl", "--config", MICRO)
    assert told(done) == "vthink: rows.jsonl: there are no rows in it"


@pytest.mark.parametrize(
    ("typo", "place", "near"),
    [
        ("grpo: {learning_rat: 1.0e-5}", "grpo.learning_rat", "learning_rate"),
        ("evalution: {max_items: 3}", "evalution", "evaluation"),
        ("sft: {max_steps: many}", "sft.max_steps", "integer"),
        ("sft: [", "mine.yaml:3", "not YAML"),
    ],
)
def test_a_configuration_with_a_typo_is_one_line_with_file_and_key(
    typo: str, place: str, near: str, tmp_path: Path, vthink: Vthink
) -> None:
    (tmp_path / "mine.yaml").write_text(f"extends: laptop\n{typo}\n")
    done = vthink(tmp_path, "run", "--config", "mine.yaml")
    line = told(done)
    assert line.startswith("vthink: mine.yaml")
    assert place in line
    assert near in line
    assert done.stderr.strip() == line
    assert not (tmp_path / ".vthink").exists()


def store_environment(monkeypatch: pytest.MonkeyPatch, endpoint: str, **keys: str) -> None:
    """Make a child of ours use this endpoint (`vthink` alone would leave out what other tests set)."""
    for name in ("AWS_PROFILE", "AWS_SESSION_TOKEN", "AWS_ENDPOINT_URL_S3", "MLFLOW_TRACKING_URI"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("VTHINK_S3_ENDPOINT", endpoint)
    for name, value in keys.items():
        monkeypatch.setenv(name, value)


def vthink_in_this_environment(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "vthink.pipelines.cli.main", *arguments]
    env = {**os.environ, "NO_COLOR": "1", "COLUMNS": "160", "AWS_EC2_METADATA_DISABLED": "true"}
    return subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True, check=False, timeout=300)


COMMANDS = [("run", "--config", MICRO), ("data", "prepare", "rows.jsonl", "--config", MICRO)]


@pytest.mark.parametrize("command", COMMANDS)
def test_an_unreachable_object_store_is_one_line(
    command: tuple[str, ...], folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    endpoint = f"http://127.0.0.1:{free_port()}"
    store_environment(monkeypatch, endpoint, AWS_ACCESS_KEY_ID="key", AWS_SECRET_ACCESS_KEY="secret")
    line = told(vthink_in_this_environment(folder, *command))
    assert endpoint in line
    assert "cannot be reached" in line or "cannot reach" in line


@pytest.mark.parametrize("command", COMMANDS)
def test_wrong_keys_for_the_object_store_are_one_line(
    command: tuple[str, ...], folder: Path, s3: StorageConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    store_environment(monkeypatch, str(s3.endpoint_url), AWS_SECRET_ACCESS_KEY="not-the-secret")
    line = told(vthink_in_this_environment(folder, *command))
    assert f"{s3.endpoint_url} denied access" in line
    assert "check the keys" in line
    assert "not-the-secret" not in line


def test_no_keys_for_the_object_store_are_one_line(
    folder: Path, s3: StorageConfig, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    store_environment(monkeypatch, str(s3.endpoint_url), HOME=str(tmp_path))
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    assert "credentials" in told(vthink_in_this_environment(folder, *COMMANDS[1]))


def prepare_one_row(
    folder: Path, s3: StorageConfig, monkeypatch: pytest.MonkeyPatch, prefix: str
) -> subprocess.CompletedProcess[str]:
    store_environment(monkeypatch, str(s3.endpoint_url))
    (folder / "one.jsonl").write_text(json.dumps(row("good", "0.mp4")) + "\n")
    settings = (f"storage.bucket={s3.bucket}", f"storage.prefix={prefix}", f"tracking.experiment={prefix.strip('/')}")
    changes = [part for setting in settings for part in ("--set", setting)]
    return vthink_in_this_environment(folder, "data", "prepare", "one.jsonl", "--config", MICRO, *changes)


def test_the_right_keys_for_the_same_store_work(
    folder: Path, s3: StorageConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    done = prepare_one_row(folder, s3, monkeypatch, "right/")
    assert done.returncode == 0, done.stderr
    assert "rows_out: 1" in done.stdout


def test_an_experiment_whose_artifacts_lie_in_another_store_is_refused_before_the_work(
    folder: Path, s3: StorageConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert prepare_one_row(folder, s3, monkeypatch, "moved/").returncode == 0
    database = f"sqlite:///{folder}/.vthink/mlflow.db"
    elsewhere = MlflowClient(database).create_experiment("elsewhere", artifact_location="s3://no-such-bucket/mlflow")
    assert elsewhere
    line = told(prepare_one_row(folder, s3, monkeypatch, "elsewhere/"))
    assert "s3://no-such-bucket/mlflow" in line
    assert "tracking.experiment" in line
