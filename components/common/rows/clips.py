"""Frames out of Parquet files, here or in the store."""

from __future__ import annotations

import os
import tempfile
import threading
from collections import OrderedDict
from pathlib import Path
from typing import Any, ClassVar, cast

import numpy as np

from ..errors import UserError
from ..storage.names import join
from ..storage.s3 import Storage
from ..video.clip import Clip, EncodedClip, stored
from ..video.config import MediaKind, VideoConfig
from ..video.workers import Decoder
from .remote_file import RemoteFile
from .row_groups import RowGroups


class ClipReader:
    """Frames by media id, from Parquet files here or in the store, with a cache of decoded clips."""

    _COLUMNS: ClassVar = [
        *("media_id", "kind", "start_s", "end_s", "frames", "original", "original_id"),
        *("times_s", "duration_s", "height", "width"),
    ]

    def __init__(
        self, folder: Path, index: str, video: VideoConfig, cache_bytes: int, remote: tuple[Storage, str] | None
    ):
        import pyarrow.parquet as pq

        table = pq.read_table(folder / index, memory_map=True)
        names = sorted(set(table["file"].to_pylist()))
        sources: list[Path | RemoteFile] = [folder / name for name in names]
        if remote is not None:
            storage, prefix = remote
            tree = storage.tree(prefix)
            sources = [RemoteFile(storage, join(prefix, name), tree.files[name].size) for name in names]
        self._groups = RowGroups(sources, self._COLUMNS, keep=1 if remote is None else 8)
        self._video = video
        self._cache_bytes = cache_bytes
        # 8 bytes and three numbers per medium; a dictionary of texts would take twenty times as much.
        ids = np.fromiter((int(i, 16) for i in table["media_id"].to_pylist()), np.uint64, table.num_rows)
        order = np.argsort(ids)
        self._ids = ids[order]
        number = {name: n for n, name in enumerate(names)}
        files = np.fromiter((number[name] for name in table["file"].to_pylist()), np.int32, table.num_rows)
        self._places = np.stack([files, table["group"].to_numpy(), table["row"].to_numpy()], axis=1)[order]
        self._forget()

    def _forget(self) -> None:
        self._owner = os.getpid()
        self._lock = threading.Lock()
        self._cache: OrderedDict[str, Clip] = OrderedDict()
        self._cached_bytes = 0
        self._decoder: Decoder | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in ("_groups", "_video", "_cache_bytes", "_ids", "_places")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._forget()

    def get(self, media_id: str) -> Clip:
        """The frames of a medium; those used last are kept. They are shared: not to be written to."""
        if self._owner != os.getpid():  # after a fork: a lock may be held by a thread that is not here
            self._forget()
        with self._lock:
            clip = self._cache.get(media_id)
            if clip is not None:
                self._cache.move_to_end(media_id)
                return clip
        clip = self._read(media_id)
        clip.frames.setflags(write=False)  # shared by everyone who asks
        with self._lock:
            if media_id not in self._cache:
                self._cache[media_id] = clip
                self._cached_bytes += clip.frames.nbytes
            while self._cached_bytes > self._cache_bytes and self._cache:
                self._cached_bytes -= self._cache.popitem(last=False)[1].frames.nbytes
        return clip

    def _record(self, media_id: str) -> dict[str, Any]:
        place = int(np.searchsorted(self._ids, np.uint64(int(media_id, 16))))
        number, group, row = (int(value) for value in self._places[place])
        record: dict[str, Any] = self._groups.table(number, group).slice(row, 1).to_pylist()[0]
        if record["media_id"] != media_id:
            raise UserError(f"the index of the prepared set names another medium than {media_id}; prepare it again")
        return record

    def _read(self, media_id: str) -> Clip:
        record = self._record(media_id)
        kind = cast(MediaKind, record["kind"])
        if record["frames"]:
            times_s = np.asarray(record["times_s"], dtype=np.float64)
            height, width = record["height"], record["width"]
            return EncodedClip(record["frames"], times_s, record["duration_s"], height, width, kind).decode()
        original = record["original"] or self._record(record["original_id"])["original"]
        with self._lock:
            self._decoder = self._decoder or Decoder(self._video)
        with tempfile.NamedTemporaryFile(prefix="vthink-original-") as file:
            file.write(original)
            file.flush()
            return stored(self._decoder.read(file.name, kind, record["start_s"], record["end_s"]), self._video)
