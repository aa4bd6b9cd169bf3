"""Frames from real files: which, how large, and what happens with files that are damaged, hostile or slow."""

from __future__ import annotations

import os
import signal
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from vthink.components.common.video import probe as probe_module
from vthink.components.common.video import readers
from vthink.components.common.video.clip import DecodeError, DecodeLimitError, FileRequest
from vthink.components.common.video.codec import (
    DecodedFile,
    EncodedClip,
    decode_frames,
    encode_clip,
    encode_frames,
    stored,
)
from vthink.components.common.video.config import VideoConfig
from vthink.components.common.video.decode import read_clip
from vthink.components.common.video.frames import frame_indices, select_frames, target_size
from vthink.components.common.video.workers import Decoder

SIZE = 112
CONFIG = VideoConfig(num_frames=8, min_pixels=SIZE * SIZE, max_pixels=SIZE * SIZE)


def numbered_frame(number: int) -> np.ndarray:
    """A frame that shows its number in binary, as eight white or black bars."""
    frame = np.zeros((SIZE, SIZE, 3), np.uint8)
    for bit in range(8):
        frame[:, bit * 14 : (bit + 1) * 14] = 255 * (number >> bit & 1)
    return frame


def numbers(frames: np.ndarray) -> list[int]:
    """The numbers that frames show."""
    return [int(sum((f[:, b * 14 + 4 : b * 14 + 10].mean() > 127) << b for b in range(8))) for f in frames]


def write_video(
    path: Path,
    count: int = 60,
    codec: str = "libx264",
    fps: int = 10,
    codec_options: dict[str, str] | None = None,
    options: dict[str, str] | None = None,
    stamps: list[int] | None = None,
    size: tuple[int, int] | None = None,
) -> Path:
    with av.open(str(path), "w", options=options or {}) as container:
        stream: Any = container.add_stream(codec, rate=fps, options=codec_options or {"g": "12", "bf": "2"})
        stream.width, stream.height = size or (SIZE, SIZE)
        stream.pix_fmt = "yuv420p"
        for number in range(count):
            frame = av.VideoFrame.from_ndarray(numbered_frame(number), format="rgb24")
            frame.pts = number if stamps is None else stamps[number]
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


def write_audio(path: Path) -> Path:
    with av.open(str(path), "w") as container:
        stream: Any = container.add_stream("aac", rate=16000)
        for index in range(10):
            frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
            frame.sample_rate, frame.pts = 16000, index * 1024
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


@pytest.fixture(scope="module")
def video(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six seconds, 60 frames."""
    return write_video(tmp_path_factory.mktemp("video") / "video.mp4", options={"movflags": "faststart"})


@pytest.fixture(scope="module")
def slow_video(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file that takes any decoder more than a second: one long group of large noisy pictures."""
    path = tmp_path_factory.mktemp("slow") / "slow.mp4"
    rng = np.random.default_rng(0)
    with av.open(str(path), "w") as container:
        stream: Any = container.add_stream("libx264", rate=30, options={"g": "1000", "preset": "ultrafast", "qp": "30"})
        stream.width, stream.height, stream.pix_fmt = 1280, 720, "yuv420p"
        noise = rng.integers(0, 255, (720, 1280, 3), np.uint8)
        for shift in range(200):
            picture = np.roll(noise, 31 * shift, axis=1)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode())
    return path


@pytest.fixture(scope="module")
def decoder() -> Iterator[Decoder]:
    with Decoder(CONFIG, workers=2) as decoder:
        yield decoder


# ------------------------------------------------------------------------------------------------ which frames, how big


def test_frames_are_spread_evenly_from_the_first_to_the_last() -> None:
    assert frame_indices(16, 4.0, VideoConfig(num_frames=8)).tolist() == [0, 2, 4, 6, 9, 11, 13, 15]


def test_a_part_of_a_video_is_sampled_within_its_bounds() -> None:
    assert frame_indices(100, 10.0, VideoConfig(num_frames=4), 2.0, 3.0).tolist() == [20, 23, 26, 29]


def test_an_end_beyond_the_video_means_its_end() -> None:
    config = VideoConfig(num_frames=4)
    assert frame_indices(100, 10.0, config, 9.0, 99.0).tolist() == frame_indices(100, 10.0, config, 9.0).tolist()


