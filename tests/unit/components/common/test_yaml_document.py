"""YAML as people write it. Mistakes in configuration files: tests/unit/pipelines/test_config.py."""

from __future__ import annotations

import pytest
from vthink.components.common.config import ConfigError
from vthink.components.common.yaml_document import read_yaml, write_yaml

VALUES = {"z": 1, "a": {"none": None, "number": 5e-6, "words": ["5e-6", "on", "010", "1:30", "null", "", "2026-12-01"]}}


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("5e-6", 5e-6),
        ("010", 10),
        ("on", "on"),
        ("1:30", "1:30"),
        ("2026-12-01", "2026-12-01"),
        ("~", None),
        ("", None),
    ],
)
def test_scalars_are_those_of_yaml_1_2_without_dates(text, value):
    assert read_yaml(f"key: {text}\n", "x").values == {"key": value}


def test_what_is_written_is_read_back_in_its_order():
    text = write_yaml(VALUES)
    assert read_yaml(text, "x").values == VALUES
    assert text.startswith("z: 1\na:\n  none: null\n  number: 5e-06\n")


def test_every_key_has_its_line():
    document = read_yaml("a:\n  b: {c: 1}\n  d: 2\n", "my.yaml")
    assert [document.place(path) for path in (["a"], ["a", "b", "c"], ["a", "d", "e"])] == [
        "my.yaml:1", "my.yaml:2", "my.yaml:3"
    ]  # fmt: skip
    assert document.place(["a", "x"]) is None
    assert document.place(["y"]) is None


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: 1\nb: {c: 1, c: 2}\n", r"x:2: 'b.c' is given twice \(first in line 2\)"),
        ("a: !!python/object/apply:os.system [ls]\n", r"x:1: not YAML: could not determine a constructor"),
        ("a: b: c\n", r"x:1: not YAML"),
        ("a: 1\n---\nb: 1\n", r"x:2: not YAML"),
        ("a: \x00\n", r"x: not YAML"),
        ("word\n", r"expected 'key: value' lines, got str"),
    ],
    ids=["twice", "an object of Python", "two colons", "two documents", "no text", "no mapping"],
)
def test_a_mistake_is_one_line_with_its_place(text, message):
    with pytest.raises(ConfigError, match=message) as error:
        read_yaml(text, "x")
    assert "\n" not in str(error.value)
