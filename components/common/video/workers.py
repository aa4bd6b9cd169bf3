"""Decoding in processes that can be killed at a limit of time or memory."""

import contextlib
import io
import json
import os
import queue
import resource
import signal
import socket
import subprocess
import sys
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from ..errors import first_line
from .clip import Clip, DecodedFile, DecodeError, DecodeLimitError, EncodedClip, FileRequest
from .config import MediaKind, VideoConfig
from .decode import read_file

T = TypeVar("T")
R = TypeVar("R")
_START_LIMIT_S = 120.0


class Decoder(contextlib.AbstractContextManager["Decoder"]):
    """Decodes files in worker processes, each of which is killed at a limit of time or memory and then replaced.
    Thread-safe: as many `read` calls run at once as there are workers; more wait. Workers start when first needed and
    end with this object, or with the process that owns it."""

    def __init__(self, config: VideoConfig, workers: int = 1):
        if workers < 1:
            raise ValueError(f"workers must be at least 1, got {workers}")
        self.config, self.workers = config, workers
        self._all = [_Worker(config) for _ in range(workers)]
        self._idle: queue.LifoQueue[_Worker] = queue.LifoQueue()
        for worker in self._all:
            self._idle.put(worker)
        self._closed = False

    def __exit__(self, *exc: object) -> None:
        self.close()

    def close(self) -> None:
        """End the workers; a read that is under way in another thread fails."""
        self._closed = True
        for worker in self._all:
            worker.stop()

    def read(
        self, path: str | Path, kind: MediaKind = "video", start_s: float | None = None, end_s: float | None = None
    ) -> Clip:
        """`read_clip` in a worker; DecodeError also when it ran out of time or memory, or crashed."""
        return self._run(FileRequest(path, kind, ((start_s, end_s),)), encode=False).only_clip()

    def read_file(self, request: FileRequest) -> DecodedFile:
        """All parts of a file with their frames compressed, as a prepared set stores them, in a worker. DecodeError as
        for `read`, when none of the parts can be shown."""
        return self._run(request, encode=True)

    def map_files(self, requests: Iterable[FileRequest]) -> Iterator[DecodedFile | DecodeError]:
        """`read_file` for many files side by side, a few per worker ahead; results in order, a failure as its error."""

        def attempt(request: FileRequest) -> DecodedFile | DecodeError:
            try:
                return self.read_file(request)
            except DecodeError as error:
                return error

        return map_in_order(attempt, requests, self.workers, 4 * self.workers)

    def _run(self, request: FileRequest, encode: bool) -> DecodedFile:
        worker = self._idle.get()
        try:
            if self._closed:
                raise RuntimeError("the decoder is closed")
            header, data = worker.run(request, encode)
        finally:
            self._idle.put(worker)
        clips: list[EncodedClip | DecodeError] = []
        stream = io.BytesIO(data)
        for part in header.pop("clips"):
            if "error" in part:
                clips.append(DecodeError(part["error"]))
                continue
            frames = [stream.read(size) for size in part.pop("sizes")]
            times_s = np.asarray(part.pop("times_s"), dtype=np.float64)
            clips.append(EncodedClip(frames, times_s, **part, kind=request.kind))
        return DecodedFile(clips, **header, signature=stream.read())


def map_in_order(function: Callable[[T], R], items: Iterable[T], threads: int, ahead: int) -> Iterator[R]:
    """``map`` in threads: results in the order of the items, at most ``ahead`` of which are taken in advance."""
    pending: deque[Future[R]] = deque()
    pool = ThreadPoolExecutor(threads)
    try:
        for item in items:
            pending.append(pool.submit(function, item))
            if len(pending) >= ahead:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


