"""What looks the same is found, whatever its size and compression, and nothing else is."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import av
import numpy as np
from PIL import Image
from vthink.components.common.video.clip import SIGNATURE_BYTES, DecodedFile, FileRequest
from vthink.components.common.video.config import VideoConfig
from vthink.components.common.video.workers import Decoder
from vthink.components.data_prep.dataset.duplicates import Groups, near_pairs


def brute_force(signatures: np.ndarray, limit: float) -> set[tuple[int, int]]:
    values = signatures.astype(np.float64)
    count = len(values)
    return {
        (i, j)
        for i in range(count)
        for j in range(i + 1, count)
        if np.sqrt(((values[i] - values[j]) ** 2).mean()) <= limit
    }


def test_all_pairs_that_are_close_are_found_once() -> None:
    rng = np.random.default_rng(0)
    far = rng.integers(0, 256, (300, SIGNATURE_BYTES))
    noise = rng.normal(0, 1, (200, SIGNATURE_BYTES)) * rng.uniform(0.1, 2.9, (200, 1))
    signatures = np.concatenate([far, far[:200] + noise]).clip(0, 255).astype(np.uint8)
    found = [(i, j) for i, j, _ in near_pairs(signatures, 3.0)]
    expected = brute_force(signatures, 3.0)
    assert len(expected) >= 195
    assert len(found) == len(set(found))
    assert set(found) == expected
    assert not list(near_pairs(signatures, 0.0))


def test_pages_that_differ_in_a_few_lines_are_not_the_same() -> None:
    rng = np.random.default_rng(0)
    pages = np.full((50, SIGNATURE_BYTES), 250, np.uint8)
    for page in pages:
        page[rng.integers(0, SIGNATURE_BYTES, 40)] -= 10
    assert brute_force(pages, 3.0)  # in absolute terms they are close
    assert not list(near_pairs(pages, 3.0))
    assert list(near_pairs(np.concatenate([pages, pages[:1]]), 3.0)) == [(0, 50, 0.0)]


def test_blank_files_have_no_duplicates() -> None:
    assert not list(near_pairs(np.zeros((9, SIGNATURE_BYTES), np.uint8), 3.0))


def test_thousands_of_equal_files_make_thousands_of_pairs_and_one_group() -> None:
    rng = np.random.default_rng(0)
    kinds = rng.integers(0, 256, (2, SIGNATURE_BYTES))
    signatures = np.concatenate([kinds[:1].repeat(2500, 0), kinds[1:].repeat(2500, 0)]).astype(np.uint8)
    pairs = list(near_pairs(signatures, 3.0))
    assert len(pairs) <= 2 * 2500
    groups = Groups(len(signatures))
    for i, j, _ in pairs:
        groups.join(i, j)
    assert {groups.find(i) for i in range(2500)} == {0}
    assert {groups.find(i) for i in range(2500, 5000)} == {2500}


def test_groups_are_named_by_their_first_member() -> None:
    groups = Groups(6)
    for i, j in ((4, 5), (1, 4), (2, 3)):
        groups.join(i, j)
    assert [groups.find(i) for i in range(6)] == [0, 1, 2, 2, 1, 1]


def picture(seed: int) -> Image.Image:
    """Blurred noise: as rich as a photograph."""
    noise = np.random.default_rng(seed).integers(0, 256, (5, 8, 3), np.uint8)
    return Image.fromarray(noise).resize((320, 180), Image.Resampling.BICUBIC)


def write(path: Path, seed: int, size: tuple[int, int], codec: str, crf: str) -> Path:
    with av.open(str(path), "w") as container:
        stream: Any = container.add_stream(codec, rate=10, options={"crf": crf, "g": "10"})
        stream.width, stream.height, stream.pix_fmt = *size, "yuv420p"
        for shift in range(20):
            shown = Image.fromarray(np.roll(np.asarray(picture(seed)), 6 * shift, axis=1)).resize(size)
            container.mux(stream.encode(av.VideoFrame.from_image(shown)))
        container.mux(stream.encode())
    return path


def test_another_size_compression_and_container_look_the_same_and_another_video_does_not(tmp_path: Path) -> None:
    files = [
        write(tmp_path / "a.mp4", 1, (320, 180), "libx264", "18"),
        write(tmp_path / "b.webm", 1, (192, 108), "libvpx-vp9", "45"),
        write(tmp_path / "c.mp4", 2, (320, 180), "libx264", "18"),
    ]
    picture(3).save(tmp_path / "d.png")
    picture(3).resize((160, 90)).save(tmp_path / "e.jpg", quality=60)
    picture(4).save(tmp_path / "f.png")
    with Decoder(VideoConfig(num_frames=4)) as decoder:
        parts = ((0.5, 1.0),), ((None, None),), ((None, None), (1.0, 1.5))
        videos = [decoder.read_file(FileRequest(f, "video", p)) for f, p in zip(files, parts, strict=True)]
        images = [decoder.read_file(FileRequest(tmp_path / n, "image")) for n in ("d.png", "e.jpg", "f.png")]

    def close(decoded: list[DecodedFile]) -> list[tuple[int, int]]:
        signatures = np.stack([np.frombuffer(file.signature, np.uint8) for file in decoded])
        assert signatures.shape == (3, SIGNATURE_BYTES)
        return [(i, j) for i, j, _ in near_pairs(signatures, 3.0)]

    assert close(videos) == [(0, 1)]
    assert close(images) == [(0, 1)]
