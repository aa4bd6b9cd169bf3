"""The prepared set as its readers see it: exact frames, verified once, usable everywhere."""

from __future__ import annotations

import json
import multiprocessing
import pickle
import shutil
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from vthink.components.common.context import RunContext
from vthink.components.common.errors import UserError
from vthink.components.common.storage.config import StorageConfig
from vthink.components.common.storage.manifest import Manifest
from vthink.components.common.storage.names import StorageError, join, sha256_file
from vthink.components.common.storage.s3 import Storage
from vthink.components.common.tracking.config import TrackingConfig
from vthink.components.common.video.clip import stored
from vthink.components.common.video.config import VideoConfig
from vthink.components.common.video.decode import decoder_version, read_clip

from ..conftest import Run, make_row, rows_of, write_rows

Sets = Callable[[str], Manifest]
"""The set that is stored in the way that is named."""


@pytest.fixture(scope="module")
def run(s3: StorageConfig, empty_mlflow_database: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Data preparation whose sets the tests of this module share."""
    folder = tmp_path_factory.mktemp("sets")
    tracking = TrackingConfig(uri=f"sqlite:///{shutil.copy(empty_mlflow_database, folder / 'mlflow.db')}")
    storage = s3.model_copy(update={"prefix": f"{folder.parent.name}-{folder.name}/"})
    context = RunContext(run_id="sets", storage=storage, tracking=tracking, work_dir=str(folder))
    return Run(context, VideoConfig(num_frames=4, min_pixels=56 * 56, max_pixels=56 * 56))


@pytest.fixture(scope="module")
def manifest_of(run: Run, squares: Path, tmp_path_factory: pytest.TempPathFactory) -> Sets:
    """A set of four rows of train and one of test, stored in the way that is named; made once."""
    folder = tmp_path_factory.mktemp("source")
    (folder / "videos").symlink_to(squares / "videos")
    test = make_row(9, "videos/9.mp4", split="test", metadata={"kind": "direction"})
    path = write_rows(folder / "rows.jsonl", [*rows_of(4), test])
    return lambda store: run(str(path), store=store)


@pytest.fixture
def copied(run: Run, manifest_of: Sets, s3_folder: Path, tmp_path: Path) -> tuple[Manifest, Path]:
    """A copy of the set with its frames, to be damaged; and its folder behind the store."""
    manifest = manifest_of("frames")
    uri = f"{manifest.uri.rstrip('/')}-{tmp_path.name}/"
    source, target = (s3_folder / each.removeprefix("s3://") for each in (manifest.uri, uri))
    shutil.copytree(source, target)
    copy = manifest.model_copy(update={"uri": uri})
    copy.write(run.storage)
    return copy, target


@pytest.mark.parametrize(("store", "stream"), [("frames", False), ("smallest", False), ("frames", True)])
def test_rows_come_back_with_exactly_the_frames_that_the_server_would_make(
    store: str, stream: bool, run: Run, manifest_of: Sets, squares: Path, tmp_path: Path
) -> None:
    manifest = manifest_of(store)
    assert manifest.metrics["originals"] == (5 if store == "smallest" else 0)
    data = run.open(manifest, tmp_path / "cache", stream=stream)
    assert (data.folder / "media").exists() != stream
    assert data.split_names == ["test", "train"]
    assert data.video == run.video
    train = data.split("train")
    assert [row.sample.id for row in train] == ["row-0", "row-1", "row-2", "row-3"]
    for number, row in enumerate(train):
        file = squares / f"videos/{number}.mp4"
        expected = stored(read_clip(file, run.video), run.video)
        assert (row.clip.frames == expected.frames).all()
        assert row.clip.times_s.tolist() == expected.times_s.tolist()
        assert (row.clip.duration_s, row.clip.kind) == (expected.duration_s, "video")
        assert row.sample.media.sha256 == sha256_file(file)
    with pytest.raises(UserError, match="there are: test, train"):
        data.split("validation")


def test_sets_of_two_decoders_are_two_sets_and_reading_with_another_is_said(
    run: Run, manifest_of: Sets, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    manifest = manifest_of("smallest")
    assert manifest.details["decoder"] == decoder_version(run.video)
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message="videos prepared with")
        assert len(run.open(manifest, tmp_path / "same").split("train")[0].clip.frames) == 4
    for module in ("data_prep.plan", "data_prep.dataset.writer", "common.rows.prepared"):
        monkeypatch.setattr(f"vthink.components.{module}.decoder_version", lambda video: "pyav 0.1")
    with pytest.warns(UserWarning, match=r"prepared with pyav [\d.]+ are decoded with pyav 0\.1"):
        assert len(run.open(manifest, tmp_path / "other").split("train")[0].clip.frames) == 4
    other = manifest_of("smallest")
    assert (other.details["decoder"], manifest_of("smallest").uri) == ("pyav 0.1", other.uri)
    assert other.uri != manifest.uri


def test_datasets_loads_the_folder_as_it_is(
    run: Run, manifest_of: Sets, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = run.open(manifest_of("frames"), tmp_path / "cache")
    datasets = pytest.importorskip("datasets")
    cache = str(tmp_path / "hf")
    loaded = datasets.load_dataset(str(data.folder), "rows", cache_dir=cache)
    media = datasets.load_dataset(str(data.folder), "media", cache_dir=cache)
    assert {split: len(loaded[split]) for split in loaded} == {"train": 4, "test": 1}
    assert {split: len(media[split]) for split in media} == {"train": 4, "test": 1}
    assert loaded["test"][0]["media_id"] == media["test"][0]["media_id"]
    assert json.loads(loaded["test"][0]["metadata"]) == {"kind": "direction"}
    assert media["test"][0]["frames"][0][:2] == b"\xff\xd8"


def test_a_damaged_or_unfinished_set_is_not_opened(run: Run, copied: tuple[Manifest, Path], tmp_path: Path) -> None:
    manifest, folder = copied
    (file,) = folder.glob("media/train-*.parquet")
    data = bytearray(file.read_bytes())
    data[100] ^= 0xFF
    file.write_bytes(data)
    with pytest.raises(StorageError, match="damaged"):
        run.open(manifest, tmp_path / "cache")
    run.storage.delete(join(manifest.uri, "_COMPLETE.json"))
    with pytest.raises(StorageError, match="never finished"):
        run.open(manifest, tmp_path / "cache")


def test_clips_are_cached_up_to_a_number_of_bytes(run: Run, manifest_of: Sets, tmp_path: Path) -> None:
    manifest = manifest_of("smallest")
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
    method: str, run: Run, manifest_of: Sets, tmp_path: Path
) -> None:
    train = run.open(manifest_of("smallest"), tmp_path / "cache").split("train")
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


def test_a_reader_that_streams_notices_a_damaged_page(run: Run, copied: tuple[Manifest, Path], tmp_path: Path) -> None:
    manifest, folder = copied
    train = run.open(manifest, tmp_path / "whole", stream=True).split("train")
    assert train[1].clip.frames.any()
    (file,) = folder.glob("media/train-*.parquet")
    data = bytearray(file.read_bytes())
    data[data.index(b"\xff\xd8\xff") + 100] ^= 0xFF
    file.write_bytes(data)
    with pytest.raises(UserError, match=r"media/train.*damaged"):
        _ = run.open(manifest, tmp_path / "damaged", stream=True).split("train")[0].clip


def test_files_that_an_earlier_attempt_left_are_not_part_of_the_set(
    run: Run, manifest_of: Sets, tmp_path: Path
) -> None:
    manifest = manifest_of("smallest")
    folder = run.open(manifest, tmp_path / "cache").folder
    (rows,) = folder.glob("rows/train-*.parquet")
    for name in ("train", "test", "validation"):
        shutil.copy(rows, rows.with_name(f"{name}-00000-00000000.parquet"))
    data = run.open(manifest, tmp_path / "cache")
    assert data.split_names == ["test", "train"]
    assert (len(data.split("train")), len(data.split("test"))) == (4, 1)


def test_a_second_start_reads_nothing_again_that_was_verified(
    run: Run, manifest_of: Sets, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    manifest = manifest_of("smallest")
    run.open(manifest, tmp_path / "cache")
    monkeypatch.setattr(Storage, "download_dir", lambda *_, **__: pytest.fail("checked again"))
    folder = run.open(manifest, tmp_path / "cache").folder
    monkeypatch.undo()
    for path in folder.glob("rows/*.parquet"):
        path.write_bytes(b"changed")
    assert len(run.open(manifest, tmp_path / "cache").split("train")) == 4
