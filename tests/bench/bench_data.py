"""Preparing videos once against decoding them on the fly, and what a training reads afterwards.

``python tests/bench/bench_data.py`` takes about four minutes and writes `.vthink/bench.json`. The plain way is
qwen-vl-utils' ``fetch_video`` with its decord reader, which training scripts for Qwen-VL call per sample and epoch.
``--videos``, ``--rows`` and ``--files`` make it larger: ``--rows 100000 --files 20000`` is the case that the data
preparation's page states.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

os.environ.setdefault("FORCE_QWENVL_VIDEO_READER", "decord")

import numpy as np
from recording import Measurement, interleave, record
from vthink.components.common.compat.torchvision import declare_torchvision_operators
from vthink.components.common.context import RunContext
from vthink.components.common.launch.workspace import start_s3
from vthink.components.common.rows.prepared import PreparedSet
from vthink.components.common.storage.config import StorageConfig
from vthink.components.common.storage.manifest import Manifest
from vthink.components.common.storage.s3 import Storage
from vthink.components.common.tracking.config import TrackingConfig
from vthink.components.common.video.config import VideoConfig
from vthink.components.data_prep import merge, plan
from vthink.components.data_prep.config import DataPrepConfig

VIDEO = VideoConfig(num_frames=16)
"""16 frames of at most 128 · 28 · 28 pixels, as both papers train."""
SECONDS, FPS, SIZE = 10, 30, (1280, 720)
CORES = len(os.sched_getaffinity(0))
SFT_ROWS_PER_S_AND_GPU = 165_575 / (40 * 3600) / 4
"""What Video-R1's SFT consumed: 165,575 rows in about 40 h on 4 GPUs (arXiv 2503.21776)."""


@dataclass(frozen=True)
class Place:
    """Where a bench keeps everything: a folder, and a local S3 server over it."""

    folder: Path
    context: RunContext

    @property
    def storage(self) -> Storage:
        return Storage(self.context.storage)

    def arguments(self, rows: Path, **section: Any) -> tuple[str, str, str]:
        config = DataPrepConfig(source=str(rows), **section)
        return self.context.to_json(), config.to_json(), VIDEO.to_json()


@contextmanager
def place() -> Iterator[Place]:
    """A place that is gone afterwards."""
    with tempfile.TemporaryDirectory(prefix="vthink-bench-") as name:
        folder = Path(name)
        server = start_s3(folder / "s3", "bench-access-key", "bench-secret-key", folder / "s3.log")
        try:
            server.export()
            os.environ["AWS_EC2_METADATA_DISABLED"] = "true"
            storage = StorageConfig(endpoint_url=server.url, bucket="bench")
            Storage(storage).ensure_bucket()
            tracking = TrackingConfig(uri=f"sqlite:///{folder}/mlflow.db")
            yield Place(
                folder, RunContext(run_id="bench", storage=storage, tracking=tracking, work_dir=f"{folder}/work")
            )
        finally:
            server.stop()


def write_video(path: Path, seed: int) -> None:
    """A moving picture with the detail of a photograph, h264, as a camera would compress it."""
    import av
    from PIL import Image

    rng = np.random.default_rng(seed)
    width, height = SIZE
    coarse = Image.fromarray(rng.integers(0, 256, (24, 48, 3), np.uint8)).resize((2 * width, height), 3)
    wide = np.clip(np.asarray(coarse, np.int16) + rng.normal(0, 6, (height, 2 * width, 1)), 0, 255).astype(np.uint8)
    with av.open(str(path), "w") as container:
        stream: Any = container.add_stream("libx264", rate=FPS, options={"preset": "ultrafast", "crf": "26"})
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        for number in range(SECONDS * FPS):
            shown = np.ascontiguousarray(wide[:, 2 * number % width :][:, :width])
            container.mux(stream.encode(av.VideoFrame.from_ndarray(shown, format="rgb24")))
        container.mux(stream.encode())


def row(number: int, path: Path, kind: str = "video") -> str:
    """A line of rows."""
    media = {"kind": kind, "uri": str(path)}
    question = {"question": f"What is seen in part {number}?", "options": ["a", "b"], "answer": "A"}
    return json.dumps({"id": f"row-{number}", "media": media, "problem_type": "multiple_choice", **question}) + "\n"


def on_the_fly(paths: list[Path]) -> None:
    """The plain way: each video is decoded when its sample is asked for."""
    declare_torchvision_operators()
    from qwen_vl_utils.vision_process import fetch_video

    for path in paths:
        fetch_video({"video": str(path), "nframes": VIDEO.num_frames, "max_pixels": VIDEO.max_pixels,
                     "min_pixels": VIDEO.min_pixels})  # fmt: skip


