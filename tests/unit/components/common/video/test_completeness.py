"""Holes, damage and odd clocks in real files of each container; each whole file passes (its twin)."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from vthink.components.common.video.clip import DecodeError, OutsideError, UnreadableError
from vthink.components.common.video.config import VideoConfig
from vthink.components.common.video.decode import read_clip
from vthink.components.common.video.probe import probe_file

from .videos import CONFIG, SIZE, numbered_frame, numbers, write_audio, write_video

CONTAINERS = {
    "v.mkv": ("libx264", {"g": "12", "bf": "2"}, {}, "elements"),
    "v.webm": ("libvpx", {"g": "12", "deadline": "realtime"}, {}, "elements"),
    "v.ts": ("libx264", {"g": "12", "bf": "2"}, {}, "continuity counters"),
    "v.flv": ("libx264", {"g": "12", "bf": "2"}, {}, "tags"),
    "v.avi": ("mpeg4", {"g": "12"}, {}, "frame count"),
    "v.mp4": ("libx264", {"g": "12", "bf": "2"}, {"movflags": "frag_keyframe+empty_moov"}, "boxes"),
    "w.mp4": ("libx264", {"g": "12", "bf": "2"}, {}, "frame count"),
}


@pytest.mark.parametrize("name", CONTAINERS)
def test_a_hole_is_seen_in_every_container_and_a_whole_file_passes(name: str, tmp_path: Path) -> None:
    codec, codec_options, options, how = CONTAINERS[name]
    path = write_video(tmp_path / name, 60, codec, codec_options=codec_options, options=options)
    assert probe_file(path).completeness == how
    assert numbers(read_clip(path, CONFIG).frames)[-1] == 59
    data = path.read_bytes()
    packet = 188 if name == "v.ts" else 1
    for start, length in ((0.35, 0.1), (0.5, 0.02), (0.6, 0.2)):
        low, high = (int(len(data) * share) // packet * packet for share in (start, start + length))
        path.write_bytes(data[:low] + data[high:])
        with pytest.raises(DecodeError, match=r"damaged|truncated|not a readable"):
            read_clip(path, CONFIG)


def test_a_video_that_rests_for_seconds_is_whole(tmp_path: Path) -> None:
    stamps = [*range(20), *range(80, 120)]
    for name in ("v.mkv", "v.mp4"):
        path = write_video(tmp_path / name, 60, stamps=stamps)
        assert probe_file(path).times_s[20] == pytest.approx(8.0)
        assert len(read_clip(path, CONFIG).frames) == 8


@pytest.mark.parametrize("decoder", ["pyav", "decord"])
def test_corrupt_pictures_are_refused_whichever_decoder_is_chosen(decoder: str, tmp_path: Path) -> None:
    config = CONFIG.model_copy(update={"decoder": decoder})
    for name, codec in (("v.mp4", "libx264"), ("v.mov", "mjpeg")):
        options = {"movflags": "faststart"}  # the pictures come last
        codec_options = {"g": "60"} if codec == "libx264" else {"strict": "unofficial"}
        path = write_video(tmp_path / name, 60, codec, codec_options=codec_options, options=options)
        read_clip(path, config)
        data = bytearray(path.read_bytes())
        length = len(data) - data.index(b"mdat")
        start = len(data) - length * 3 // 4
        data[start : start + length // 3] = np.random.default_rng(0).bytes(length // 3)
        path.write_bytes(data)
        with pytest.raises(DecodeError, match="damaged"):
            read_clip(path, config)


@pytest.mark.parametrize("name", ["v.avi", "x.avi", "v.h264", "v.hevc"])
def test_frames_without_a_time_of_their_own_are_counted(name: str, tmp_path: Path) -> None:
    codec = {"v.avi": "libx264", "x.avi": "mpeg4", "v.h264": "libx264", "v.hevc": "libx265"}[name]
    options = {"x265-params": "log-level=none"} if codec == "libx265" else {"g": "12", "bf": "2"}
    path = write_video(tmp_path / name, 100, codec, fps=25, codec_options=options)
    config = CONFIG.model_copy(update={"num_frames": 4})
    for start in (0, 20, 50, 81):
        clip = read_clip(path, config, start_s=start / 25, end_s=(start + 4) / 25)
        assert numbers(clip.frames) == [start, start + 1, start + 2, start + 3]
        assert clip.times_s == pytest.approx([0, 0.04, 0.08, 0.12], abs=1e-3)


def test_times_are_those_of_a_players_clock_where_the_video_starts_late(tmp_path: Path) -> None:
    path = tmp_path / "v.mkv"
    with av.open(str(path), "w") as container:
        sound: Any = container.add_stream("aac", rate=16000)
        stream: Any = container.add_stream("libx264", rate=10)
        stream.width, stream.height, stream.pix_fmt = SIZE, SIZE, "yuv420p"
        for index in range(80):
            audio = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
            audio.sample_rate, audio.pts = 16000, index * 1024
            container.mux(sound.encode(audio))
        container.mux(sound.encode())
        for number in range(20):
            frame = av.VideoFrame.from_ndarray(numbered_frame(number), format="rgb24")
            frame.pts = 30 + number
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    probe = probe_file(path)
    assert probe.has_sound
    assert (probe.times_s[0], probe.duration_s) == (pytest.approx(3.0, abs=0.1), pytest.approx(5.0, abs=0.1))
    part = read_clip(path, CONFIG.model_copy(update={"num_frames": 2}), start_s=4.05, end_s=4.3)
    assert 10 <= numbers(part.frames)[0] <= 12
    for start_s, end_s in ((0.0, 2.0), (9.0, 10.0)):
        with pytest.raises(OutsideError, match="nothing between"):
            read_clip(path, CONFIG, start_s=start_s, end_s=end_s)


FIXED = 65536
MATRICES: dict[str, tuple[tuple[int, int, int, int], Callable[[np.ndarray], np.ndarray]]] = {
    "mirrored": ((-FIXED, 0, 0, FIXED), lambda frame: frame[:, ::-1]),
    "upside down": ((FIXED, 0, 0, -FIXED), lambda frame: frame[::-1]),
    "a quarter turn": ((0, FIXED, -FIXED, 0), lambda frame: np.rot90(frame, -1)),
    "transposed": ((0, FIXED, FIXED, 0), lambda frame: frame.swapaxes(0, 1)),
}


def with_matrix(path: Path, a: int, b: int, c: int, d: int) -> Path:
    data = bytearray(path.read_bytes())
    start = data.index(b"tkhd") + 44
    data[start : start + 36] = np.asarray([a, b, 0, c, d, 0, 0, 0, 1 << 30], ">i4").tobytes()
    path.write_bytes(data)
    return path


@pytest.mark.parametrize("kind", MATRICES)
def test_frames_are_turned_and_mirrored_as_a_player_does(kind: str, tmp_path: Path) -> None:
    path = write_video(tmp_path / "v.mp4", 8)
    as_stored = read_clip(path, CONFIG).frames
    matrix, turn = MATRICES[kind]
    shown = read_clip(with_matrix(path, *matrix), CONFIG).frames
    assert np.abs(shown.astype(int) - np.stack([turn(frame) for frame in as_stored])).max() <= 2
    stored = read_clip(path, CONFIG.model_copy(update={"orientation": "stored"})).frames
    assert (stored == as_stored).all()


def test_a_sheared_picture_is_refused_with_its_reason(tmp_path: Path) -> None:
    path = with_matrix(write_video(tmp_path / "v.mp4", 8), FIXED, FIXED // 2, 0, FIXED)
    with pytest.raises(DecodeError, match="sheared"):
        read_clip(path, CONFIG)


def test_pixels_that_are_not_square_are_stretched(tmp_path: Path) -> None:
    with av.open(str(tmp_path / "v.mp4"), "w") as container:
        stream: Any = container.add_stream("libx264", rate=10)
        stream.width, stream.height, stream.pix_fmt = SIZE, SIZE, "yuv420p"
        stream.codec_context.sample_aspect_ratio = 2
        for number in range(8):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(numbered_frame(number), format="rgb24")))
        container.mux(stream.encode())
    config = VideoConfig(num_frames=8, min_pixels=28 * 28, max_pixels=4 * SIZE * SIZE)
    assert read_clip(tmp_path / "v.mp4", config).frames.shape[1:3] == (SIZE, 2 * SIZE)
    stored = config.model_copy(update={"orientation": "stored"})
    assert read_clip(tmp_path / "v.mp4", stored).frames.shape[1:3] == (SIZE, SIZE)


def test_a_change_of_resolution_keeps_the_size_of_the_first_frame(tmp_path: Path) -> None:
    parts = [write_video(tmp_path / f"{size}.h264", 20, size=(size, size)).read_bytes() for size in (SIZE, 2 * SIZE)]
    (tmp_path / "v.h264").write_bytes(b"".join(parts))
    clip = read_clip(tmp_path / "v.h264", CONFIG)
    assert clip.frames.shape == (8, SIZE, SIZE, 3)


def test_files_that_were_joined_are_refused_with_their_reason(tmp_path: Path) -> None:
    path = write_video(tmp_path / "v.ts")
    path.write_bytes(2 * path.read_bytes())
    with pytest.raises(DecodeError, match="files that were joined"):
        read_clip(path, CONFIG)


def test_what_the_system_cannot_read_has_its_reason(tmp_path: Path) -> None:
    for path, why in ((tmp_path, "not a regular file"), (Path("/proc/self/mem"), "Input/output error")):
        with pytest.raises(UnreadableError, match=why):
            read_clip(path, CONFIG)


def test_sound_is_noted(tmp_path: Path) -> None:
    assert not probe_file(write_video(tmp_path / "v.mp4", 8)).has_sound
    with pytest.raises(DecodeError, match="only audio"):
        probe_file(write_audio(tmp_path / "a.mp4"))
