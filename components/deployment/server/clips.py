"""From media bytes to frames: decoded once for all who ask about them at the time, and kept for a while."""

import asyncio
import contextlib
import hashlib
import os
import tempfile
import threading
import time
from collections import OrderedDict
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

from prometheus_client import Counter

from ...common.video.clip import Clip, DecodeError, stored
from ...common.video.config import MediaKind, VideoConfig
from ...common.video.workers import Decoder
from .exchange import ApiError

_CLIPS = Counter("vthink_clips_total", "Clips of requests, by where the frames came from", ["source"])
ClipKey = tuple[str, str, MediaKind, float | None, float | None]
"""Who may share it, the digest of the bytes, what they are, and the part of the video."""


@dataclass(eq=False, slots=True)
class _Decoding:
    """A clip that is being decoded, and how many wait for it."""

    task: asyncio.Task[Clip]
    stop: threading.Event
    waiting: int = 0


@dataclass(slots=True)
class _Kept:
    clip: Clip
    used_s: float = field(default_factory=time.monotonic)


class ClipReader:
    """Decodes media in worker processes, keeps the clips used last, and stops when all who asked have gone."""

    def __init__(self, video: VideoConfig, decoders: int, max_bytes: int, max_age_s: float) -> None:
        """Args: ``max_bytes``, ``max_age_s``: of the frames kept, and how long unused ones are."""
        self._video, self._max_bytes, self._max_age_s = video, max_bytes, max_age_s
        self._decoder, self._threads = Decoder(video, decoders), ThreadPoolExecutor(decoders, "decode")
        self._kept: OrderedDict[ClipKey, _Kept] = OrderedDict()
        self._decoding: dict[ClipKey, _Decoding] = {}
        self.num_bytes = 0

    def close(self) -> None:
        """End the workers."""
        self._threads.shutdown(wait=False, cancel_futures=True)
        self._decoder.close()

    async def read(
        self, data: bytes, scope: str, kind: MediaKind, start_s: float | None, end_s: float | None
    ) -> tuple[Clip, ClipKey]:
        """The frames that the model will see, and what identifies them. ApiError 400: they cannot be read."""
        digest = (await asyncio.to_thread(hashlib.sha256, data)).hexdigest()
        key = (scope, digest, kind, start_s, end_s)
        self._expire()
        if key in self._kept:
            _CLIPS.labels("cache").inc()
            self._kept.move_to_end(key)
            self._kept[key].used_s = time.monotonic()
            return self._kept[key].clip, key
        job = self._decoding.get(key)
        _CLIPS.labels("shared" if job else "decoded").inc()
        if job is None:
            stop = threading.Event()
            work = asyncio.get_running_loop().run_in_executor(self._threads, self._decode, data, key, stop)
            job = self._decoding[key] = _Decoding(asyncio.ensure_future(self._finish(key, work)), stop)
        del data
        job.waiting += 1
        try:
            return await asyncio.shield(job.task), key
        finally:
            job.waiting -= 1
            if not job.waiting and not job.task.done():
                job.stop.set()
                job.task.cancel()
                self._decoding.pop(key, None)

    async def _finish(self, key: ClipKey, work: asyncio.Future[Clip]) -> Clip:
        try:
            clip = await work
        finally:
            self._decoding.pop(key, None)
        if clip.frames.nbytes <= self._max_bytes:
            self._kept[key] = _Kept(clip)
            self.num_bytes += clip.frames.nbytes
            while self.num_bytes > self._max_bytes:
                self._drop()
        return clip

    def _expire(self) -> None:
        while self._kept and time.monotonic() - next(iter(self._kept.values())).used_s > self._max_age_s:
            self._drop()

    def _drop(self) -> None:
        _, kept = self._kept.popitem(last=False)
        self.num_bytes -= kept.clip.frames.nbytes

    def _decode(self, data: bytes, key: ClipKey, stop: threading.Event) -> Clip:
        """Decoded and stored exactly as data preparation does."""
        _, _, kind, start_s, end_s = key
        with _nameless_file(data) as path:
            del data
            try:
                clip = self._decoder.read(path, kind, start_s, end_s, stop.is_set)
            except DecodeError as error:
                reason = str(error).replace(str(path), "the file").removeprefix("the file: ")
                raise ApiError(400, f"the {kind} cannot be read: {reason}", "messages") from error
        return stored(clip, self._video)


@contextlib.contextmanager
def _nameless_file(data: bytes) -> Iterator[Path]:
    """A path at which this process' workers can read ``data``; nothing is left when the process is killed."""
    with tempfile.TemporaryFile(prefix="vthink-serve-") as file:
        path = Path(f"/proc/{os.getpid()}/fd/{file.fileno()}")
        if path.exists():
            file.write(data)
            file.flush()
            yield path
            return
    with tempfile.NamedTemporaryFile(prefix="vthink-serve-") as named:  # no /proc: not Linux
        named.write(data)
        named.flush()
        yield Path(named.name)