def one_pass_and_later_epochs(here: Place, count: int, rounds: int, processes: int) -> list[Measurement]:
    paths = [here.folder / f"{number}.mp4" for number in range(count)]
    for number, path in enumerate(paths):
        write_video(path, number)
    rows = here.folder / "videos.jsonl"
    rows.write_text("".join(row(number, path) for number, path in enumerate(paths)))
    turn = 0

    def prepared(workers: int = 1) -> str:
        nonlocal turn
        turn += 1
        context = here.context.model_copy(update={"redo": {"prepare": turn}})
        arguments = (context.to_json(), *here.arguments(rows, workers=workers)[1:])
        (shard,) = plan.plan_data(*arguments)
        nonlocal last
        last = (arguments, shard.prepare_shard(*arguments, shard))
        return last[1]

    last: Any = None
    setting = {
        "videos": count, "seconds": SECONDS, "fps": FPS, "width": SIZE[0], "height": SIZE[1],
        "mean_mb": round(sum(path.stat().st_size for path in paths) / count / 1e6, 2),
        "frames": VIDEO.num_frames, "max_pixels": VIDEO.max_pixels, "decoding_processes": 1,
    }  # fmt: skip
    plain_s, own_s = interleave(lambda: on_the_fly(paths), prepared, rounds, warm_up=0)
    manifest = merge.merge_data(*last[0], [last[1]])
    counts = Manifest.read(here.storage, manifest)
    single = Measurement(
        name="data/single-pass",
        plain_seconds=plain_s,
        own_seconds=own_s,
        wanted_ratio=1.0,
        setting=setting | {"own": "plan, SHA-256, probe, decode, compress, store in S3"},
        extra={
            "videos_per_s": count / own_s,
            "stored_share_of_source": counts.metrics["stored_bytes"] / counts.metrics["source_bytes"],
        },
    )
    alone_s, together_s = interleave(prepared, lambda: prepared(processes), rounds, warm_up=0)
    scaling = Measurement(
        name=f"data/single-pass-{processes}-processes",
        plain_seconds=alone_s,
        own_seconds=together_s,
        setting=setting
        | {"plain": "one decoding process", "own": f"{processes}", "decoding_processes": processes, "cores": CORES},
        extra={"videos_per_s": count / together_s},
    )
    data = PreparedSet.open(here.storage, manifest, here.folder / "cache", cache_bytes=0).split("train")
    plain_s, own_s = interleave(lambda: on_the_fly(paths), lambda: [item.clip for item in data], rounds, warm_up=0)
    later = Measurement(
        name="data/later-epoch",
        plain_seconds=plain_s,
        own_seconds=own_s,
        wanted_ratio=20.0,
        setting=setting | {"own": "read from the set, decompress; nothing kept in memory between reads"},
        extra={"videos_per_s": count / own_s},
    )
    cached = PreparedSet.open(here.storage, manifest, here.folder / "cache").split("train")
    _, own_s = interleave(lambda: None, lambda: [item.clip for item in cached], rounds)
    kept = Measurement(
        name="data/later-epoch-in-memory",
        plain_seconds=plain_s,
        own_seconds=own_s,
        wanted_ratio=20.0,
        setting=setting | {"own": "clips still in the reader's memory (cache_bytes)"},
    )
    per_gpu = count / later.own_seconds if later.own_seconds else 0.0
    loader = Measurement(
        name="data/loader",
        plain_seconds=1 / SFT_ROWS_PER_S_AND_GPU,
        own_seconds=1 / per_gpu,
        wanted_ratio=1.0,
        setting=setting
        | {"plain": "seconds per row and GPU of Video-R1's SFT, from the paper: 40 h, 4 GPUs, 165,575 rows"},
        extra={"rows_per_s": per_gpu},
    )
    return [single, scaling, later, kept, loader, *restart(here, manifest)]


_FIRST_BATCH = """
import sys, time
start = time.perf_counter()
from pathlib import Path
from vthink.components.common.storage.config import StorageConfig
from vthink.components.common.rows.prepared import PreparedSet
from vthink.components.common.storage.s3 import Storage
storage = Storage(StorageConfig.load(sys.argv[1]))
data = PreparedSet.open(storage, sys.argv[2], Path(sys.argv[3]), stream=sys.argv[4] == "stream")
split = data.split("train")
step = max(1, len(split) // 8)
clips = [split[index].clip for index in range(0, len(split), step)][:8]
print(time.perf_counter() - start)
"""


def first_batch(here: Place, manifest: str, cache: Path, how: str) -> float:
    """Seconds from the start of a fresh process to its first 8 samples."""
    arguments = [here.context.storage.to_json(), manifest, str(cache), how]
    done = subprocess.run([sys.executable, "-c", _FIRST_BATCH, *arguments], capture_output=True, text=True, check=True)
    return float(done.stdout)


