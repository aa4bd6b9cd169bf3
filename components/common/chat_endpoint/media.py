"""Media and words as parts of a chat message."""

import base64
import mimetypes
import threading
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Literal

from ..errors import UserError

Part = dict[str, Any]  # a content part of a message, in OpenAI's form

_DEFAULT_MIME = {"video": "video/mp4", "image": "image/png"}


def text_part(text: str) -> Part:
    """Words."""
    return {"type": "text", "text": text}


def media_part(url: str, kind: Literal["video", "image"]) -> Part:
    """A video or an image: its ``data:`` or ``http(s):`` URL."""
    return {"type": f"{kind}_url", f"{kind}_url": {"url": url}}


def data_url(path: Path, kind: Literal["video", "image"]) -> str:
    """A file as a data URL; a `UserError` where it cannot be read or is empty."""
    try:
        data = path.read_bytes()
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}") from error
    if not data:
        raise UserError(f"{path}: the file is empty")
    mime = mimetypes.guess_type(path.name)[0] or ""
    if not mime.startswith(f"{kind}/"):
        mime = _DEFAULT_MIME[kind]
    return f"data:{mime};base64,{base64.b64encode(data).decode('ascii')}"


class DataUrls:
    """Files as data URLs, each read once for all questions about it and dropped with the last of them; thread-safe."""

    def __init__(self, paths: Iterable[Path]) -> None:
        """``paths``: the file of every question."""
        self._left = Counter(paths)
        self._urls: dict[Path, str] = {}
        self._lock = threading.Lock()

    def take(self, path: Path, kind: Literal["video", "image"]) -> str:
        """The URL for one more of the questions about a file (see `data_url`)."""
        with self._lock:
            self._left[path] -= 1
            if path not in self._urls:
                self._urls[path] = data_url(path, kind)
            return self._urls[path] if self._left[path] > 0 else self._urls.pop(path)
