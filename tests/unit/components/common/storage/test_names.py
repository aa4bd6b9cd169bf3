"""URIs, prefixes and fingerprints."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from vthink.components.common.context import RunContext
from vthink.components.common.storage.config import StorageConfig
from vthink.components.common.storage.names import (
    StorageError,
    canonical_json,
    fingerprint,
    join,
    split_uri,
    stage_prefix,
)


@pytest.mark.parametrize(
    ("parts", "expected"),
    [
        (("s3://b/p/", "a", "b"), "s3://b/p/a/b"),
        (("s3://b/p", "a/", "b/"), "s3://b/p/a/b/"),
        (("s3://b", "a"), "s3://b/a"),
    ],
)
def test_join_puts_single_slashes(parts: tuple[str, ...], expected: str) -> None:
    assert join(*parts) == expected


@pytest.mark.parametrize("uri", ["http://b/k", "b/k", "s3://", "s3:///k", ""])
def test_what_is_not_an_s3_uri_is_refused(uri: str) -> None:
    with pytest.raises(StorageError, match="not an S3 URI"):
        split_uri(uri)


def test_fingerprint_ignores_order_of_keys_and_integers_that_kfp_made_floats() -> None:
    assert fingerprint({"a": 1, "b": [2, 3]}, "x") == fingerprint({"b": [2.0, 3.0], "a": 1}, "x")


def test_fingerprint_tells_values_types_and_borders_of_parts_apart() -> None:
    scalars = [(1,), ("1",), (1.5,), (True,), (None,)]
    values = [("a", "b"), ("ab",), ("a", ["b"]), *scalars, ({"a": 1},), ({"a": 2},)]
    assert len({fingerprint(*value) for value in values}) == len(values)
    assert all(len(fingerprint(*value)) == 16 for value in values)


@pytest.mark.parametrize("value", [object(), {1: 2}, Path("x"), {"a": {1, 2}}])
def test_fingerprint_refuses_what_has_no_canonical_form(value: object) -> None:
    with pytest.raises(TypeError):
        fingerprint(value)


def test_fingerprint_of_a_section_is_that_of_its_values() -> None:
    section = StorageConfig(bucket="x")
    assert fingerprint(section) == fingerprint(section.model_dump(mode="json"))
    assert fingerprint(section) != fingerprint(StorageConfig(bucket="y"))


def test_stage_prefix_ends_in_a_slash() -> None:
    context = RunContext(run_id="r", storage=StorageConfig(bucket="b", prefix="team/"))
    assert stage_prefix(context, "sft", "0123") == "s3://b/team/sft/0123/"


def test_canonical_json_is_valid_json() -> None:
    assert json.loads(canonical_json({"b": 1.0, "a": [True, None, "é"]})) == {"a": [True, None, "é"], "b": 1}
