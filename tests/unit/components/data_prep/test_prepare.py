"""From rows to a prepared data set: nothing is lost, nothing is done twice, and bad input is named.

KFP reads the annotations of the pipeline below as objects, so there is no ``from __future__ import annotations``.
"""

import json
import multiprocessing
import os
import pickle
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from kfp import compiler, dsl, local
from vthink.components.common.context import RunContext
from vthink.components.common.errors import UserError
from vthink.components.common.rows.files import write_samples
from vthink.components.common.rows.prepared import PreparedSet
from vthink.components.common.rows.sample import Sample
from vthink.components.common.storage.manifest import Manifest
from vthink.components.common.storage.names import StorageError, join, sha256_file
from vthink.components.common.storage.s3 import Storage
from vthink.components.common.video.codec import stored
from vthink.components.common.video.config import VideoConfig
from vthink.components.common.video.decode import read_clip
from vthink.components.data_prep import component, merge, objects, prepare, validate
from vthink.components.data_prep import plan as plan_module
from vthink.components.data_prep import shard as shard_module
from vthink.components.data_prep import source as source_module
from vthink.components.data_prep import task as task_module
from vthink.components.data_prep.config import DataPrepConfig, SynthesizeConfig

from .conftest import make_row, write_rows

Source = Callable[[Sequence[Mapping[str, Any] | str]], str]


class Run:
    """Data preparation in this process, with its results at hand."""

    def __init__(self, context: RunContext, video: VideoConfig):
        self.context = context
        self.video = video
        self.storage = Storage(context.storage)

    def arguments(self, source: str, **section: Any) -> tuple[str, str, str]:
        config = DataPrepConfig(source=source, **{"workers": 1, **section})
        return self.context.to_json(), config.to_json(), self.video.to_json()

    def __call__(self, source: str, **section: Any) -> Manifest:
        return Manifest.read(self.storage, prepare.prepare_data(*self.arguments(source, **section)))

    def quarantine(self, manifest: Manifest) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.storage.read_bytes(manifest.files["quarantine"]).splitlines()]

    def open(self, manifest: Manifest, folder: Path, **options: Any) -> PreparedSet:
        return PreparedSet.open(self.storage, manifest.manifest_uri, folder, **options)


@pytest.fixture
def run(context: RunContext, video: VideoConfig) -> Run:
    return Run(context, video)


def rows_of(count: int, **changes: Any) -> list[dict[str, Any]]:
    return [make_row(number, f"videos/{number}.mp4", **changes) for number in range(count)]


# ----------------------------------------------------------------------------------------------------------- the result


@pytest.mark.parametrize(("store", "stream"), [("frames", False), ("smallest", False), ("frames", True)])
def test_rows_come_back_with_exactly_the_frames_that_the_server_would_make(
    store: str, stream: bool, run: Run, source: Source, squares: Path, tmp_path: Path
) -> None:
    path = source([*rows_of(3), make_row(5, "videos/5.mp4", split="test")])
    manifest = run(path, store=store)
    assert manifest.metrics["originals"] == (4 if store == "smallest" else 0)
    data = run.open(manifest, tmp_path / "cache", stream=stream)
    assert (data.folder / "media").exists() != stream
    assert data.split_names == ["test", "train"]
    assert data.video == run.video
    train = data.split("train")
    assert [row.sample.id for row in train] == ["row-0", "row-1", "row-2"]
    for number, row in enumerate(train):
        file = squares / f"videos/{number}.mp4"
        expected = stored(read_clip(file, run.video), run.video)
        assert (row.clip.frames == expected.frames).all()
        assert row.clip.times_s.tolist() == expected.times_s.tolist()
        assert (row.clip.duration_s, row.clip.kind) == (expected.duration_s, "video")
        assert row.sample.media.sha256 == sha256_file(file)
    with pytest.raises(UserError, match="there are: test, train"):
        data.split("validation")


