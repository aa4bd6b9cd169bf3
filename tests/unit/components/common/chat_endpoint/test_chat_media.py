from __future__ import annotations

import base64
from pathlib import Path

import pytest
from vthink.components.common.chat_endpoint.media import DataUrls, data_url
from vthink.components.common.errors import UserError


@pytest.mark.parametrize(
    ("name", "kind", "mime"),
    [
        ("a.webm", "video", "video/webm"),
        ("a.bin", "video", "video/mp4"),
        ("a.jpg", "image", "image/jpeg"),
        ("a.mp4", "image", "image/png"),
    ],
)
def test_a_file_is_a_data_url_of_its_kind(tmp_path: Path, name: str, kind, mime: str) -> None:
    (tmp_path / name).write_bytes(b"bytes")
    assert data_url(tmp_path / name, kind) == f"data:{mime};base64,{base64.b64encode(b'bytes').decode()}"


def test_a_file_that_is_missing_or_empty_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"none\.mp4: No such file"):
        data_url(tmp_path / "none.mp4", "video")
    (tmp_path / "empty.mp4").touch()
    with pytest.raises(UserError, match="the file is empty"):
        data_url(tmp_path / "empty.mp4", "video")


def test_a_file_is_read_once_for_all_questions_about_it_and_then_dropped(tmp_path: Path) -> None:
    path = tmp_path / "a.mp4"
    path.write_bytes(b"first")
    urls = DataUrls([path, path])
    first = urls.take(path, "video")
    path.write_bytes(b"second")
    assert urls.take(path, "video") is first
    assert urls.take(path, "video") != first
