"""What training and evaluation share is found, listed, and left out of training."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
from vthink.components.common.storage.names import sha256_file

from ..conftest import Run, Source, make_row


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
    contamination = run.read_json(manifest, "contamination")
    assert contamination["near_duplicate_pairs"] == 2
    assert contamination["rows_that_leak"] == {"split_leak": 0, "near_duplicate_leak": 1}
    (leak,) = contamination["leaks"]
    assert (leak["id"], leak["kept_in"], leak["same_as"]) == ("row-1", "test", sha256_file(files[0]))
    assert contamination["questions"]["test"] == {"rows": 1, "rows_with_a_question_of_train": 1}
    if drop:
        exact = run(source(rows), near_duplicate_difference=0)
        assert exact.counts["rows_out"] == 4
        assert run.read_json(exact, "contamination")["near_duplicate_pairs"] == 0