def restart(here: Place, manifest: str) -> list[Measurement]:
    counts = Manifest.read(here.storage, manifest).counts
    found = []
    for how in ("local", "stream"):
        cache = here.folder / f"restart-{how}-{counts['rows_out']}"
        cold = first_batch(here, manifest, cache, how)
        found.append(
            Measurement(
                name=f"data/first-batch-{how}/{counts['rows_out']}-rows",
                plain_seconds=cold,
                own_seconds=first_batch(here, manifest, cache, how),
                setting={"rows": counts["rows_out"], "media": counts["media"], "batch": 8,
                         "plain": "first start, nothing fetched yet", "own": "after a restart"},
            )
        )  # fmt: skip
    return found


@contextmanager
def family_peak_mib() -> Iterator[Callable[[], float]]:
    """The most resident memory that this process and those it started held together, above what it held before."""
    end, peak = threading.Event(), [0.0]

    def resident() -> float:
        total = 0
        parents: dict[int, int] = {}
        sizes: dict[int, int] = {}
        for entry in Path("/proc").glob("[0-9]*"):
            try:
                parents[int(entry.name)] = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
                sizes[int(entry.name)] = int((entry / "statm").read_text().split()[1])
            except (OSError, IndexError):
                continue
        family = {os.getpid()} | {pid for pid, parent in parents.items() if parent == os.getpid()}
        total = sum(sizes.get(pid, 0) for pid in family)
        return total * resource.getpagesize() / 2**20

    before = resident()

    def watch() -> None:
        while not end.wait(0.2):
            peak[0] = max(peak[0], resident() - before)

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield lambda: peak[0]
    finally:
        end.set()
        thread.join()


def many_rows(here: Place, rows: int, files: int, workers: int) -> list[Measurement]:
    """Small files, several questions each: what grows with their number, and what does not."""
    import av
    from PIL import Image

    folder = here.folder / "small"
    folder.mkdir()
    rng = np.random.default_rng(0)
    paths = []
    for number in range(files):
        noise = Image.fromarray(rng.integers(0, 256, (8, 8, 3), np.uint8)).resize((64, 64), 3)
        if number % 10:
            paths.append((folder / f"{number}.jpg", "image"))
            noise.save(paths[-1][0], quality=80)
            continue
        paths.append((folder / f"{number}.mp4", "video"))
        with av.open(str(paths[-1][0]), "w") as container:
            stream: Any = container.add_stream("libx264", rate=4, options={"preset": "ultrafast"})
            stream.width, stream.height, stream.pix_fmt = 64, 64, "yuv420p"
            for shift in range(4):
                shown = np.roll(np.asarray(noise), 4 * shift, axis=1)
                container.mux(stream.encode(av.VideoFrame.from_ndarray(shown, format="rgb24")))
            container.mux(stream.encode())
    listed = here.folder / "small.jsonl"
    with listed.open("w") as file:
        file.writelines(row(number, *paths[number % files]) for number in range(rows))
    found = []
    for processes in sorted({1, workers}):
        context = here.context.model_copy(update={"redo": {"prepare": processes}})
        arguments = (context.to_json(), *here.arguments(listed, workers=processes, store="frames")[1:])
        with family_peak_mib() as peak:
            start = time.perf_counter()
            (shard,) = plan.plan_data(*arguments)
            planned = time.perf_counter()
            done = shard.prepare_shard(*arguments, shard)
            decoded = time.perf_counter()
            manifest = merge.merge_data(*arguments, [done])
            merged = time.perf_counter()
        counts = Manifest.read(here.storage, manifest).counts
        assert counts["rows_out"] == rows, counts
        found.append(
            Measurement(
                name=f"data/many-rows/{rows}-rows-{processes}-processes",
                plain_seconds=None,
                own_seconds=merged - start,
                own_peak_mib=peak(),
                setting={"rows": rows, "files": files, "decoding_processes": processes, "wanted_peak_mib": 2048},
                extra={
                    "plan_s": planned - start,
                    "shard_s": decoded - planned,
                    "merge_s": merged - decoded,
                    "files_per_s": files / (decoded - planned),
                    "rows_per_s_planned_and_merged": rows / (planned - start + merged - decoded),
                },
            )
        )
    return [*found, *restart(here, manifest)]


def main() -> None:
    """Run all parts."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--videos", type=int, default=32, help="videos of 10 s at 1280 × 720; 0: leave this out")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--rows", type=int, default=3000, help="rows over --files small files; 0: leave this out")
    parser.add_argument("--files", type=int, default=600)
    parser.add_argument("--processes", type=int, default=2)
    given = parser.parse_args()
    with place() as here:
        if given.videos:
            record(one_pass_and_later_epochs(here, given.videos, given.rounds, given.processes))
        if given.rows:
            record(many_rows(here, given.rows, given.files, given.processes))


if __name__ == "__main__":
    main()