def test_a_video_is_decoded_and_stored_once_for_all_its_questions(run: Run, source: Source) -> None:
    rows = [make_row(number, f"videos/{number % 2}.mp4") for number in range(6)]
    manifest = run(source(rows), shards=2)
    assert manifest.counts["rows_out"] == 6
    assert manifest.counts["media"] == 2
    assert manifest.metrics["frames"] == 2 * 4
    assert manifest.metrics["bytes_per_frame"] > 0
    assert manifest.details["codec"] == "jpeg"


def test_datasets_loads_the_folder_as_it_is(
    run: Run, source: Source, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = [*rows_of(3), make_row(9, "videos/9.mp4", split="test", metadata={"kind": "direction"})]
    data = run.open(run(source(rows), shards=2, store="frames"), tmp_path / "cache")
    datasets = pytest.importorskip("datasets")
    cache = str(tmp_path / "hf")
    loaded = datasets.load_dataset(str(data.folder), "rows", cache_dir=cache)
    media = datasets.load_dataset(str(data.folder), "media", cache_dir=cache)
    assert {split: len(loaded[split]) for split in loaded} == {"train": 3, "test": 1}
    assert {split: len(media[split]) for split in media} == {"train": 3, "test": 1}
    assert loaded["test"][0]["media_id"] == media["test"][0]["media_id"]
    assert json.loads(loaded["test"][0]["metadata"]) == {"kind": "direction"}
    assert media["test"][0]["frames"][0][:2] == b"\xff\xd8"


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


# ------------------------------------------------------------------------------------------------------------ bad input


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
        ("damaged_media", "3 s long"),
    ]
    assert sorted(found) == list(range(2, len(rows)))
    for line, (reason, word) in enumerate(expected, 2):
        assert found[line]["reason"] == reason, found[line]
        assert word in found[line]["detail"], found[line]
    by_reason = {name: n for name, n in manifest.counts.items() if name.startswith("quarantined_")}
    assert sum(by_reason.values()) == manifest.counts["quarantined"]
    assert by_reason["quarantined_damaged_media"] == 5
    assert found[10]["raw"] == "{not json"


def test_a_video_in_two_splits_stays_in_the_one_that_measures(
    run: Run, source: Source, squares: Path, tmp_path: Path
) -> None:
    shutil.copy(squares / "videos/3.mp4", tmp_path / "copy.mp4")
    rows = [
        make_row(0, "videos/0.mp4"),
        make_row(1, "videos/1.mp4", split="train"),
        make_row(2, "videos/1.mp4", split="validation"),
        make_row(3, "videos/3.mp4", split="train"),
        make_row(4, str(tmp_path / "copy.mp4"), split="test"),
    ]
    manifest = run(source(rows), max_quarantined=0.5, shards=2)
    assert {(q["line"], q["reason"]) for q in run.quarantine(manifest)} == {(2, "split_leak"), (4, "split_leak")}
    data = run.open(manifest, tmp_path / "cache")
    kept = {row.sample.id: row.clip.frames.shape for split in data.split_names for row in data.split(split)}
    assert sorted(kept) == ["row-0", "row-2", "row-4"]


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


def test_a_source_that_is_mostly_bad_stops_the_stage_and_may_be_tolerated_later(run: Run, source: Source) -> None:
    path = source([make_row(0, "videos/0.mp4"), make_row(1, "nowhere/1.mp4")])
    with pytest.raises(task_module.PrepareError, match=r"1 of 2 rows cannot be used .*line 2 .*no such file") as error:
        run(path)
    assert "\n" not in str(error.value)
    assert run(path, max_quarantined=0.5).counts["rows_out"] == 1


@pytest.mark.parametrize("rows", [[], ["", "  "]])
def test_a_source_without_rows_is_an_error(rows: list[str], run: Run, source: Source) -> None:
    with pytest.raises(task_module.PrepareError, match="no rows"):
        run(source(rows))


