"""Things that are chosen by name."""

import re
from collections.abc import Callable

import pytest
from vthink.components.common.errors import UserError
from vthink.components.common.registry import Registry


@pytest.fixture
def colours() -> Registry[int]:
    registry = Registry("colour", int, {"red": 1})
    registry.register("green", 2)
    return registry


def test_entries_are_there_by_name_in_their_order(colours):
    assert (colours.get("green"), list(colours), "red" in colours) == (2, ["red", "green"], True)
    assert dict(colours.items()) == {"red": 1, "green": 2}


def test_a_name_is_given_once(colours):
    with pytest.raises(ValueError, match="there is a colour 'red' already"):
        colours.register("red", 3)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("gren", "unknown colour 'gren'; did you mean 'green'?"),
        ("ultraviolet", "unknown colour 'ultraviolet'; known: red, green"),
        ("no_such_module:RED", "colour 'no_such_module:RED': cannot import 'no_such_module' (No module named"),
        ("own_colours:BLUE", "colour 'own_colours:BLUE': own_colours has no 'BLUE'"),
        ("own_colours:NAME", "colour 'own_colours:NAME' is a str, not a int"),
        (":RED", "colour ':RED': cannot import ''"),
    ],
)
def test_a_wrong_name_is_an_error_of_one_line_that_helps(colours, own_colours, name, message):
    with pytest.raises(UserError, match=re.escape(message)):
        colours.get(name)


@pytest.fixture
def own_colours(tmp_path, monkeypatch):
    (tmp_path / "own_colours.py").write_text("PINK = 7\nNAME = 'x'\nclass More:\n    TEAL = 8\n")
    monkeypatch.syspath_prepend(tmp_path)


def test_an_entry_may_come_from_a_module_outside(colours, own_colours):
    assert (colours.get("own_colours:PINK"), colours.get("own_colours:More.TEAL")) == (7, 8)
    assert list(colours) == ["red", "green"]


def test_entries_may_be_functions():
    assert Registry("function", Callable, {}).get("math:sqrt")(9) == 3


def test_a_configuration_is_checked_without_importing_anything(colours):
    assert (colours.check("red"), colours.check("not_installed_here:RED")) == ("red", "not_installed_here:RED")
    with pytest.raises(ValueError, match="did you mean 'red'"):
        colours.check("redd")


def test_entries_from_outside_can_be_refused(colours, own_colours):
    with pytest.raises(UserError, match="unknown colour 'own_colours:PINK'"):
        colours.get("own_colours:PINK", outside=False)
