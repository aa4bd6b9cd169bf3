"""Every kind of file against ffmpeg and ffprobe, programs of their own: the same frames at the same times.

The corpus is generated; kinds that this machine's ffmpeg cannot encode are left out.
"""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from vthink.components.common.video.clip import DecodeError
from vthink.components.common.video.config import VideoConfig
from vthink.components.common.video.decode import read_clip
from vthink.components.common.video.probe import probe_file

from .corpus import filmed, make

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(shutil.which("ffmpeg") is None, reason="no ffmpeg to make the files and the truth"),
]
CONFIG = VideoConfig(num_frames=8, min_pixels=4 * 28 * 28, max_pixels=64 * 28 * 28)
HDR = (
    "zscale=t=linear:npl=100:agamma=false,format=gbrpf32le,zscale=p=bt709:agamma=false,tonemap=hable:desat=0:peak=10,"
    "zscale=t=bt709:r=pc:agamma=false,format=gbrp,"
)
"""What `picture.pixels_of` says it does, by zimg and FFmpeg's filters. Without ``agamma=false`` zimg takes HLG's system
gamma from each colour by itself and not from their luminance, as BT.2100 has it (7 levels of green)."""
REFUSED = {"concat-ts": "joined", "concat-mkv": "joined", "shear": "sheared", "rot45": "quarter turns"}


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return make(tmp_path_factory.mktemp("corpus"))


def truth(path: Path, stream: int, counted: bool) -> tuple[np.ndarray, np.ndarray]:
    """Times and pictures of all frames, by ffprobe and ffmpeg."""
    show = ["-show_streams", "-show_format", "-show_entries", "frame=best_effort_timestamp_time"]
    command = ["ffprobe", "-v", "error", "-of", "json", *show, "-select_streams", str(stream), str(path)]
    about = json.loads(subprocess.run(command, capture_output=True, check=True).stdout)
    (info,) = about["streams"]
    rate = float(Fraction(info["avg_frame_rate"])) if info["avg_frame_rate"] != "0/0" else 25.0
    stamps = [frame.get("best_effort_timestamp_time", "N/A") for frame in about["frames"]]
    known = [(number, float(stamp)) for number, stamp in enumerate(stamps) if stamp != "N/A"] or [(0, 0.0)]
    numbers = np.arange(len(stamps))
    times_s = np.interp(numbers, *zip(*known, strict=True))
    times_s += np.minimum(numbers - known[0][0], 0) / rate + np.maximum(numbers - known[-1][0], 0) / rate
    start_s = float(about["format"].get("start_time", times_s[0]))
    if start_s < 0 <= times_s[0]:
        start_s = 0.0  # what a decoder of sound gives before 0 is not played (RFC 7845); ffprobe 5 counts it
    times_s -= times_s[0] if counted or abs(times_s[0] - start_s) < 0.1 else start_s
    matrix = next((d["displaymatrix"] for d in info.get("side_data_list", []) if "displaymatrix" in d), None)
    size = info["width"], info["height"]
    if matrix and abs(int(matrix.split()[1])) < abs(int(matrix.split()[2])):
        size = size[::-1]
    is_hdr = info.get("color_transfer") in ("smpte2084", "arib-std-b67")
    filters = (HDR if is_hdr else "scale=interl=-1,") + "format=rgb24"
    command = ["ffmpeg", "-v", "error", "-nostdin", "-i", str(path), "-map", f"0:{stream}", "-fps_mode", "passthrough"]
    raw = subprocess.run([*command, "-vf", filters, "-f", "rawvideo", "-"], capture_output=True, check=True).stdout
    pixels = np.frombuffer(raw, np.uint8)
    count = len(pixels) // (size[0] * size[1] * 3)
    return times_s, pixels[: count * size[0] * size[1] * 3].reshape(count, size[1], size[0], 3)


def fault(path: Path) -> str:
    """What is wrong with the frames of a file and of two parts of it; empty: nothing."""
    probe = probe_file(path)
    times_s, pictures = truth(path, probe.stream_index, probe.counted)
    if len(times_s) != len(probe.times_s) or np.abs(times_s - probe.times_s).max() > 0.02:
        return f"{len(probe.times_s)} frames from {probe.times_s[0]} s, not {len(times_s)} from {times_s[0]} s"
    shown_s = probe.duration_s - probe.times_s[0]
    for low, high in ((0.0, 1.0), (0.3, 0.6), (0.71, 0.9)):
        start_s = probe.times_s[0] + low * shown_s if low else None
        clip = read_clip(path, CONFIG, start_s=start_s, end_s=probe.times_s[0] + high * shown_s)
        for frame, time_s in zip(clip.frames, clip.times_s + (start_s or 0.0), strict=True):
            number = int(np.searchsorted(times_s, time_s + 1e-3, "right")) - 1  # what is on the screen
            right = Image.fromarray(pictures[max(0, number)]).resize(frame.shape[1::-1], Image.Resampling.BICUBIC)
            if (difference := np.abs(np.asarray(right, np.int16) - frame).mean()) > 1.5:
                return f"the frame at {time_s:.2f} s is {difference:.1f} levels off"
    return ""


