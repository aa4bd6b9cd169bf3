"""What is curated: captioned videos, or questions; their frames; and what identifies the outcome of each."""

import hashlib
import json
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from pydantic import ValidationError

from .... import __version__
from ...common.chat_endpoint.media import Part, media_part, text_part
from ...common.config import describe
from ...common.errors import UserError
from ...common.html.images import jpeg
from ...common.html.page import data_uri
from ...common.rows.files import RowError
from ...common.rows.sample import Evidence, Media, Sample
from ...common.storage.names import canonical_json
from ...common.storage.s3 import Storage
from ...common.video.clip import Clip, DecodeError
from ...common.video.workers import Decoder
from ..config import CurationConfig
from ..formats.read import begins_with, read_rows
from ..source import MissingMediaError, Source, fetch_media, resolve_uri
from .prompts import STEPS, Prompts
from .replies import clean

AboutMedia = Literal["missing_media", "damaged_media", "not_a_video", "bad_segments"]
"""Reasons that cost no call and may be gone tomorrow: looked for anew each time, not journalled."""
DropReason = AboutMedia | Literal["unreadable_row", "duplicate_id", "malformed_reply", "judge_wrong", "low_reward"]
"""Why nothing comes of a row: its file is not there, or cannot be decoded; an image has no segments; its segments do
not fit the video, or are too few; it is no row; its id was taken; the teacher's replies cannot be used; the judge never
found the answer; no trace earned enough."""
MAX_SOURCE_BYTES = 512 * 2**20  # a larger file of captioned segments is refused, because it is read as a whole


class DropItemError(Exception):
    """Nothing comes of this row."""

    def __init__(self, reason: DropReason, detail: str):
        super().__init__(detail)
        self.reason: DropReason = reason


Settings = list[Any]  # what has a say in what comes of an item, as plain values


def deciding_settings(config: CurationConfig, prompts: Prompts) -> Settings:
    """The settings that have a say in what comes of an item: not where servers are, their patience or their price."""
    ignored = {"teacher", "judge", "prompts", "budget_usd", "max_items", "videos"}
    shared = config.model_dump(mode="json", exclude=ignored)
    sampling = {"model", "temperature", "max_tokens", "extra"}
    models = {role: model.model_dump(mode="json", include=sampling) for role, model in config.models().items()}
    return [shared, models, prompts.hashes(STEPS[config.method]), __version__]


@dataclass(frozen=True, slots=True)
class Item:
    """A captioned video, or a question."""

    line: int  # its line or place in the source, from 1
    id: str
    media: Media
    sample: Sample | None  # the question; None: it is to be written
    segments: tuple[Evidence, ...]  # captioned segments; empty: they are to be found

    def digest(self, settings: Settings) -> str:
        """Identifies what becomes of it: what it says, and the settings that have a say in it."""
        text = canonical_json([self.id, self.media, self.sample, self.segments, settings])
        return hashlib.sha256(text.encode()).hexdigest()


def read_items(
    source: Source, config: CurationConfig, format_name: str | None = None, roots: Mapping[str, str] | None = None
) -> Iterator[Item | RowError]:
    """The videos or questions of a file: a JSON object of captioned segments as ActivityNet Captions has them
    (``{key: {"timestamps": [[start, end]], "sentences": [caption]}}``), or rows in any format (``format_name``; None:
    as they look; ``roots``: where their media are, by source). Raises UserError: it cannot be read at all."""
    captioned = None if format_name else _captioned_videos(source.path)
    rows = read_rows(source.path, format_name, roots) if captioned is None else None
    entries = _captioned(captioned, config) if rows is None else rows
    ids: dict[str, int] = {}
    for number, (line, row) in enumerate(entries):
        if config.max_items is not None and number >= config.max_items:
            return
        if isinstance(row, RowError):
            yield row
            continue
        item = row if isinstance(row, Item) else Item(line, row.id, row.media, row, row.evidence)
        if item.id in ids and rows is not None and not rows.format.unique_ids:
            item = replace(item, id=f"{item.id}@{line}")
        if item.id in ids:
            yield RowError(line, f"duplicate_id: the id '{item.id}' is already that of {ids[item.id]}", "")
            continue
        ids[item.id] = line
        try:
            uri = resolve_uri(item.media.uri, source.base)
        except ValueError as error:
            yield RowError(line, f"missing_media: {error}", "")
            continue
        media = item.media.model_copy(update={"uri": uri})
        sample = None if item.sample is None else item.sample.model_copy(update={"id": item.id, "media": media})
        yield replace(item, media=media, sample=sample)


