"""Files to clips: real videos and images, good and bad; the right frames, and the same ones, with PyAV and decord."""

from __future__ import annotations

import struct
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from PIL import Image
from vthink.components.common.video import decode as readers
from vthink.components.common.video.clip import DecodeError
from vthink.components.common.video.config import VideoConfig
from vthink.components.common.video.decode import read_clip
from vthink.components.common.video.frames import frame_indices, select_frames, target_size
from vthink.components.common.video.probe import probe_file
from vthink.components.common.video.workers import Decoder

from .videos import CONFIG, SIZE, _png, cut, numbered_frame, numbers, write_video


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


def test_too_large_and_too_long_files_are_refused(video: Path) -> None:
    with pytest.raises(DecodeError, match="max_file_bytes"):
        read_clip(video, CONFIG.model_copy(update={"max_file_bytes": 100}))
    with pytest.raises(DecodeError, match="max_duration_s"):
        read_clip(video, CONFIG.model_copy(update={"max_duration_s": 5.0}))


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


def test_importing_the_module_loads_no_decoder_and_no_torch() -> None:
    script = (
        "import sys, vthink.components.common.video.workers; print({'av', 'decord', 'PIL', 'torch'} & set(sys.modules))"
    )
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "set()"


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