@pytest.mark.parametrize(("start_s", "end_s"), [(10.0, None), (12.0, 13.0), (5.0, 5.0)])
def test_a_part_outside_of_the_video_is_an_error(start_s: float, end_s: float | None) -> None:
    with pytest.raises(DecodeError, match="10 s long"):
        frame_indices(100, 10.0, VideoConfig(), start_s, end_s)


@pytest.mark.parametrize(
    ("seconds", "expected"),
    [(0.5, 4), (3.0, 6), (3.4, 6), (60.0, 16)],
)
def test_sampling_by_fps_stays_between_its_bounds_and_a_multiple(seconds: float, expected: int) -> None:
    config = VideoConfig(num_frames=None, fps=2.0, min_frames=3, max_frames=17)
    assert len(frame_indices(int(seconds * 30), 30.0, config)) == expected


def test_with_a_varying_frame_rate_frames_are_chosen_by_time() -> None:
    times_s = np.array([0.0, 0.1, 0.2, 0.3, 8.0, 9.0])
    assert select_frames(times_s, 10.0, VideoConfig(num_frames=4)).tolist() == [0, 3, 4, 5]


@given(
    count=st.integers(1, 500),
    fps=st.floats(0.5, 120),
    wanted=st.integers(1, 64),
    multiple=st.integers(1, 4),
)
def test_sampled_frames_ascend_exist_and_fill_temporal_patches(
    count: int, fps: float, wanted: int, multiple: int
) -> None:
    indices = frame_indices(count, fps, VideoConfig(num_frames=wanted, temporal_multiple=multiple))
    assert len(indices) % multiple == 0
    assert indices[0] == 0
    assert indices[-1] <= count - 1
    assert (np.diff(indices) >= 0).all()


@given(
    height=st.integers(1, 4000),
    width=st.integers(1, 4000),
    multiple=st.sampled_from([14, 28, 32]),
    area=st.integers(1, 300),
)
def test_target_size_keeps_to_multiples_and_budget(height: int, width: int, multiple: int, area: int) -> None:
    config = VideoConfig(size_multiple=multiple, min_pixels=1, max_pixels=area * multiple**2)
    if max(height, width) > 200 * min(height, width):
        with pytest.raises(DecodeError, match="200:1"):
            target_size(height, width, config)
        return
    h, w = target_size(height, width, config)
    assert h % multiple == 0
    assert w % multiple == 0
    assert 0 < h * w <= config.max_pixels


# What transformers 5.17's `smart_resize(*shape, 28, 4 * 28 * 28, 128 * 28 * 28)` gives.
QWEN_SIZES = [
    ((1080, 1920), (224, 420)),
    ((1920, 1080), (420, 224)),
    ((56, 56), (56, 56)),
    ((20, 30), (56, 84)),
    ((360, 640), (224, 420)),
    ((700, 100), (700, 112)),
]


@pytest.mark.parametrize(("shape", "expected"), QWEN_SIZES)
def test_target_size_is_that_of_qwen(shape: tuple[int, int], expected: tuple[int, int]) -> None:
    assert target_size(*shape, VideoConfig()) == expected


# -------------------------------------------------------------------------------------------------------- reading files


def test_a_clip_holds_the_sampled_frames_and_their_times(video: Path) -> None:
    clip = read_clip(video, CONFIG)
    assert clip.frames.shape == (8, SIZE, SIZE, 3)
    assert clip.frames.dtype == np.uint8
    assert numbers(clip.frames) == frame_indices(60, 10.0, CONFIG).tolist()
    assert clip.times_s == pytest.approx(frame_indices(60, 10.0, CONFIG) / 10)
    assert clip.duration_s == pytest.approx(6.0)
    assert clip.fps == pytest.approx(8 / 6)


def test_a_part_of_a_file_counts_its_times_from_its_start(video: Path) -> None:
    clip = read_clip(video, CONFIG, start_s=2.0, end_s=4.0)
    assert numbers(clip.frames)[0] == 20
    assert numbers(clip.frames)[-1] == 39
    assert clip.times_s[0] == 0
    assert clip.duration_s == pytest.approx(2.0)


