"""What an examination says: a line each, ok or with what to do."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Literal

from ...components.common.errors import UserError

Check = Callable[[], str]  # says what was seen, or raises a `UserError` that says what to do


class NotSeenError(UserError):
    """Something could not be looked at, which is no failure."""


class PreflightError(UserError):
    """Everything that must change before a run, a line each."""


@dataclass(frozen=True)
class Finding:
    """One line of the examination."""

    subject: str
    verdict: Literal["ok", "bad", "unknown"]
    detail: str


def finding(subject: str, check: Check) -> Finding:
    """What a check says."""
    try:
        return Finding(subject, "ok", check())
    except NotSeenError as error:
        return Finding(subject, "unknown", str(error))
    except UserError as error:
        return Finding(subject, "bad", str(error))


def require(findings: Iterable[Finding]) -> list[Finding]:
    """The findings, when none of them is bad. Raises PreflightError: one is; lists all that are."""
    seen = list(findings)
    bad = [f"{entry.subject}: {entry.detail}" for entry in seen if entry.verdict == "bad"]
    if len(bad) == 1:
        raise PreflightError(f"{bad[0]} (nothing was started)")
    if bad:
        raise PreflightError("\n  ".join((f"{len(bad)} things must change first; nothing was started:", *bad)))
    return seen


def settings(*changes: str) -> str:
    """How a person makes these changes on the command line."""
    return " ".join(f"--set {change}" for change in changes)


def bad(subject: str, details: Iterable[str]) -> Iterator[Finding]:
    """Findings of what must change."""
    for detail in details:
        yield Finding(subject, "bad", detail)
