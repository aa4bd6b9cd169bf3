"""From rows to a prepared data set: nothing is lost, nothing is done twice, and bad input is named."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from vthink.components.common.errors import UserError
from vthink.components.common.rows.files import write_samples
from vthink.components.common.rows.sample import Sample
from vthink.components.common.storage.manifest import Manifest
from vthink.components.common.storage.names import StorageError, join, sha256_file
from vthink.components.data_prep import prepare
from vthink.components.data_prep.config import SynthesizeConfig
from vthink.components.data_prep.plan import plan_data

from .conftest import Run, Source, make_row, rows_of, write_rows


def test_parts_of_a_video_are_media_of_their_own(run: Run, source: Source, tmp_path: Path) -> None:
    whole = {"kind": "video", "uri": "videos/0.mp4"}
    rows = [make_row(0, "", media=whole), make_row(1, "", media={**whole, "start_s": 1.0, "end_s": 2.0})]
    train = run.open(run(source(rows)), tmp_path / "cache").split("train")
    assert [row.clip.duration_s for row in train] == [pytest.approx(3.0), pytest.approx(1.0)]


def test_rows_and_videos_may_be_in_the_store(run: Run, squares: Path, tmp_path: Path) -> None:
    base = join(run.context.storage.root_uri, "source/")
    write_samples(tmp_path / "rows.parquet", [Sample.model_validate(row) for row in rows_of(3)])
    run.storage.upload_file(tmp_path / "rows.parquet", base + "rows.parquet")
    for number in range(2):
        run.storage.upload_file(squares / f"videos/{number}.mp4", f"{base}videos/{number}.mp4")
    manifest = run(base + "rows.parquet", max_quarantined=0.5)
    assert manifest.counts["rows_out"] == 2
    (missing,) = run.quarantine(manifest)
    assert (missing["line"], missing["reason"], missing["uri"]) == (3, "missing_media", f"{base}videos/2.mp4")


def test_a_generated_world_is_prepared_with_images_and_its_files_are_in_the_store(run: Run, tmp_path: Path) -> None:
    world = SynthesizeConfig(num_train=6, num_validation=2, num_test=2, images=0.3)
    manifest = run("synthesize", synthesize=world)
    assert manifest.counts["quarantined"] == 0
    data = run.open(manifest, tmp_path / "cache")
    assert data.split_names == ["test", "train", "validation"]
    rows = data.split("train")
    assert {row.clip.kind for row in rows} == {"video", "image"}
    for row in rows:
        local_file = tmp_path / "fetched"
        run.storage.download_file(row.sample.media.uri, local_file)
        assert sha256_file(local_file) == row.sample.media.sha256


def bad_media(folder: Path, squares: Path) -> dict[str, str]:
    """Files that are no videos, and what the quarantine says about each."""
    whole = (squares / "videos/0.mp4").read_bytes()
    (folder / "empty.mp4").touch()
    (folder / "truncated.mp4").write_bytes(whole[: len(whole) * 2 // 3])
    (folder / "text.mp4").write_text("this is text\n" * 50)
    import av
    import numpy as np

    with av.open(str(folder / "sound.mp4"), "w") as container:
        stream: Any = container.add_stream("aac", rate=16000)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
        frame.sample_rate = 16000
        container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return {
        "empty.mp4": "empty",
        "truncated.mp4": "truncated",
        "text.mp4": "text",
        "sound.mp4": "no video stream",
        "nowhere.mp4": "no such file",
    }


def test_every_bad_row_is_quarantined_with_its_line_and_nothing_is_lost(
    run: Run, source: Source, squares: Path, tmp_path: Path
) -> None:
    files = bad_media(tmp_path, squares)
    rows: list[dict[str, Any] | str] = [
        make_row(0, "videos/0.mp4"),
        *[make_row(10 + i, str(tmp_path / name)) for i, name in enumerate(files)],
        {"id": "no-question"},
        make_row(20, "videos/1.mp4", problem_type="essay"),
        make_row(21, "videos/1.mp4", answer="C"),
        "{not json",
        make_row(22, "https://example.org/a.mp4"),
        make_row(0, "videos/2.mp4"),
        make_row(23, "", media={"kind": "video", "uri": "videos/3.mp4", "sha256": "0" * 64}),
        make_row(24, "", media={"kind": "video", "uri": "videos/3.mp4", "start_s": 100.0}),
        make_row(25, "videos/4.mp4"),
    ]
    manifest = run(source(rows), shards=3, max_quarantined=1.0)
    assert manifest.counts["rows_in"] == len(rows)
    assert manifest.counts["rows_out"] == 2
    assert manifest.counts["rows_in"] == manifest.counts["rows_out"] + manifest.counts["quarantined"]
    found = {row["line"]: row for row in run.quarantine(manifest)}
    expected = [("missing_media" if name == "nowhere.mp4" else "damaged_media", word) for name, word in files.items()]
    expected += [
        ("unreadable_row", "Field required"),
        ("unreadable_row", "problem_type"),
        ("unreadable_row", "letters A to B"),
        ("unreadable_row", "not JSON"),
        ("missing_media", "https://"),
        ("duplicate_id", "line 1"),
        ("sha256_mismatch", "SHA-256"),
        ("outside_video", "3 s long"),
    ]
    assert sorted(found) == list(range(2, len(rows)))
    for line, (reason, word) in enumerate(expected, 2):
        assert found[line]["reason"] == reason, found[line]
        assert word in found[line]["detail"], found[line]
    by_reason = {name: n for name, n in manifest.counts.items() if name.startswith("quarantined_")}
    assert sum(by_reason.values()) == manifest.counts["quarantined"]
    assert by_reason["quarantined_damaged_media"] == 4
    assert found[10]["raw"] == "{not json"


def test_a_source_that_is_mostly_bad_stops_the_stage_and_may_be_tolerated_later(run: Run, source: Source) -> None:
    path = source([make_row(0, "videos/0.mp4"), make_row(1, "nowhere/1.mp4")])
    with pytest.raises(UserError, match=r"1 of 2 rows cannot be used .*line 2 .*no such file") as error:
        run(path)
    assert "\n" not in str(error.value)
    assert run(path, max_quarantined=0.5).counts["rows_out"] == 1


def test_a_source_that_cannot_be_read_is_one_clear_error(run: Run, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such file"):
        run(str(tmp_path / "missing.jsonl"))
    (tmp_path / "rows.parquet").write_bytes(b"no parquet")
    with pytest.raises(UserError, match="Parquet"):
        run(str(tmp_path / "rows.parquet"))
    with pytest.raises(StorageError, match="does not exist"):
        run(join(run.context.storage.root_uri, "missing.jsonl"))


def test_the_same_work_is_done_once_and_other_work_goes_elsewhere(run: Run, source: Source) -> None:
    path = source(rows_of(2))
    first = run(path)
    assert run(path) == first
    assert run(path, workers=1).uri == first.uri
    other_video = Run(run.context, run.video.model_copy(update={"num_frames": 2}))
    redone = Run(run.context.model_copy(update={"redo": {"prepare": 1}}), run.video)
    prefixes = {first.uri}
    for other in (other_video, redone):
        prefixes |= {json.loads(shard)["prefix"] for shard in plan_data(*other.arguments(path))}
    write_rows(Path(path), rows_of(3))
    prefixes |= {json.loads(shard)["prefix"] for shard in plan_data(*run.arguments(path))}
    assert len(prefixes) == 4


def test_rows_of_a_published_format_are_prepared_and_ids_that_only_count_rows_may_repeat(
    run: Run, source: Source, tmp_path: Path
) -> None:
    row = {
        "problem": "Which way?",
        "data_type": "video",
        "problem_type": "multiple choice",
        "options": ["A. left", "B. right"],
        "solution": "<answer>B</answer>",
        "data_source": "mine",
    }
    rows = [{**row, "problem_id": 7, "path": f"./{n}.mp4"} for n in range(3)]
    path = Path(source([])).with_name("r1.json")
    path.write_text(json.dumps(rows))
    manifest = run(str(path), roots={"mine": "videos"})
    assert manifest.details["format"] == "video_r1"
    train = run.open(manifest, tmp_path / "cache").split("train")
    assert [item.sample.id for item in train] == ["7", "7#2", "7#3"]


_SLOWLY = """
import sys
from vthink.components.data_prep import prepare, shard
shard.PART_MEDIA = 2
fetch_file = shard.Fetcher.__call__
shard.Fetcher.__call__ = lambda self, file: (print(file.uri, flush=True), fetch_file(self, file))[1]
print(prepare.prepare_data(*sys.argv[1:]), flush=True)
"""


def parts_done(run: Run) -> set[str]:
    """Names of the videos in finished parts."""
    found = [item.uri for item in run.storage.list(run.context.storage.root_uri) if "/part-" in item.uri]
    ids = {media_id for uri in found for media_id in json.loads(run.storage.read_bytes(uri))["media"]}
    files = [item.uri for item in run.storage.list(run.context.storage.root_uri) if "/plan/files-" in item.uri]
    lines = [json.loads(line) for uri in files for line in run.storage.read_bytes(uri).splitlines()]
    return {line["uri"] for line in lines if line["parts"][0][0] in ids}


def test_killed_at_random_points_it_resumes_without_redoing_finished_parts(run: Run, source: Source) -> None:
    import random

    arguments = run.arguments(source(rows_of(12)), workers=1, shards=2)
    rng = random.Random(0)
    for _ in range(3):
        finished = parts_done(run)
        process = subprocess.Popen(
            [sys.executable, "-c", _SLOWLY, *arguments], stdout=subprocess.PIPE, text=True, start_new_session=True
        )
        assert process.stdout is not None
        seen: list[str] = []
        for line in process.stdout:
            if line.strip().endswith(".mp4"):
                seen.append(line.strip())
            if len(seen) == 2:
                break
        time.sleep(rng.uniform(0.0, 1.0))
        os.killpg(process.pid, signal.SIGKILL)
        seen += [line.strip() for line in process.stdout if line.strip().endswith(".mp4")]
        process.wait()
        assert not finished & set(seen)
    manifest = Manifest.read(run.storage, prepare.prepare_data(*arguments))
    assert manifest.counts["rows_out"] == manifest.counts["media"] == 12


def test_two_preparations_at_once_do_not_disturb_each_other(run: Run, source: Source, tmp_path: Path) -> None:
    arguments = run.arguments(source(rows_of(10)), workers=1, shards=2)
    processes = [
        subprocess.Popen([sys.executable, "-c", _SLOWLY, *arguments], stdout=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    ended = [process.communicate()[0].splitlines()[-1] for process in processes]
    assert [process.returncode for process in processes] == [0, 0]
    assert ended[0] == ended[1]
    manifest = Manifest.read(run.storage, ended[0])
    assert manifest.counts["rows_out"] == 10
    train = run.open(manifest, tmp_path / "cache").split("train")
    assert len({row.clip.frames.tobytes() for row in train}) == 10
    alone = Run(run.context.model_copy(update={"redo": {"prepare": 1}}), run.video)(
        json.loads(arguments[1])["source"], workers=1, shards=2
    )
    assert alone.counts == manifest.counts
    frames = [row.clip.frames.tobytes() for row in run.open(alone, tmp_path / "alone").split("train")]
    assert frames == [row.clip.frames.tobytes() for row in train]


def test_preparing_loads_no_torch() -> None:
    script = "import sys, vthink.components.data_prep.prepare; print({'torch', 'transformers'} & set(sys.modules))"
    start = time.monotonic()
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "set()"
    assert time.monotonic() - start < 30