def test_frames_are_resized_to_the_pixel_budget(tmp_path: Path) -> None:
    path = write_video(tmp_path / "v.mp4", 4)
    assert read_clip(path, VideoConfig(min_pixels=28 * 28, max_pixels=56 * 56)).frames.shape == (4, 56, 56, 3)


KINDS: dict[str, tuple[str, str, dict[str, str]]] = {
    "h264": ("v.mp4", "libx264", {"g": "30", "bf": "3"}),
    "h264-open-groups": ("v.mp4", "libx264", {"x264-params": "open-gop=1:keyint=30:scenecut=0:bframes=3"}),
    "hevc": ("v.mp4", "libx265", {"x265-params": "log-level=none:keyint=30"}),
    "vp9": ("v.webm", "libvpx-vp9", {"g": "30"}),
    "mpeg4": ("v.mp4", "mpeg4", {"g": "12", "bf": "2"}),
    "matroska": ("v.mkv", "libx264", {"g": "30", "bf": "3"}),
    "transport-stream": ("v.ts", "libx264", {"g": "30", "bf": "3"}),
    "avi": ("v.avi", "mpeg4", {"g": "12"}),
}


@pytest.mark.parametrize("kind", KINDS)
def test_every_frame_is_the_one_that_was_asked_for(kind: str, tmp_path: Path) -> None:
    name, codec, options = KINDS[kind]
    path = write_video(tmp_path / name, 200, codec, fps=25, codec_options=options)
    config = CONFIG.model_copy(update={"num_frames": 4})
    for start_s in np.arange(0, 7, 0.52):
        expected = select_frames(np.arange(200) / 25, 8.0, config, start_s, start_s + 0.8).tolist()
        assert numbers(read_clip(path, config, start_s=start_s, end_s=start_s + 0.8).frames) == expected


def test_decord_alone_would_give_wrong_frames_of_open_groups(tmp_path: Path) -> None:
    """Why `_probe` looks for them; when this fails, decord can be trusted with more files."""
    name, codec, options = KINDS["hevc"]
    path = write_video(tmp_path / name, 200, codec, fps=25, codec_options=options)
    decord = pytest.importorskip("decord")
    reader = decord.VideoReader(str(path), ctx=decord.cpu(0), num_threads=1)
    asked = list(range(3, 200, 7))
    assert numbers(np.stack([reader.get_batch([index]).asnumpy()[0] for index in asked])) != asked


def test_decord_and_pyav_give_the_same_pixels(video: Path) -> None:
    probe = probe_module._probe(video)
    indices = select_frames(probe.times_s, probe.duration_s, CONFIG)
    ours, size = readers._decode_with_decord(video, indices, probe, CONFIG)
    theirs, their_size = readers._decode_with_pyav(video, indices, probe, CONFIG)
    assert size == their_size == (SIZE, SIZE)
    assert np.abs(ours.astype(int) - theirs.astype(int)).max() <= 2


