"""The frames of what is curated: decoded from where they are, and shown to a model each after its time."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from ...common.chat_endpoint.media import Part, media_part, text_part
from ...common.errors import UserError
from ...common.html.images import jpeg
from ...common.html.page import data_uri
from ...common.rows.sample import Media
from ...common.storage.s3 import Storage
from ...common.video.clip import Clip, DecodeError
from ...common.video.workers import Decoder
from ..source import MissingMediaError, fetch_media
from .items import DropItemError

_QUALITY = 85


@dataclass(frozen=True)
class MediaReader:
    """Reads videos and images from paths, a store or the hub; thread-safe."""

    decoder: Decoder
    storage: Storage | None

    def check(self, media: Media) -> None:
        """Raise a `UserError` when a store is needed, and none is known."""
        if self.storage is None and media.uri.startswith("s3://"):
            raise UserError(f"{media.uri} is in a store; say which one (storage.endpoint_url)")

    def read(self, media: Media) -> Clip:
        """The frames, which also say how long the video is.

        Raises:
            DropItemError: it is not there, or cannot be decoded.
        """
        self.check(media)
        with tempfile.TemporaryDirectory(prefix="vthink-curate-") as folder:
            try:
                path = fetch_media(media.uri, self.storage, Path(folder) / f"media{Path(media.uri).suffix[:8]}")
                return self.decoder.read(path, media.kind, media.start_s, media.end_s)
            except MissingMediaError as error:
                raise DropItemError("missing_media", f"{media.uri}: {error}") from None
            except DecodeError as error:
                raise DropItemError("damaged_media", f"{media.uri}: {error}") from None


def frame_parts(clip: Clip) -> Iterator[Part]:
    """Frames as the parts of a message, each after its time."""
    for frame, time_s in zip(clip.frames, clip.times_s, strict=True):
        if clip.kind == "video":
            yield text_part(f"[{time_s:.1f} s]")
        yield media_part(data_uri(jpeg(frame, max_height=frame.shape[0], quality=_QUALITY)), "image")
