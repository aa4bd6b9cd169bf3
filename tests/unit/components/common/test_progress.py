"""Progress without a terminal, and on one."""

from __future__ import annotations

import sys
from collections.abc import Iterator

import pytest
from vthink.components.common import progress


@pytest.fixture
def minutes(monkeypatch: pytest.MonkeyPatch) -> None:
    """A clock on which a minute passes between two looks."""
    clock: Iterator[int] = iter(range(0, 6000, 60))
    monkeypatch.setattr(progress.time, "monotonic", lambda: next(clock))


@pytest.mark.usefixtures("minutes")
def test_a_slow_task_says_where_it_is_now_and_then(capsys: pytest.CaptureFixture[str]) -> None:
    with progress.progress_bar("files") as report:
        report(1, 3)
        report(2, 3, "$0.10")
        report(3, 3)
    assert capsys.readouterr().err == "files: 1 of 3\nfiles: 2 of 3, $0.10\n"


def test_a_quick_task_says_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    with progress.progress_bar("files") as report:
        for done in range(1000):
            report(done, 1000)
    assert capsys.readouterr().err == ""


def test_a_terminal_shows_a_bar(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    monkeypatch.setenv("FORCE_COLOR", "1")
    with progress.progress_bar("files") as report:
        report(3, 3, "done")
    assert "3/3" in capsys.readouterr().err