def test_pyav_decodes_what_decord_refuses(video: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = read_clip(video, CONFIG)
    monkeypatch.setitem(sys.modules, "decord", None)
    assert numbers(read_clip(video, CONFIG).frames) == numbers(expected.frames)


def test_a_rotated_video_is_turned_upright_by_both_decoders(tmp_path: Path) -> None:
    data = bytearray(write_video(tmp_path / "v.mp4", 8).read_bytes())
    matrix = data.index(b"tkhd") + 44
    data[matrix : matrix + 36] = struct.pack(">9i", 0, 65536, 0, -65536, 0, 0, 0, 0, 1 << 30)
    path = tmp_path / "rotated.mp4"
    path.write_bytes(data)
    probe = probe_module._probe(path)
    indices = np.arange(8)
    turned, _ = readers._decode_with_decord(path, indices, probe, CONFIG)
    assert numbers(np.rot90(turned, axes=(1, 2))) == list(range(8))
    assert np.abs(turned.astype(int) - readers._decode_with_pyav(path, indices, probe, CONFIG)[0]).max() <= 2


def test_a_varying_frame_rate_gives_true_times(tmp_path: Path) -> None:
    path = write_video(tmp_path / "v.mp4", 6, stamps=[0, 1, 2, 3, 40, 50])
    clip = read_clip(path, CONFIG.model_copy(update={"num_frames": 4}))
    assert numbers(clip.frames) == [0, 3, 4, 5]
    assert clip.times_s == pytest.approx([0, 0.3, 4.0, 5.0])


@pytest.mark.parametrize("size", [(113, 57), (1, 1), (3, 501), (30, 2000)])
def test_odd_sizes_are_decoded(size: tuple[int, int], tmp_path: Path) -> None:
    with av.open(str(tmp_path / "v.mp4"), "w") as container:
        stream: Any = container.add_stream("libx264", rate=10)
        stream.width, stream.height, stream.pix_fmt = *size, "yuv444p"
        for level in (0, 100, 200, 250):
            pixels = np.full((size[1], size[0], 3), level, np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        container.mux(stream.encode())
    frames = read_clip(tmp_path / "v.mp4", CONFIG).frames
    assert frames.shape[1:3] == target_size(size[1], size[0], CONFIG)
    assert frames.mean(axis=(1, 2, 3)) == pytest.approx([0, 100, 200, 250], abs=3)


ALPHA = {
    "qtrle": ("v.mov", "argb", {}),
    "png": ("v.mov", "rgba", {}),
    "libvpx-vp9": ("v.webm", "yuva420p", {"auto-alt-ref": "0"}),
}


@pytest.mark.parametrize("codec", ALPHA)
def test_a_video_with_alpha_shows_its_colours(codec: str, tmp_path: Path) -> None:
    name, pixel_format, options = ALPHA[codec]
    with av.open(str(tmp_path / name), "w") as container:
        stream: Any = container.add_stream(codec, rate=10, options=options)
        stream.width, stream.height, stream.pix_fmt = SIZE, SIZE, pixel_format
        for number in range(8):
            pixels = np.concatenate([numbered_frame(number), np.full((SIZE, SIZE, 1), 128, np.uint8)], axis=2)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgba")))
        container.mux(stream.encode())
    assert numbers(read_clip(tmp_path / name, CONFIG).frames) == list(range(8))


def test_a_video_of_one_frame_fills_a_temporal_patch_with_it(tmp_path: Path) -> None:
    clip = read_clip(write_video(tmp_path / "v.mp4", 1), CONFIG)
    assert numbers(clip.frames) == [0, 0]
    assert clip.times_s.tolist() == [0.0, 0.0]
    assert clip.duration_s == pytest.approx(0.1)


def test_a_video_of_hours_is_decoded_in_a_moment_from_its_key_frames(tmp_path: Path) -> None:
    path = write_video(tmp_path / "v.mp4", 200, fps=1, stamps=[60 * n for n in range(200)])
    start = time.monotonic()
    clip = read_clip(path, CONFIG)
    assert clip.times_s[-1] == 199 * 60
    assert numbers(clip.frames)[-1] == 199
    late = read_clip(path, CONFIG, start_s=3 * 3600, end_s=3 * 3600 + 540)
    assert numbers(late.frames) == [180, 181, 182, 183, 185, 186, 187, 188]
    assert late.times_s[0] == 0.0
    assert time.monotonic() - start < 10
    with pytest.raises(DecodeError, match="max_duration_s"):
        read_clip(path, CONFIG.model_copy(update={"max_duration_s": 3600.0}))


@pytest.mark.parametrize(("start_s", "end_s", "seconds"), [(None, None, 6.0), (1.0, 3.0, 2.0), (5.5, None, 0.5)])
def test_the_time_that_a_temporal_patch_spans_is_that_of_qwen(
    video: Path, start_s: float | None, end_s: float | None, seconds: float
) -> None:
    """M-RoPE's second_per_grid_ts: Qwen divides the temporal patch by the sampled frames per second (frames sampled
    over frames there, times the file's rate)."""
    clip = read_clip(video, CONFIG, start_s=start_s, end_s=end_s)
    sampled, there = len(clip.frames), seconds * 10
    assert 2 / clip.fps == pytest.approx(2 / (sampled / there * 10))


def test_parts_of_a_file_are_decoded_together_and_are_what_each_is_by_itself(video: Path, decoder: Decoder) -> None:
    parts = ((None, None), (2.0, 4.0), (99.0, None), (5.9, 6.0))
    decoded = decoder.read_file(FileRequest(video, "video", parts))
    assert (decoded.width, decoded.height, decoded.duration_s) == (SIZE, SIZE, pytest.approx(6.0))
    for (start_s, end_s), clip in zip(parts, decoded.clips, strict=True):
        if start_s == 99.0:
            assert isinstance(clip, DecodeError)
            continue
        assert isinstance(clip, EncodedClip)
        alone = read_clip(video, CONFIG, start_s=start_s, end_s=end_s)
        assert clip.frames == encode_frames(alone, CONFIG)
        assert clip.times_s.tolist() == alone.times_s.tolist()
        assert clip.duration_s == pytest.approx(alone.duration_s)
    assert decoded.signature == decoder.read_file(FileRequest(video, "video", ((None, None),))).signature
    with pytest.raises(DecodeError, match="6 s long"):
        decoder.read_file(FileRequest(video, "video", ((99.0, None), (7.0, 8.0))))


def cut(share: float) -> Callable[[bytes], bytes]:
    return lambda data: data[: int(len(data) * share)]


def damaged_files(folder: Path) -> dict[str, tuple[Path, str]]:
    """Bad files, and a word of what is to be said about each."""
    index_first = write_video(folder / "a.mp4", options={"movflags": "faststart"}).read_bytes()
    index_last = write_video(folder / "b.mp4").read_bytes()
    matroska = write_video(folder / "c.mkv").read_bytes()
    flipped = bytearray(index_first)
    for position in range(len(flipped) // 4, len(flipped), 7):
        flipped[position] ^= 0xFF
    playlist = b"#EXTM3U\n#EXT-X-TARGETDURATION:10\n#EXTINF:10,\na.mp4\n#EXT-X-ENDLIST\n"
    contents = {
        "empty.mp4": (b"", "empty"),
        "text.mp4": (b"This is not a video.\n" * 20, "text"),
        "error-page.mp4": ("<html>Seite nicht gefunden: ü</html>".encode(), "text"),
        "playlist.mp4": (playlist, "text"),
        "playlist-with-null.mp4": (playlist.replace(b"10,", b"10,\0"), "text"),
        "random.mp4": (np.random.default_rng(0).bytes(5000), "not a readable video"),
        "zeros.mp4": (bytes(5000), "not a readable video"),
        "half.mp4": (cut(0.5)(index_last), "not a readable video"),
        "half-index-first.mp4": (cut(0.5)(index_first), "truncated"),
        "nearly-whole.mp4": (cut(0.98)(index_first), "truncated"),
        "half.mkv": (cut(0.5)(matroska), "truncated"),
        "flipped.mp4": (bytes(flipped), "damaged|no frames"),
        "picture.mp4": (_png((64, 64)), "not a video"),
        "sound.mp4": (write_audio(folder / "d.mp4").read_bytes(), "no video stream, only audio"),
    }
    files = {}
    for name, (data, word) in contents.items():
        (folder / name).write_bytes(data)
        files[name] = (folder / name, word)
    (folder / "folder.mp4").mkdir()
    return files | {
        "missing.mp4": (folder / "missing.mp4", "No such file"),
        "folder.mp4": (folder / "folder.mp4", "not a regular file"),
    }


def _png(size: tuple[int, int], mode: str = "RGB", **options: Any) -> bytes:
    import io

    buffer = io.BytesIO()
    Image.new(mode, size).save(buffer, "PNG", **options)
    return buffer.getvalue()


@pytest.fixture(scope="module")
def damaged(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Path, str]]:
    return damaged_files(tmp_path_factory.mktemp("damaged"))


def test_damaged_files_are_refused_with_their_reason_and_the_worker_goes_on(
    damaged: dict[str, tuple[Path, str]], decoder: Decoder, video: Path
) -> None:
    for name, (path, word) in damaged.items():
        with pytest.raises(DecodeError, match=word) as error:
            decoder.read(path)
        assert "\n" not in str(error.value), name
        assert not isinstance(error.value, DecodeLimitError), name
    assert numbers(decoder.read(video).frames)[0] == 0


def test_too_large_and_too_long_files_are_refused(video: Path) -> None:
    with pytest.raises(DecodeError, match="max_file_bytes"):
        read_clip(video, CONFIG.model_copy(update={"max_file_bytes": 100}))
    with pytest.raises(DecodeError, match="max_duration_s"):
        read_clip(video, CONFIG.model_copy(update={"max_duration_s": 5.0}))


# --------------------------------------------------------------------------------------------------------------- images


def test_an_image_is_a_clip_of_one_frame(tmp_path: Path) -> None:
    Image.new("RGB", (200, 100), "red").save(tmp_path / "i.jpg")
    clip = read_clip(tmp_path / "i.jpg", VideoConfig(), "image")
    assert clip.frames.shape == (1, 112, 196, 3)
    assert clip.kind == "image"
    assert clip.times_s.tolist() == [0.0]
    assert clip.fps == 0


def test_transparency_becomes_white_and_exif_orientation_is_followed(tmp_path: Path) -> None:
    Image.new("RGBA", (64, 64), (0, 0, 0, 0)).save(tmp_path / "i.png")
    assert read_clip(tmp_path / "i.png", VideoConfig(), "image").frames.min() == 255
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (200, 100)).save(tmp_path / "i.jpg", exif=exif)
    assert read_clip(tmp_path / "i.jpg", VideoConfig(), "image").frames.shape == (1, 196, 112, 3)


def test_bad_images_are_refused_with_their_reason(tmp_path: Path, decoder: Decoder) -> None:
    noise = np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8)
    Image.fromarray(noise).save(tmp_path / "whole.png")
    Image.fromarray(noise).save(tmp_path / "whole.jpg", quality=95)
    bad = {
        "text.png": (b"no picture", "text"),
        "empty.png": (b"", "empty"),
        "cut.png": (cut(0.6)((tmp_path / "whole.png").read_bytes()), "damaged"),
        "cut.jpg": (cut(0.6)((tmp_path / "whole.jpg").read_bytes()), "damaged"),
        "random.png": (np.random.default_rng(0).bytes(999), "not an image"),
        "bomb.png": (_png((20_000, 10_000), "1"), "pixels"),
    }
    for name, (data, word) in bad.items():
        (tmp_path / name).write_bytes(data)
        with pytest.raises(DecodeError, match=word):
            decoder.read(tmp_path / name, "image")


