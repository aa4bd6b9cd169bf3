"""Decoding in processes that can be killed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from vthink.components.common.video.clip import (
    DecodedFile,
    DecodeError,
    DecodeLimitError,
    EncodedClip,
    FileRequest,
    encode_frames,
    stored,
)
from vthink.components.common.video.decode import read_clip
from vthink.components.common.video.workers import Decoder

from .videos import CONFIG, SIZE, _png, numbers


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


def test_damaged_files_are_refused_with_their_reason_and_the_worker_goes_on(
    damaged: dict[str, tuple[Path, str]], decoder: Decoder, video: Path
) -> None:
    for name, (path, word) in damaged.items():
        with pytest.raises(DecodeError, match=word) as error:
            decoder.read(path)
        assert "\n" not in str(error.value), name
        assert not isinstance(error.value, DecodeLimitError), name
    assert numbers(decoder.read(video).frames)[0] == 0


def test_stored_is_what_a_worker_encodes_and_a_reader_decodes(video: Path, decoder: Decoder) -> None:
    clip = decoder.read(video)
    (encoded,) = decoder.read_file(FileRequest(video)).clips
    assert isinstance(encoded, EncodedClip)
    assert encoded.frames == encode_frames(clip, CONFIG)
    assert (encoded.decode().frames == stored(clip, CONFIG).frames).all()
    assert stored(clip, CONFIG).times_s.tolist() == encoded.times_s.tolist()
    assert (encoded.height, encoded.width, encoded.duration_s) == (SIZE, SIZE, clip.duration_s)


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


def test_a_decode_that_nobody_waits_for_any_more_is_ended(
    slow_video: Path, video: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("vthink.components.common.video.workers._SPARE_S", 0)
    with Decoder(CONFIG) as decoder:
        with pytest.raises(DecodeError, match="nobody waits"):
            decoder.read(slow_video, stopped=lambda: True)
        # The control: one that somebody waits for goes on, and one that is done is given.
        assert numbers(decoder.read(video, stopped=lambda: False).frames)[0] == 0


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
