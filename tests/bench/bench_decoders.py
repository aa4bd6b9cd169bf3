"""PyAV as this package uses it, decord and torchcodec side by side: which frames, then how fast.

``python tests/bench/bench_decoders.py`` takes some minutes and writes `.vthink/bench.json`. *Plain* is the other one
as its page shows it, *own* PyAV with the probe of every packet before it; both resize 16 frames to the size of a
training. torchcodec is compared where it is installed (``pip install torchcodec==0.13.0`` beside torch 2.13 on a CPU:
later wheels of PyPI need CUDA's libraries) and FFmpeg 4 to 8 as a shared library.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import multiprocessing
import subprocess
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from recording import Measurement, record
from vthink.components.common.video.config import VideoConfig
from vthink.components.common.video.decode import decode_with_pyav
from vthink.components.common.video.frames import target_size
from vthink.components.common.video.picture import resize
from vthink.components.common.video.probe import probe_file

VIDEO = VideoConfig(num_frames=16)
SIDE, FRAMES = 112, 200
KINDS: dict[str, tuple[str, dict[str, str]]] = {
    "h264.mp4": ("libx264", {"g": "30", "bf": "3"}),
    "open.mp4": ("libx264", {"x264-params": "open-gop=1:keyint=30:scenecut=0:bframes=3"}),
    "hevc.mp4": ("libx265", {"x265-params": "log-level=none:keyint=30"}),
    "vp9.webm": ("libvpx-vp9", {"g": "30", "deadline": "realtime", "cpu-used": "8"}),
    "h264.ts": ("libx264", {"g": "30", "bf": "3"}),
    "mpeg4.avi": ("mpeg4", {"g": "12", "bf": "2"}),
}


def with_pyav(path: Path, indices: np.ndarray | None) -> np.ndarray:
    probe = probe_file(path)
    return decode_with_pyav(path, spread(len(probe.pts)) if indices is None else indices, probe, VIDEO)[0]


def with_decord(path: Path, indices: np.ndarray | None) -> np.ndarray:
    import decord

    decord.logging.set_level(decord.logging.QUIET)
    reader = decord.VideoReader(str(path), ctx=decord.cpu(0), num_threads=1)
    return sized(reader.get_batch(spread(len(reader)) if indices is None else indices).asnumpy())


def with_torchcodec(path: Path, indices: np.ndarray | None) -> np.ndarray:
    from torchcodec.decoders import VideoDecoder

    reader = VideoDecoder(str(path), dimension_order="NHWC", num_ffmpeg_threads=1)
    chosen = spread(len(reader)) if indices is None else indices
    return sized(reader.get_frames_at(chosen.tolist()).data.numpy())


DECODERS: dict[str, Callable[[Path, np.ndarray | None], np.ndarray]] = {
    "pyav": with_pyav,
    "decord": with_decord,
    "torchcodec": with_torchcodec,
}


def spread(count: int) -> np.ndarray:
    return np.linspace(0, count - 1, 16).round().astype(np.int64)


def sized(frames: np.ndarray) -> np.ndarray:
    return resize(frames, target_size(*frames.shape[1:3], VIDEO))


def write_numbered(path: Path, codec: str, options: dict[str, str]) -> None:
    """Frames that show their numbers, as eight white or black bars."""
    import av

    with av.open(str(path), "w") as container:
        stream: Any = container.add_stream(codec, rate=25, options=options)
        stream.width, stream.height, stream.pix_fmt = SIDE, SIDE, "yuv420p"
        for number in range(FRAMES):
            bars = np.repeat([255 * (number >> bit & 1) for bit in range(8)], SIDE // 8).astype(np.uint8)
            pixels = np.ascontiguousarray(np.broadcast_to(bars[None, :, None], (SIDE, SIDE, 3)))
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        container.mux(stream.encode())


def shown_numbers(frames: np.ndarray) -> np.ndarray:
    bars = frames.mean(axis=(1, 3)).reshape(len(frames), 8, -1)[:, :, frames.shape[2] // 32 : -frames.shape[2] // 32]
    return ((bars.mean(axis=2) > 127) << np.arange(8)).sum(axis=1)


def right_frames(decoder: str, folder: Path) -> tuple[int, list[str]]:
    """How many of 16 frames of each kind are those that were asked for, and the kinds in which some are not."""
    rng = np.random.default_rng(0)
    right, wrong = 0, []
    for name in KINDS:
        asked = np.sort(rng.choice(FRAMES, 16, replace=False))
        try:
            count = int((shown_numbers(DECODERS[decoder](folder / name, asked)) == asked).sum())
        except Exception as error:  # a decoder that cannot read a kind has no frame right
            count = 0
            print(f"{decoder}, {name}: {error!r:.200}")
        right += count
        wrong += [f"{name} {count}/16"] if count < 16 else []
    return right, wrong


def write_clips(folder: Path) -> dict[str, Path]:
    """10 s of 1280 × 720, and an hour: a minute of 640 × 360, 60 times."""
    clips = {}
    for name, size, seconds, times in (("10-s", "1280x720", 10, 1), ("1-h", "640x360", 60, 60)):
        part, clips[name] = folder / f"{name}-part.mp4", folder / f"{name}.mp4"
        picture = f"testsrc2=s={size}:r=25:d={seconds},noise=alls=12:allf=t"
        encode = ["-c:v", "libx264", "-preset", "veryfast", "-pix_fmt", "yuv420p", "-bf", "2"]
        ffmpeg = ["ffmpeg", "-v", "error", "-y", "-nostdin"]
        subprocess.run([*ffmpeg, "-f", "lavfi", "-i", picture, *encode, str(part)], check=True)
        loop = ["-stream_loop", str(times - 1), "-i", str(part), "-c", "copy"]
        subprocess.run([*ffmpeg, *loop, str(clips[name])], check=True)
    return clips


def seconds_per_clip(decoder: str, path: Path, processes: int, rounds: int) -> tuple[float, float]:
    """Wall and CPU seconds; the best of the rounds, in which every process decodes the clip once."""
    read = partial(_read, decoder, path)
    wall_s, cpu_s = [], []
    with multiprocessing.get_context("spawn").Pool(processes) as pool:
        pool.map(partial(_import, decoder), range(2 * processes), chunksize=1)
        for _ in range(rounds):
            start = time.perf_counter()
            cpu_s += pool.map(read, range(processes), chunksize=1)
            wall_s.append((time.perf_counter() - start) / processes)
    return min(wall_s), min(cpu_s)


def _import(decoder: str, _: int) -> None:
    importlib.import_module({"pyav": "av"}.get(decoder, decoder))


def _read(decoder: str, path: Path, _: int) -> float:
    start = time.process_time()
    DECODERS[decoder](path, None)
    return time.process_time() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    rounds = parser.parse_args().rounds
    with tempfile.TemporaryDirectory(prefix="vthink-bench-") as name:
        folder = Path(name)
        for kind, (codec, options) in KINDS.items():
            write_numbered(folder / kind, codec, options)
        clips = write_clips(folder)
        right = {}
        for decoder in [decoder for decoder in DECODERS if decoder == "pyav" or importlib.util.find_spec(decoder)]:
            right[decoder], wrong = right_frames(decoder, folder)
            print(f"{decoder}: {right[decoder]} of {16 * len(KINDS)} frames right; wrong in {wrong}", flush=True)
        for clip, path in clips.items():
            for processes in (1, 2):
                seconds = {decoder: seconds_per_clip(decoder, path, processes, rounds) for decoder in right}
                record(
                    Measurement(
                        name=f"decoders/{clip}-{processes}-process{'es' * (processes > 1)}-{decoder}",
                        plain_seconds=seconds[decoder][0],
                        own_seconds=seconds["pyav"][0],
                        setting={"frames": 16, "clip": clip, "processes": processes, "unit": "wall seconds per clip"},
                        extra={
                            "cpu_s_plain": seconds[decoder][1],
                            "cpu_s_own": seconds["pyav"][1],
                            "right_frames": f"{right[decoder]} of {16 * len(KINDS)}, PyAV {right['pyav']}",
                        },
                    )
                    for decoder in right
                    if decoder != "pyav"
                )


if __name__ == "__main__":
    main()