# -------------------------------------------------------------------------------------------------------- stored frames


def test_png_gives_back_the_same_frames_and_jpeg_nearly_the_same(video: Path) -> None:
    clip = read_clip(video, CONFIG)
    assert (stored(clip, VideoConfig(frame_codec="png")).frames == clip.frames).all()
    jpeg = stored(clip, VideoConfig(frame_codec="jpeg", frame_quality=95)).frames
    assert 0 < np.abs(jpeg.astype(int) - clip.frames).mean() < 3


def test_stored_is_what_a_worker_encodes_and_a_reader_decodes(video: Path, decoder: Decoder) -> None:
    clip = decoder.read(video)
    (encoded,) = decoder.read_file(FileRequest(video)).clips
    assert isinstance(encoded, EncodedClip)
    assert encoded.frames == encode_frames(clip, CONFIG)
    assert (decode_frames(encoded.frames) == stored(clip, CONFIG).frames).all()
    assert encode_clip(clip, CONFIG).times_s.tolist() == encoded.times_s.tolist()
    assert (encoded.height, encoded.width, encoded.duration_s) == (SIZE, SIZE, clip.duration_s)


def test_permuted_reorders_frames_and_keeps_times(video: Path) -> None:
    clip = read_clip(video, CONFIG)
    order = [3, 1, 0, 2, 7, 6, 5, 4]
    shuffled = clip.permuted(order)
    assert numbers(shuffled.frames) == [numbers(clip.frames)[i] for i in order]
    assert shuffled.times_s.tolist() == clip.times_s.tolist()
    with pytest.raises(ValueError, match="permutation"):
        clip.permuted([0, 0, 1, 2, 3, 4, 5, 6])