def test_a_source_that_cannot_be_read_is_one_clear_error(run: Run, tmp_path: Path) -> None:
    with pytest.raises(objects.FormatError, match="no such file"):
        run(str(tmp_path / "missing.jsonl"))
    (tmp_path / "rows.parquet").write_bytes(b"no parquet")
    with pytest.raises(UserError, match="Parquet"):
        run(str(tmp_path / "rows.parquet"))
    with pytest.raises(StorageError, match="does not exist"):
        run(join(run.context.storage.root_uri, "missing.jsonl"))


@pytest.mark.parametrize(
    ("uri", "expected"),
    [
        ("a.mp4", "s3://b/x/a.mp4"),
        ("../a.mp4", "s3://b/a.mp4"),
        ("s3://c/d.mp4", "s3://c/d.mp4"),
        ("/data/a.mp4", "/data/a.mp4"),
        ("file:///data/a.mp4", "/data/a.mp4"),
    ],
)
def test_media_count_from_where_the_rows_are(uri: str, expected: str) -> None:
    assert source_module.resolve_uri(uri, "s3://b/x/") == expected


@pytest.mark.parametrize("uri", ["http://host/a.mp4", "../../../a.mp4"])
def test_media_elsewhere_are_refused(uri: str) -> None:
    with pytest.raises(ValueError, match=r"read from paths|leaves the bucket"):
        source_module.resolve_uri(uri, "s3://b/x/")


# ------------------------------------------------------------------------------------------ again, resumed, in parallel


def test_each_video_is_in_exactly_one_shard(run: Run, source: Source) -> None:
    rows = [make_row(number, f"videos/{number % 5}.mp4") for number in range(12)]
    shards = [json.loads(shard) for shard in plan_module.plan_data(*run.arguments(source(rows), shards=2))]
    assert [(shard["media"], shard["rows"]) for shard in shards] == [(3, 7), (2, 5)]


