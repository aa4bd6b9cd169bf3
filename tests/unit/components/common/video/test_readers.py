"""Frames with decord and PyAV: the right ones, the same ones."""

from __future__ import annotations

import struct
import sys
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from vthink.components.common.video import decode as readers
from vthink.components.common.video.decode import read_clip
from vthink.components.common.video.frames import select_frames
from vthink.components.common.video.probe import probe_file

from .videos import CONFIG, SIZE, numbered_frame, numbers, write_video

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
    probe = probe_file(video)
    indices = select_frames(probe.times_s, probe.duration_s, CONFIG)
    ours, size = readers.decode_with_decord(video, indices, probe, CONFIG)
    theirs, their_size = readers.decode_with_pyav(video, indices, probe, CONFIG)
    assert size == their_size == (SIZE, SIZE)
    assert np.abs(ours.astype(int) - theirs.astype(int)).max() <= 2


def test_pyav_decodes_what_decord_refuses(video: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with_decord = CONFIG.model_copy(update={"decoder": "decord"})
    expected = read_clip(video, with_decord)
    monkeypatch.setitem(sys.modules, "decord", None)
    assert numbers(read_clip(video, with_decord).frames) == numbers(expected.frames)


def test_a_rotated_video_is_turned_upright_by_both_decoders(tmp_path: Path) -> None:
    data = bytearray(write_video(tmp_path / "v.mp4", 8).read_bytes())
    matrix = data.index(b"tkhd") + 44
    data[matrix : matrix + 36] = struct.pack(">9i", 0, 65536, 0, -65536, 0, 0, 0, 0, 1 << 30)
    path = tmp_path / "rotated.mp4"
    path.write_bytes(data)
    probe = probe_file(path)
    indices = np.arange(8)
    turned, _ = readers.decode_with_decord(path, indices, probe, CONFIG)
    assert numbers(np.rot90(turned, axes=(1, 2))) == list(range(8))
    assert np.abs(turned.astype(int) - readers.decode_with_pyav(path, indices, probe, CONFIG)[0]).max() <= 2


def test_a_varying_frame_rate_gives_true_times(tmp_path: Path) -> None:
    path = write_video(tmp_path / "v.mp4", 6, stamps=[0, 1, 2, 3, 40, 50])
    clip = read_clip(path, CONFIG.model_copy(update={"num_frames": 4}))
    assert numbers(clip.frames) == [0, 3, 4, 5]
    assert clip.times_s == pytest.approx([0, 0.3, 4.0, 5.0])


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