# ---------------------------------------------------------------------------------------------------------- the decoder


def test_a_worker_gives_exactly_what_this_process_would(video: Path, decoder: Decoder) -> None:
    here, there = read_clip(video, CONFIG), decoder.read(video)
    assert (here.frames == there.frames).all()
    assert here.times_s.tolist() == there.times_s.tolist()
    assert (here.duration_s, here.kind) == (there.duration_s, there.kind)


def test_map_keeps_the_order_and_puts_errors_in_their_place(video: Path, tmp_path: Path, decoder: Decoder) -> None:
    (tmp_path / "empty.mp4").touch()
    starts = [i / 20 for i in range(60)]
    requests = [
        FileRequest(tmp_path / "empty.mp4" if i % 10 == 3 else video, "video", ((s, None),))
        for i, s in enumerate(starts)
    ]
    for index, result in enumerate(decoder.map_files(iter(requests))):
        if index % 10 == 3:
            assert isinstance(result, DecodeError)
        else:
            assert isinstance(result, DecodedFile)
            (clip,) = result.clips
            assert isinstance(clip, EncodedClip)
            assert clip.duration_s == pytest.approx(6.0 - starts[index])
    assert index == 59


def test_map_takes_only_a_few_requests_ahead(video: Path, decoder: Decoder) -> None:
    taken = 0

    def requests() -> Iterator[FileRequest]:
        nonlocal taken
        for _ in range(1000):
            taken += 1
            yield FileRequest(video)

    results = decoder.map_files(requests())
    for _ in range(3):
        next(results)
    results.close()  # type: ignore[attr-defined]
    assert taken <= 3 + 4 * decoder.workers