def test_the_same_work_is_done_once_and_other_work_goes_elsewhere(run: Run, source: Source) -> None:
    path = source(rows_of(2))
    first = run(path)
    assert run(path) == first
    assert run(path, workers=1).uri == first.uri
    other_video = Run(run.context, run.video.model_copy(update={"num_frames": 2}))
    redone = Run(run.context.model_copy(update={"redo": {"prepare": 1}}), run.video)
    write_rows(Path(path), rows_of(3))
    prefixes = {first.uri, run(path).uri, other_video(path).uri, redone(path).uri}
    assert len(prefixes) == 4


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
    fetch = shard_module._Fetcher.__call__
    monkeypatch.setattr(
        shard_module._Fetcher, "__call__", lambda self, file: (decoded.append(file.uri), fetch(self, file))[1]
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


def test_merging_needs_every_shard_once(run: Run, source: Source) -> None:
    arguments = run.arguments(source(rows_of(4)), shards=2)
    done = [shard_module.prepare_shard(*arguments, shard) for shard in plan_module.plan_data(*arguments)]
    for wrong in ([], done[:1], [done[0], done[0]]):
        with pytest.raises(task_module.PrepareError, match="not all shards"):
            merge.merge_data(*arguments, wrong)
    assert Manifest.read(run.storage, merge.merge_data(*arguments, done[::-1])).counts["rows_out"] == 4


# ----------------------------------------------------------------------------------------------------- the prepared set


def test_a_damaged_or_unfinished_set_is_not_opened(run: Run, source: Source, tmp_path: Path, s3_folder: Path) -> None:
    manifest = run(source(rows_of(2)))
    bucket = s3_folder / run.context.storage.bucket
    (file,) = (bucket / manifest.uri.removeprefix(f"s3://{run.context.storage.bucket}/")).glob("media/*.parquet")
    data = bytearray(file.read_bytes())
    data[100] ^= 0xFF
    file.write_bytes(data)
    with pytest.raises(StorageError, match="damaged"):
        run.open(manifest, tmp_path / "cache")
    run.storage.delete(join(manifest.uri, "_COMPLETE.json"))
    with pytest.raises(StorageError, match="never finished"):
        run.open(manifest, tmp_path / "cache")


def test_clips_are_cached_up_to_a_number_of_bytes(run: Run, source: Source, tmp_path: Path) -> None:
    manifest = run(source(rows_of(4)))
    one = 4 * 56 * 56 * 3
    train = run.open(manifest, tmp_path / "cache", cache_bytes=2 * one).split("train")
    first = train[0].clip
    assert train[0].clip is first
    assert train[1].clip is not first
    assert train[2].clip is not first
    assert train[0].clip is not first
    assert (train[0].clip.frames == first.frames).all()
    assert train._clips._cached_bytes == 2 * one
    with pytest.raises(ValueError, match="read-only"):
        first.frames[0] = 0


def _frames_sum(train: Any, index: int) -> int:
    return int(train[index].clip.frames.sum())


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_a_split_can_be_selected_from_and_used_in_other_processes(
    method: str, run: Run, source: Source, tmp_path: Path
) -> None:
    train = run.open(run(source(rows_of(4))), tmp_path / "cache").split("train")
    expected = [_frames_sum(train, index) for index in range(4)]
    assert [row.sample.id for row in train.select([2, 0])] == ["row-2", "row-0"]
    assert [sample.id for sample in train[1:3].samples] == ["row-1", "row-2"]
    assert [sample.id for sample in train.samples] == [train.samples[n].id for n in range(4)]
    assert [sample.id for sample in train.select([3, 0, 0]).samples] == ["row-3", "row-0", "row-0"]
    assert train[-1].sample.id == "row-3"
    with pytest.raises(IndexError):
        _ = train[4]
    assert _frames_sum(pickle.loads(pickle.dumps(train)), 3) == expected[3]
    with multiprocessing.get_context(method).Pool(1) as pool:
        assert pool.starmap(_frames_sum, [(train, 1), (train, 2)]) == expected[1:3]


# ------------------------------------------------------------------------------------- what is shared, and what is used


def textured(path: Path, seed: int, size: int, crf: str) -> Path:
    """A video like a photograph; size and compression do not change what it shows."""
    import av
    import numpy as np
    from PIL import Image

    noise = np.random.default_rng(seed).integers(0, 256, (6, 6, 3), np.uint8)
    picture = np.asarray(Image.fromarray(noise).resize((128, 128), Image.Resampling.BICUBIC))
    with av.open(str(path), "w") as container:
        stream: Any = container.add_stream("libx264", rate=4, options={"crf": crf})
        stream.width = stream.height = size
        stream.pix_fmt = "yuv420p"
        for shift in range(12):
            shown = Image.fromarray(np.roll(picture, 4 * shift, axis=1)).resize((size, size))
            container.mux(stream.encode(av.VideoFrame.from_image(shown)))
        container.mux(stream.encode())
    return path


def report(run: Run, manifest: Manifest, name: str) -> Any:
    return run.storage.read_json(manifest.files[name])


@pytest.mark.parametrize("drop", [True, False])
def test_a_training_video_that_looks_like_a_test_video_is_left_out_and_listed(
    drop: bool, run: Run, source: Source, tmp_path: Path
) -> None:
    files = [
        textured(tmp_path / "a.mp4", 1, 128, "18"),
        textured(tmp_path / "b.mp4", 1, 96, "30"),
        textured(tmp_path / "c.mp4", 2, 128, "18"),
        textured(tmp_path / "d.mp4", 2, 96, "18"),
    ]
    splits = ["test", "train", "train", "train"]
    rows = [make_row(n, str(f), split=s) for n, (f, s) in enumerate(zip(files, splits, strict=True))]
    manifest = run(source(rows), max_quarantined=0.5, drop_near_duplicates=drop, shards=2)
    left = run.quarantine(manifest)
    assert [(row["id"], row["reason"]) for row in left] == ([("row-1", "near_duplicate_leak")] if drop else [])
    contamination = report(run, manifest, "contamination")
    assert contamination["near_duplicate_pairs"] == 2
    assert contamination["rows_that_leak"] == {"split_leak": 0, "near_duplicate_leak": 1}
    (leak,) = contamination["leaks"]
    assert (leak["id"], leak["kept_in"], leak["same_as"]) == ("row-1", "test", sha256_file(files[0]))
    assert contamination["questions"]["test"] == {"rows": 1, "rows_with_a_question_of_train": 1}
    exact = run(source(rows), near_duplicate_difference=0)
    assert exact.counts["rows_out"] == 4
    assert report(run, exact, "contamination")["near_duplicate_pairs"] == 0


def test_a_share_of_the_training_videos_is_held_out_with_all_their_rows(
    run: Run, source: Source, tmp_path: Path
) -> None:
    rows = [make_row(number, f"videos/{number % 12}.mp4") for number in range(24)]
    data = run.open(run(source(rows), holdout={"validation": 0.4}), tmp_path / "cache")
    videos = {split: {row.sample.media.uri for row in data.split(split)} for split in data.split_names}
    assert set(videos) == {"train", "validation"}
    assert not videos["train"] & videos["validation"]
    assert 1 <= len(videos["validation"]) <= 8
    assert len(data.split("train")) + len(data.split("validation")) == 24


def test_a_mixture_has_the_wanted_proportions_and_says_what_it_leaves_out(run: Run, source: Source) -> None:
    kinds = [("a", "multiple_choice")] * 300 + [("b", "multiple_choice")] * 100 + [("b", "free_form")] * 40
    rows = [
        make_row(n, "videos/0.mp4", source=s, problem_type=t, **({} if t == "multiple_choice" else {"options": []}))
        for n, (s, t) in enumerate(kinds)
    ]
    manifest = run(source(rows), weights={"a": 1, "b/multiple_choice": 1})
    card = report(run, manifest, "card")
    sources = card["splits"]["train"]["by_source"]
    assert sources["b"] == 100
    assert 75 <= sources["a"] <= 125
    assert manifest.counts["left_out_weights"] == len(rows) - manifest.counts["rows_out"]
    assert card["splits"]["train"]["by_type"] == {"multiple_choice": manifest.counts["rows_out"]}
    with pytest.raises(task_module.PrepareError, match=r"data\.weights: no training row .* is in the group 'c'"):
        run(source(rows), weights={"a": 1, "c": 1})


@pytest.mark.parametrize(("order", "expected"), [("easy_first", "3 1 4 0 5"), ("hard_first", "1 4 3 0 5")])
def test_a_curriculum_orders_rows_by_pass_rate_across_shards(
    order: str, expected: str, run: Run, source: Source, tmp_path: Path
) -> None:
    rates = [None, 0.25, 0.0, 0.75, 0.25, None, 1.0]
    rows = [make_row(n, f"videos/{n}.mp4", metadata={"pass_rate": r}) for n, r in enumerate(rates)]
    path = source([*rows, make_row(7, "videos/7.mp4", split="test", metadata={"pass_rate": 0.0})])
    manifest = run(path, order=order, min_pass_rate=0.1, max_pass_rate=0.9, shards=3)
    data = run.open(manifest, tmp_path / "cache")
    assert [row.sample.id for row in data.split("train")] == [f"row-{n}" for n in expected.split()]
    assert len(data.split("test")) == 1
    counts = {name: n for name, n in manifest.counts.items() if name.startswith("left_out")}
    assert counts == {"left_out": 2, "left_out_min_pass_rate": 1, "left_out_max_pass_rate": 1}


def test_rows_stay_in_the_order_of_the_source_whatever_the_number_of_shards(
    run: Run, source: Source, tmp_path: Path
) -> None:
    data = run.open(run(source(rows_of(7)), shards=3), tmp_path / "cache")
    assert [row.sample.id for row in data.split("train")] == [f"row-{n}" for n in range(7)]


def test_the_card_counts_what_is_in_the_set(run: Run, source: Source) -> None:
    rows: list[dict[str, Any] | str] = [
        *rows_of(3, metadata={"kind": "direction", "pass_rate": 0.5}),
        make_row(3, "videos/0.mp4", problem_type="numerical", options=[], answer="3", reasoning="Counted."),
        make_row(4, "videos/4.mp4", split="test", answer="A"),
        "{",
        make_row(5, "videos/gone.mp4"),
    ]
    manifest = run(source(rows), max_quarantined=0.5, store="frames")
    card = report(run, manifest, "card")
    assert card["rows"] == {"in": 7, "out": 5, "quarantined": 2, "left_out": {}}
    train = card["splits"]["train"]
    assert (train["rows"], train["videos"], train["images"]) == (4, 3, 0)
    assert train["by_type"] == {"multiple_choice": 3, "numerical": 1}
    assert train["by_kind"] == {"direction": 3}
    assert train["letters"] == {"2": {"B": 3}}
    assert train["answers"] == {"numerical": {"3": 1}}
    assert (train["with_reasoning"], train["with_evidence"]) == (1, 0)
    assert train["duration_s"]["counts"][2] == 3
    assert train["duration_s"]["mean"] == pytest.approx(3.0)
    assert sum(train["pass_rate"]["counts"]) == 3
    assert card["splits"]["test"]["letters"] == {"2": {"A": 1}}
    assert card["media"]["resolutions"] == {"video": {"64x64": 4}}
    assert card["media"]["frames"] == 4 * 4
    assert card["media"]["stored_bytes"] > card["media"]["source_bytes"]  # tiny files: this is why `smallest` exists
    assert {reason: entry["rows"] for reason, entry in card["quarantine"].items()} == {
        "unreadable_row": 1,
        "missing_media": 1,
    }
    assert card["quarantine"]["missing_media"]["examples"][0]["line"] == 7
    smallest = run(source(rows), max_quarantined=0.5)
    assert smallest.metrics["stored_bytes"] <= smallest.metrics["source_bytes"]


def test_a_file_is_fetched_and_decoded_once_for_all_its_parts(
    run: Run, source: Source, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    parts = [{"kind": "video", "uri": "videos/0.mp4", "start_s": n / 20, "end_s": n / 20 + 1} for n in range(40)]
    rows = [make_row(n, "", media=part) for n, part in enumerate(parts)]
    rows.append(make_row(40, "", media={**parts[0], "end_s": 9, "start_s": 8}))
    fetched: list[int] = []
    fetch = shard_module._Fetcher.__call__
    monkeypatch.setattr(
        shard_module._Fetcher, "__call__", lambda self, file: (fetched.append(len(file.parts)), fetch(self, file))[1]
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


def test_a_reader_that_streams_notices_a_damaged_page(
    run: Run, source: Source, tmp_path: Path, s3_folder: Path
) -> None:
    manifest = run(source(rows_of(2)), store="frames")
    train = run.open(manifest, tmp_path / "whole", stream=True).split("train")
    assert train[1].clip.frames.any()
    bucket = s3_folder / run.context.storage.bucket
    (file,) = (bucket / manifest.uri.removeprefix(f"s3://{run.context.storage.bucket}/")).glob("media/*.parquet")
    data = bytearray(file.read_bytes())
    data[data.index(b"\xff\xd8\xff") + 100] ^= 0xFF
    file.write_bytes(data)
    with pytest.raises(UserError, match=r"media/train.*damaged"):
        _ = run.open(manifest, tmp_path / "damaged", stream=True).split("train")[0].clip


def test_files_that_an_earlier_attempt_left_are_not_part_of_the_set(run: Run, source: Source, tmp_path: Path) -> None:
    manifest = run(source(rows_of(2)))
    folder = run.open(manifest, tmp_path / "cache").folder
    (rows,) = folder.glob("rows/*.parquet")
    shutil.copy(rows, rows.with_name("train-00000-00000000.parquet"))
    shutil.copy(rows, rows.with_name("test-00000-00000000.parquet"))
    data = run.open(manifest, tmp_path / "cache")
    assert data.split_names == ["train"]
    assert len(data.split("train")) == 2


def test_a_second_start_reads_nothing_again_that_was_verified(
    run: Run, source: Source, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    manifest = run(source(rows_of(2)))
    run.open(manifest, tmp_path / "cache")
    monkeypatch.setattr(Storage, "download_dir", lambda *_, **__: pytest.fail("checked again"))
    folder = run.open(manifest, tmp_path / "cache").folder
    monkeypatch.undo()
    for path in folder.glob("rows/*.parquet"):
        path.write_bytes(b"changed")
    assert len(run.open(manifest, tmp_path / "cache").split("train")) == 2


# ------------------------------------------------------------------------------------------ killed, and two at once

_SLOWLY = """
import sys
from vthink.components.data_prep import prepare, shard
shard.PART_MEDIA = 2
fetch = shard._Fetcher.__call__
shard._Fetcher.__call__ = lambda self, file: (print(file.uri, flush=True), fetch(self, file))[1]
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


# ---------------------------------------------------------------------------------------------------- checking a source


def test_validation_lists_every_problem_with_its_line(source: Source, storage: Storage, tmp_path: Path) -> None:
    rows: list[dict[str, Any] | str] = [
        make_row(0, "videos/0.mp4"),
        make_row(1, "videos/missing.mp4"),
        make_row(0, "videos/1.mp4"),
        "{",
        make_row(4, "videos/0.mp4", split="test", problem_type="ocr", options=[], source="other"),
        make_row(5, join(storage.config.root_uri, "missing.mp4")),
    ]
    (report,) = validate.validate_rows([source(rows)], storage)
    assert [(problem.line, problem.reason) for problem in report.problems] == [
        (2, "missing_media"),
        (3, "duplicate_id"),
        (4, "unreadable_row"),
        (5, "split_leak"),
        (6, "missing_media"),
    ]
    assert not report.ok
    assert (report.rows, report.media, report.missing_media) == (6, 3, 2)
    assert report.by_type == {"multiple_choice": 1, "ocr": 1}
    assert report.by_source == {"squares": 1, "other": 1}
    (good,) = validate.validate_rows([str(write_rows(tmp_path / "source/good.jsonl", rows_of(3)))])
    assert good.ok


# ------------------------------------------------------------------------------------------------------- the components


@dsl.pipeline(name="prepare")
def pipeline(run: str, config: str, video: str) -> str:
    plan = component.plan_data(run=run, config=config, video=video)
    with dsl.ParallelFor(plan.output) as shard:
        part = component.prepare_shard(run=run, config=config, video=video, shard=shard)
    merged = component.merge_data(run=run, config=config, video=video, shards=dsl.Collected(part.output))
    return merged.outputs["Output"]


def test_the_components_compile(tmp_path: Path) -> None:
    compiler.Compiler().compile(pipeline, str(tmp_path / "pipeline.yaml"))
    text = (tmp_path / "pipeline.yaml").read_text()
    assert "pip install" not in text
    assert component.IMAGE in text


def test_the_components_run_under_kfp_local(run: Run, source: Source, tmp_path: Path) -> None:
    local.init(local.SubprocessRunner(use_venv=False), pipeline_root=str(tmp_path / "kfp"))
    arguments = run.arguments(source(rows_of(4)), shards=2)
    task = pipeline(**dict(zip(("run", "config", "video"), arguments, strict=True)))
    assert Manifest.read(run.storage, task.output).counts["rows_out"] == 4


def test_importing_configuration_and_components_loads_no_ml_library() -> None:
    script = (
        "import sys, vthink.components.data_prep.config, vthink.components.data_prep.component\n"
        "print({'torch', 'transformers', 'av', 'decord', 'datasets', 'pyarrow'} & set(sys.modules))"
    )
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "set()"


def test_preparing_loads_no_torch() -> None:
    script = "import sys, vthink.components.data_prep.prepare; print({'torch', 'transformers'} & set(sys.modules))"
    start = time.monotonic()
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "set()"
    assert time.monotonic() - start < 30
