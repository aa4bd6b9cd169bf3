"""Where rows and media are."""

from __future__ import annotations

import pytest
from vthink.components.data_prep import source as source_module


@pytest.mark.parametrize(
    ("uri", "expected"),
    [
        ("a.mp4", "s3://b/x/a.mp4"),
        ("../a.mp4", "s3://b/a.mp4"),
        ("s3://c/d.mp4", "s3://c/d.mp4"),
        ("/data/a.mp4", "/data/a.mp4"),
        ("file:///data/a.mp4", "/data/a.mp4"),
    ],
)
def test_media_count_from_where_the_rows_are(uri: str, expected: str) -> None:
    assert source_module.resolve_uri(uri, "s3://b/x/") == expected


@pytest.mark.parametrize("uri", ["http://host/a.mp4", "../../../a.mp4"])
def test_media_elsewhere_are_refused(uri: str) -> None:
    with pytest.raises(ValueError, match=r"read from paths|leaves the bucket"):
        source_module.resolve_uri(uri, "s3://b/x/")