class _Worker:
    """One process that decodes, behind a socket pair; started when needed, killed at a limit. It is a fresh
    interpreter: a fork of a process with torch's or CUDA's threads may hang, and would inherit its memory."""

    def __init__(self, config: VideoConfig):
        self._config = config
        self._too_slow = f"decoding took longer than {config.decode_timeout_s:g} s (decode_timeout_s) and was stopped"
        self._process: subprocess.Popen[bytes] | None = None
        self._connection: Connection | None = None

    def run(self, request: FileRequest, encode: bool) -> tuple[dict[str, Any], bytes]:
        connection = self._ready()
        message = {"path": os.fspath(request.path), "kind": request.kind, "parts": request.parts, "encode": encode}
        try:
            connection.send_bytes(json.dumps(message).encode())
            # The worker's own alarm ends it at the limit; this waits a little longer, for one that cannot be ended.
            if not connection.poll(self._config.decode_timeout_s + 5):
                self.stop()
                raise DecodeLimitError(self._too_slow)
            reply = json.loads(connection.recv_bytes())
            if "error" in reply:
                raise (DecodeLimitError if reply.get("limit") else DecodeError)(reply["error"])
            return reply, connection.recv_bytes()
        except (EOFError, OSError):
            raise DecodeLimitError(self._why_gone()) from None

    def _ready(self) -> Connection:
        if self._process is not None and self._process.poll() is None and self._connection is not None:
            return self._connection
        self.stop()
        ours, theirs = socket.socketpair()
        with theirs:
            # -P: the working folder may hold modules with the names of ours. Not -m, which would import this twice.
            code = f"from {__name__} import _serve; _serve({theirs.fileno()})"
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-c", code],
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                # Arenas are address space, which is limited; the decoders' own threads would only compete.
                env={**os.environ, "MALLOC_ARENA_MAX": "2", "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"},
            )
        self._connection = connection = Connection(ours.detach())
        try:
            connection.send_bytes(self._config.to_json().encode())
            started = connection.poll(_START_LIMIT_S) and connection.recv_bytes() == b"ready"
        except (EOFError, OSError):
            started = False
        if not started:
            self.stop()
            raise RuntimeError("the decoding process did not start; its message stands above, if it had one")
        return connection

    def _why_gone(self) -> str:
        """What ended the process that was decoding."""
        assert self._process is not None
        code = 0
        with contextlib.suppress(subprocess.TimeoutExpired):
            code = self._process.wait(5)
        self.stop()
        if code == -signal.SIGALRM:
            return self._too_slow
        how = f"signal {signal.Signals(-code).name}" if code < 0 else f"exit status {code}"
        return f"the decoder crashed ({how}), or needed more memory than {self._config.decode_memory_mib} MiB"

    def stop(self) -> None:
        process, connection = self._process, self._connection
        self._process = self._connection = None
        if process is not None:
            process.kill()
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(5)
        if connection is not None:
            connection.close()


def _serve(descriptor: int) -> None:
    """The worker's life: read requests, answer them, end when the other side is gone."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C goes to the whole group; the owner decides
    connection = Connection(descriptor)
    config = VideoConfig.load(connection.recv_bytes().decode(), "the decoder's configuration")
    import av  # noqa: F401
    from PIL import Image

    Image.init()
    with contextlib.suppress(ImportError):
        import decord  # noqa: F401
    _limit_memory(config.decode_memory_mib * 2**20)
    connection.send_bytes(b"ready")
    silence = os.open(os.devnull, os.O_WRONLY)
    os.dup2(silence, 2)  # FFmpeg's complaints about damaged files; what matters comes back as an error
    while True:
        try:
            request = json.loads(connection.recv_bytes())
        except (EOFError, OSError):
            return
        # With the default action the kernel ends the process: that works in C code, and when the owner is gone.
        signal.setitimer(signal.ITIMER_REAL, config.decode_timeout_s)
        header, data = _answer(request, config)
        signal.setitimer(signal.ITIMER_REAL, 0)
        try:
            connection.send_bytes(json.dumps(header).encode())
            if "error" not in header:
                connection.send_bytes(data)
        except OSError:
            return


def _answer(request: dict[str, Any], config: VideoConfig) -> tuple[dict[str, Any], bytes]:
    parts = [(start, end) for start, end in request["parts"]]
    try:
        file = read_file(request["path"], config, request["kind"], parts, request["encode"])
        clips: list[dict[str, Any]] = []
        data: list[bytes] = []
        for clip in file.clips:
            if isinstance(clip, DecodeError):
                clips.append({"error": str(clip)})
                continue
            data += clip.frames
            about = {name: getattr(clip, name) for name in ("duration_s", "height", "width")}
            clips.append({**about, "times_s": clip.times_s.tolist(), "sizes": [len(frame) for frame in clip.frames]})
        about = {name: getattr(file, name) for name in ("width", "height", "duration_s", "num_frames")}
        return {**about, "clips": clips}, b"".join([*data, file.signature])
    except DecodeError as error:
        return {"error": str(error)}, b""
    except MemoryError:
        message = f"decoding needs more memory than {config.decode_memory_mib} MiB (decode_memory_mib)"
        return {"error": message, "limit": True}, b""
    except Exception as error:  # a decoder's surprise on one file must not end the work on the others
        return {"error": f"{type(error).__name__}: {first_line(error)}"}, b""


def _limit_memory(extra_bytes: int) -> None:
    """Let this process grow by so much address space and no more, and leave no core file."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    with contextlib.suppress(OSError, ValueError):  # no /proc, or a system that does not limit address space
        pages = int(Path("/proc/self/statm").read_text().split()[0])
        hard = resource.getrlimit(resource.RLIMIT_AS)[1]
        limit = pages * resource.getpagesize() + extra_bytes
        resource.setrlimit(resource.RLIMIT_AS, (limit if hard == resource.RLIM_INFINITY else min(limit, hard), hard))