def test_every_kind_of_file_shows_what_ffmpeg_shows(corpus: dict[str, Path]) -> None:
    faults: dict[str, str] = {}
    for name, path in corpus.items():
        try:
            faults[name] = fault(path) or ("not refused" if name in REFUSED else "")
        except DecodeError as error:
            faults[name] = "" if name in REFUSED and REFUSED[name] in str(error) else f"refused: {error}"
    wrong = {name: text for name, text in faults.items() if text}
    print(f"{len(faults) - len(wrong)} of {len(faults)} kinds right; {wrong}")
    assert len(faults) >= 106
    assert not wrong


def test_the_comparison_notices_another_frame_and_another_clock(
    corpus: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The twin of the test above: a truth that is one frame or a tenth of a second off is not agreed to."""
    assert not fault(corpus["h264"])
    own = truth

    def next_frame(*arguments: Any) -> tuple[np.ndarray, np.ndarray]:
        times_s, pictures = own(*arguments)
        return times_s, np.roll(pictures, -1, axis=0)

    def late_clock(*arguments: Any) -> tuple[np.ndarray, np.ndarray]:
        times_s, pictures = own(*arguments)
        return times_s + 0.1, pictures

    for wrong in (next_frame, late_clock):
        monkeypatch.setattr(f"{__name__}.truth", wrong)
        assert fault(corpus["h264"])


@pytest.mark.parametrize("path", filmed(), ids=lambda path: path.stem)
def test_what_was_filmed_shows_what_ffmpeg_shows(path: Path) -> None:
    assert not fault(path)


Mutation = Callable[[bytes, np.random.Generator], bytes]


def hole(data: bytes, rng: np.random.Generator) -> bytes:
    start, length = rng.uniform(0.2, 0.7), rng.uniform(0.02, 0.2)
    return data[: int(len(data) * start)] + data[int(len(data) * (start + length)) :]


def zeros(data: bytes, rng: np.random.Generator) -> bytes:
    start, length = int(len(data) * rng.uniform(0.2, 0.8)), int(rng.integers(200, 4000))
    return data[:start] + bytes(len(data[start : start + length])) + data[start + length :]


def noise(data: bytes, rng: np.random.Generator) -> bytes:
    start, length = int(len(data) * rng.uniform(0.2, 0.8)), int(rng.integers(50, 2000))
    return data[:start] + rng.bytes(len(data[start : start + length])) + data[start + length :]


def cut(data: bytes, rng: np.random.Generator) -> bytes:
    return data[: int(len(data) * rng.uniform(0.3, 0.97))]


MUTATIONS: dict[str, Mutation] = {"hole": hole, "zeros": zeros, "noise": noise, "cut": cut}
MUTATED = (
    *("h264-bf", "h264-faststart", "h264-frag", "h264-mkv", "h264-ts", "h264-flv", "h264-avi", "hevc", "hevc-mkv"),
    *("vp9", "vp8", "av1-mkv", "mpeg2-ts", "mpeg4-avi", "mjpeg-mov", "theora", "sound-mkv", "prores"),
)


def test_mutations_that_change_what_is_shown_are_refused(corpus: dict[str, Path], tmp_path: Path) -> None:
    """What cannot be detected: bytes within one picture that are a picture again to an arithmetic decoder (VP8, VP9,
    H.264's CABAC), where the container has no checksum of it (Matroska, MP4, AVI); the missed ones are printed."""
    rng = np.random.default_rng(18)
    caught: dict[str, list[Any]] = {}
    for name in (name for name in MUTATED if name in corpus):
        data, right = corpus[name].read_bytes(), read_clip(corpus[name], CONFIG)
        path = tmp_path / corpus[name].name
        for mutation in (mutation for mutation in MUTATIONS for _ in range(5)):
            path.write_bytes(MUTATIONS[mutation](data, rng))
            try:
                clip = read_clip(path, CONFIG)
            except DecodeError:
                caught.setdefault(name, []).append(True)
                continue
            same = clip.frames.shape == right.frames.shape and np.abs(clip.times_s - right.times_s).max() < 0.02
            worst = np.abs(clip.frames.astype(int) - right.frames).mean(axis=(1, 2, 3)).max() if same else 255.0
            if worst > 3:
                caught.setdefault(name, []).append(f"{mutation}: {worst:.1f}")
    missed = {name: [m for m in all_ if m is not True] for name, all_ in caught.items()}
    missed = {name: texts for name, texts in missed.items() if texts}
    total, lost = sum(map(len, caught.values())), sum(map(len, missed.values()))
    print(f"{total - lost} of {total} caught; missed: {missed}")
    assert total > 300
    assert lost <= 0.05 * total, missed