def test_a_decode_that_takes_too_long_is_killed_and_the_next_one_works(slow_video: Path, video: Path) -> None:
    config = CONFIG.model_copy(update={"decode_timeout_s": 0.5})
    with Decoder(config) as decoder:
        with pytest.raises(DecodeLimitError, match=r"longer than 0\.5 s"):
            decoder.read(slow_video)
        assert numbers(decoder.read(video).frames)[0] == 0
    assert read_clip(slow_video, CONFIG).frames.shape[0] == 8  # the file itself is sound


def test_a_decode_that_needs_too_much_memory_is_refused_and_the_next_one_works(tmp_path: Path, video: Path) -> None:
    (tmp_path / "large.png").write_bytes(_png((11_000, 11_000), "L"))
    with Decoder(CONFIG.model_copy(update={"decode_memory_mib": 256})) as decoder:
        with pytest.raises(DecodeLimitError, match="more memory than 256 MiB"):
            decoder.read(tmp_path / "large.png", "image")
        assert numbers(decoder.read(video).frames)[0] == 0


def test_a_worker_that_dies_is_replaced(slow_video: Path, video: Path) -> None:
    with Decoder(CONFIG) as decoder:
        decoder.read(video)
        (worker,) = decoder._all
        assert worker._process is not None
        os.kill(worker._process.pid, signal.SIGKILL)
        worker._process.wait()
        assert numbers(decoder.read(video).frames)[0] == 0
        pid = worker._process.pid
        subprocess.Popen(["/bin/sh", "-c", f"sleep 0.2; kill -SEGV {pid}"])
        with pytest.raises(DecodeLimitError, match="SIGSEGV"):
            decoder.read(slow_video)
        assert numbers(decoder.read(video).frames)[0] == 0


def test_closing_ends_the_workers(video: Path) -> None:
    with Decoder(CONFIG) as decoder:
        decoder.read(video)
        process = decoder._all[0]._process
        assert process is not None
    assert process.poll() is not None
    with pytest.raises(RuntimeError, match="closed"):
        decoder.read(video)


def test_workers_end_with_a_killed_owner_and_never_load_torch(video: Path) -> None:
    script = (
        "import sys, time\n"
        "from vthink.components.common.video.config import VideoConfig\n"
        "from vthink.components.common.video.workers import Decoder\n"
        "decoder = Decoder(VideoConfig())\n"
        "decoder.read(sys.argv[1])\n"
        "print(decoder._all[0]._process.pid, flush=True)\n"
        "time.sleep(60)\n"
    )
    owner = subprocess.Popen([sys.executable, "-c", script, str(video)], stdout=subprocess.PIPE, text=True)
    assert owner.stdout is not None
    pid = int(owner.stdout.readline())
    assert "torch" not in Path(f"/proc/{pid}/maps").read_text()
    owner.kill()
    owner.wait()
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline and _runs(pid):
        time.sleep(0.05)
    assert not _runs(pid)


def _runs(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_importing_the_module_loads_no_decoder_and_no_torch() -> None:
    script = (
        "import sys, vthink.components.common.video.workers; print({'av', 'decord', 'PIL', 'torch'} & set(sys.modules))"
    )
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "set()"
