"""Damaged videos among good ones: every row accounted for, no good row lost, no row with another's frames.

``VTHINK_MUTATIONS`` says how many of each (default 120).
"""

from __future__ import annotations

import hashlib
import json
import os
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from vthink.components.common.context import RunContext
from vthink.components.common.rows.prepared import PreparedSet
from vthink.components.common.storage.manifest import Manifest
from vthink.components.common.storage.s3 import Storage
from vthink.components.common.video.clip import Clip, DecodeError, stored
from vthink.components.common.video.config import VideoConfig
from vthink.components.common.video.workers import Decoder
from vthink.components.data_prep import prepare
from vthink.components.data_prep.config import DataPrepConfig
from vthink.components.data_prep.world.synthesize import write_mp4

from .conftest import make_row, square_at, write_rows

COUNT = int(os.environ.get("VTHINK_MUTATIONS", "120"))

Mutation = Callable[[bytes, bytes, np.random.Generator], bytes]


def flip_bits(data: bytes, _: bytes, rng: np.random.Generator) -> bytes:
    changed = np.frombuffer(data, np.uint8).copy()
    places = rng.integers(0, len(changed), int(rng.integers(1, 40)))
    changed[places] ^= (1 << rng.integers(0, 8, len(places))).astype(np.uint8)
    return changed.tobytes()


def splice(data: bytes, other: bytes, rng: np.random.Generator) -> bytes:
    return data[: int(rng.integers(len(data)))] + other[int(rng.integers(len(other))) :]


MUTATIONS: dict[str, tuple[str, Mutation]] = {
    "truncated": (".mp4", lambda data, _, rng: data[: int(rng.integers(1, len(data)))]),
    "flipped": (".mp4", flip_bits),
    "spliced": (".mp4", splice),
    "random": (".mp4", lambda data, _, rng: rng.bytes(len(data))),
    "empty": (".mp4", lambda *_: b""),
    "wrong-container": (".mp4", lambda data, *_: b"RIFF" + len(data).to_bytes(4, "little") + b"AVI LIST" + data[16:]),
    "wrong-extension": (".txt", lambda data, *_: data),
}


def hashed(clip: Clip) -> str:
    return hashlib.sha256(clip.frames.tobytes() + clip.times_s.tobytes()).hexdigest()


def children() -> dict[int, int]:
    """Processes that this one has started, and their resident KiB."""
    found = {}
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            parent = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
            if parent == os.getpid():
                found[int(entry.name)] = int((entry / "statm").read_text().split()[1]) * 4
        except (OSError, IndexError):
            continue
    return found


@contextmanager
def watched() -> Iterator[list[int]]:
    """The KiB that this process and its children use together, every fifth of a second."""
    samples: list[int] = []
    end = threading.Event()

    def watch() -> None:
        while not end.wait(0.2):
            own = int(Path("/proc/self/statm").read_text().split()[1]) * 4
            samples.append(own + sum(children().values()))

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield samples
    finally:
        end.set()
        thread.join()


def test_damaged_videos_cost_their_own_rows_and_nothing_else(
    context: RunContext, video: VideoConfig, tmp_path: Path
) -> None:
    rng = np.random.default_rng(0)
    video = video.model_copy(update={"decode_timeout_s": 20.0})
    rows, kinds, paths = [], {}, {}
    for number in range(COUNT):
        path = tmp_path / f"good-{number}.mp4"
        write_mp4(path, square_at(number), 4.0)
        kinds[f"good-{number}"], paths[f"good-{number}"] = "good", path
    for number in range(COUNT):
        kind = list(MUTATIONS)[number % len(MUTATIONS)]
        suffix, mutate = MUTATIONS[kind]
        data, other = ((tmp_path / f"good-{n % COUNT}.mp4").read_bytes() for n in (number, number + 1))
        path = tmp_path / f"bad-{number}{suffix}"
        path.write_bytes(mutate(data, other, rng))
        kinds[f"bad-{number}"], paths[f"bad-{number}"] = kind, path
    names = list(kinds)
    rng.shuffle(names)
    rows = [make_row(0, str(paths[name]), id=name) for name in names]
    source = write_rows(tmp_path / "rows.jsonl", rows)
    before = set(children())
    config = DataPrepConfig(source=str(source), workers=2, max_quarantined=1.0, store="frames")
    start = time.monotonic()
    with watched() as kib:
        uri = prepare.prepare_data(context.to_json(), config.to_json(), video.to_json())
    assert time.monotonic() - start < 0.2 * 2 * COUNT + 60
    assert set(children()) <= before

    storage = Storage(context.storage)
    manifest = Manifest.read(storage, uri)
    out = {row.sample.id: row for row in PreparedSet.open(storage, uri, tmp_path / "cache").split("train")}
    left = {row["id"]: row for row in map(json.loads, storage.read_bytes(manifest.files["quarantine"]).splitlines())}
    assert len(out) + len(left) == manifest.counts["rows_in"] == 2 * COUNT
    assert sorted([*out, *left]) == sorted(names)
    # No good row is lost. A file with the wrong extension is a good one.
    assert {name for name in names if kinds[name] in ("good", "wrong-extension")} <= set(out)
    # What can never be a video is never one; what was cut or changed may still be whole where it matters.
    assert {name for name in names if kinds[name] in ("random", "empty")} <= set(left)
    caught = Counter(kinds[name] for name in left)
    assert caught["truncated"] == sum(kind == "truncated" for kind in kinds.values())
    assert all(row["reason"] in ("damaged_media", "decode_limit") and row["detail"] for row in left.values())
    # Every row has the frames of its own file.
    with Decoder(video) as decoder:
        for name, row in out.items():
            assert hashed(row.clip) == hashed(stored(decoder.read(paths[name]), video)), (name, kinds[name])
    assert len({hashed(row.clip) for name, row in out.items() if kinds[name] == "good"}) == COUNT
    # Memory at the end is what it was when the first fifth was done.
    settled = kib[len(kib) // 5 :]
    assert max(settled[len(settled) // 2 :]) < 1.3 * max(settled[: len(settled) // 2]) + 50_000


def test_the_comparison_of_frames_notices_another_video(video: VideoConfig, tmp_path: Path) -> None:
    """The control of the test above: the videos differ in what is compared, and random bytes do not decode."""
    for number in range(2):
        write_mp4(tmp_path / f"{number}.mp4", square_at(number), 4.0)
    with Decoder(video) as decoder:
        a, b = (hashed(stored(decoder.read(tmp_path / f"{number}.mp4"), video)) for number in range(2))
        assert a != b
        (tmp_path / "x.mp4").write_bytes(np.random.default_rng(0).bytes(3000))
        with pytest.raises(DecodeError):
            decoder.read(tmp_path / "x.mp4")