def _captioned_videos(source: Path) -> dict[str, Any] | None:
    """What a file of captioned segments holds; None when it is one of rows."""
    if source.suffix.lower() != ".json":
        return None
    with source.open("rb") as file:
        if begins_with(file) != b"{":
            return None
    if source.stat().st_size > MAX_SOURCE_BYTES:
        raise UserError(f"{source}: larger than {MAX_SOURCE_BYTES} bytes; split it")
    try:
        videos = json.loads(source.read_text("utf-8-sig"))
    except (ValueError, RecursionError) as error:
        if str(error).startswith("Extra data"):  # an object a line
            return None
        raise UserError(f"{source}: not JSON ({str(error)[:100]})") from None
    if not all(isinstance(about, dict) for about in videos.values()):
        raise UserError(f"{source}: expected {{video: {{timestamps, sentences}}}}, or rows")
    return dict(videos)


def _captioned(videos: Mapping[str, Any] | None, config: CurationConfig) -> Iterator[tuple[int, Item | RowError]]:
    for number, (key, about) in enumerate((videos or {}).items(), 1):
        media = Media(kind="video", uri=config.videos.replace("{id}", key))
        try:
            yield number, Item(number, key, media, None, _segments(about))
        except (ValueError, TypeError, KeyError) as error:
            problem = describe(error, Evidence) if isinstance(error, ValidationError) else str(error)
            problem = f"'{error.args[0]}' is missing" if isinstance(error, KeyError) else problem
            yield number, RowError(number, f"bad_segments: '{key[:100]}': {problem}", json.dumps(about)[:2000])


def _segments(about: dict[str, Any]) -> tuple[Evidence, ...]:
    if len(about["timestamps"]) != len(about["sentences"]):
        raise ValueError(f"{len(about['timestamps'])} timestamps, but {len(about['sentences'])} sentences")
    captioned = zip(about["timestamps"], about["sentences"], strict=True)
    segments = [Evidence(start_s=start, end_s=end, caption=clean(text, "caption")) for (start, end), text in captioned]
    return tuple(sorted(segments, key=lambda segment: (segment.start_s, segment.end_s)))


def check_store(media: Media, storage: Storage | None) -> None:
    """Raise a `UserError` when a store is needed, and none is known."""
    if storage is None and media.uri.startswith("s3://"):
        raise UserError(f"{media.uri} is in a store; say which one (storage.endpoint_url)")


def read_media(media: Media, decoder: Decoder, storage: Storage | None) -> Clip:
    """The frames of a video or image, which also say how long it is; thread-safe. Raises DropItemError: it is not
    there, or cannot be decoded."""
    check_store(media, storage)
    with tempfile.TemporaryDirectory(prefix="vthink-curate-") as folder:
        try:
            path = fetch_media(media.uri, storage, Path(folder) / f"media{Path(media.uri).suffix[:8]}")
            return decoder.read(path, media.kind, media.start_s, media.end_s)
        except MissingMediaError as error:
            raise DropItemError("missing_media", f"{media.uri}: {error}") from None
        except DecodeError as error:
            raise DropItemError("damaged_media", f"{media.uri}: {error}") from None


def frame_parts(clip: Clip) -> Iterator[Part]:
    """Frames as the parts of a message, each after its time."""
    for frame, time_s in zip(clip.frames, clip.times_s, strict=True):
        if clip.kind == "video":
            yield text_part(f"[{time_s:.1f} s]")
        yield media_part(data_uri(jpeg(frame, max_height=frame.shape[0], quality=85)), "image")
