"""The media of a shard: decoded once, resumed where a kill left them, each failure with its reason."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from vthink.components.common.storage.manifest import Manifest
from vthink.components.common.storage.names import join
from vthink.components.common.video.clip import stored
from vthink.components.common.video.decode import read_clip
from vthink.components.data_prep import merge
from vthink.components.data_prep import plan as plan_module
from vthink.components.data_prep import shard as shard_module

from .conftest import Run, Source, make_row, rows_of


def test_a_video_is_decoded_and_stored_once_for_all_its_questions(run: Run, source: Source) -> None:
    rows = [make_row(number, f"videos/{number % 2}.mp4") for number in range(6)]
    manifest = run(source(rows), shards=2)
    assert manifest.counts["rows_out"] == 6
    assert manifest.counts["media"] == 2
    assert manifest.metrics["frames"] == 2 * 4
    assert manifest.metrics["bytes_per_frame"] > 0
    assert manifest.details["codec"] == "jpeg"


def test_a_file_that_the_decoder_cannot_afford_has_a_reason_of_its_own(
    run: Run, source: Source, tmp_path: Path
) -> None:
    from PIL import Image

    Image.new("L", (11_000, 11_000)).save(tmp_path / "large.png")
    frugal = Run(run.context, run.video.model_copy(update={"decode_memory_mib": 256}))
    rows = [
        *rows_of(2),
        make_row(2, "", media={"kind": "image", "uri": str(tmp_path / "large.png")}),
        make_row(3, "videos/3.mp4"),
    ]
    manifest = frugal(source(rows), max_quarantined=0.5)
    (left,) = frugal.quarantine(manifest)
    assert (left["id"], left["reason"]) == ("row-2", "decode_limit")
    assert "decode_memory_mib" in left["detail"]
    assert manifest.counts["quarantined_decode_limit"] == 1
    assert manifest.counts["rows_out"] == 3


@pytest.mark.parametrize("wanted", [12, 13])
def test_videos_shorter_than_wanted_are_left_out(wanted: int, run: Run, source: Source, tmp_path: Path) -> None:
    from PIL import Image

    Image.new("RGB", (64, 64), "red").save(tmp_path / "image.png")
    image = make_row(2, "", media={"kind": "image", "uri": str(tmp_path / "image.png")})
    manifest = run(source([*rows_of(2), image]), max_quarantined=0.9, min_video_frames=wanted)
    left = {row["id"]: (row["reason"], row["detail"]) for row in run.quarantine(manifest)}
    short = ("short_video", f"12 frames, fewer than data.min_video_frames={wanted}")
    assert left == ({} if wanted == 12 else {"row-0": short, "row-1": short})


def test_a_file_is_fetched_and_decoded_once_for_all_its_parts(
    run: Run, source: Source, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    parts = [{"kind": "video", "uri": "videos/0.mp4", "start_s": n / 20, "end_s": n / 20 + 1} for n in range(40)]
    rows = [make_row(n, "", media=part) for n, part in enumerate(parts)]
    rows.append(make_row(40, "", media={**parts[0], "end_s": 9, "start_s": 8}))
    fetched: list[int] = []
    fetch_file = shard_module.Fetcher.__call__
    monkeypatch.setattr(
        shard_module.Fetcher,
        "__call__",
        lambda self, file: (fetched.append(len(file.parts)), fetch_file(self, file))[1],
    )
    manifest = run(source(rows), max_quarantined=0.1)
    assert sorted(fetched) == [9, 32]  # so many at once fit into memory
    (beyond,) = run.quarantine(manifest)
    assert (beyond["id"], beyond["reason"]) == ("row-40", "damaged_media")
    train = run.open(manifest, tmp_path / "cache").split("train")
    for index in (0, 7, 31, 39):
        part = parts[index]
        clip = read_clip(tmp_path / "source/videos/0.mp4", run.video, "video", part["start_s"], part["end_s"])
        assert (train[index].clip.frames == stored(clip, run.video).frames).all()


def test_a_killed_shard_goes_on_where_it_was_and_gives_the_same_files(
    run: Run, source: Source, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = run.arguments(source(rows_of(12)), workers=1)
    (shard,) = plan_module.plan_data(*arguments)
    prefix = json.loads(shard)["prefix"]
    script = (
        "import sys\n"
        "from vthink.components.common.storage.s3 import Storage\n"
        "from vthink.components.data_prep import shard\n"
        "shard.PART_MEDIA = 3\n"
        "send = Storage.write_json\n"
        "Storage.write_json = lambda *a: (send(*a), print('part', flush=True), sys.stdin.readline())\n"
        "shard.prepare_shard(*sys.argv[1:])\n"
    )
    killed = subprocess.Popen(
        [sys.executable, "-c", script, *arguments, shard],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    assert killed.stdin is not None
    assert killed.stdout is not None
    assert killed.stdout.readline() == "part\n"
    killed.stdin.write("\n")
    killed.stdin.flush()
    assert killed.stdout.readline() == "part\n"
    os.killpg(killed.pid, signal.SIGKILL)
    killed.wait()

    def parts() -> dict[str, bytes]:
        found = run.storage.list(join(prefix, "shards/"))
        return {item.uri: run.storage.read_bytes(item.uri) for item in found}

    before = parts()
    assert len(before) == 2
    monkeypatch.setattr(shard_module, "PART_MEDIA", 3)
    decoded: list[str] = []
    fetch_file = shard_module.Fetcher.__call__
    monkeypatch.setattr(
        shard_module.Fetcher, "__call__", lambda self, file: (decoded.append(file.uri), fetch_file(self, file))[1]
    )
    done = shard_module.prepare_shard(*arguments, shard)
    assert len(decoded) == 12 - 6
    assert {uri: data for uri, data in parts().items() if uri in before} == before
    manifest = Manifest.read(run.storage, merge.merge_data(*arguments, [done]))
    undisturbed = Run(run.context.model_copy(update={"redo": {"prepare": 1}}), run.video)
    other = undisturbed(json.loads(arguments[1])["source"], workers=2)
    assert manifest.counts == other.counts
    files, others = manifest.details["files"], other.details["files"]
    assert {n: f for n, f in files.items() if n != "README.md"} == {n: f for n, f in others.items() if n != "README.md"}


def test_a_record_that_was_cut_off_while_being_written_counts_as_not_there(run: Run, source: Source) -> None:
    arguments = run.arguments(source(rows_of(2)))
    (shard,) = plan_module.plan_data(*arguments)
    done = shard_module.prepare_shard(*arguments, shard)
    whole = run.storage.read_bytes(done)
    run.storage.write_bytes(done, whole[: len(whole) // 2])
    assert shard_module.prepare_shard(*arguments, shard) == done
    assert json.loads(run.storage.read_bytes(done))["parts"] == 1
