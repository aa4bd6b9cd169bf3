"""Errors that a person who uses vthink can cause, and mend."""

import difflib
from collections.abc import Iterable


class UserError(Exception):
    """A mistake in what vthink was given, or something outside it that does not work. The message is one line: what is
    wrong, where, and what to do. The command line prints it without a traceback; every other exception is a fault of
    ours and keeps its traceback. A subclass is for those who catch it."""


def did_you_mean(name: str, known: Iterable[str], title: str = "known") -> str:
    """What to do about a name that is not known: the nearest one, or all of them."""
    near = difflib.get_close_matches(name, known := list(known), n=1, cutoff=0.5)
    return f"did you mean '{near[0]}'?" if near else f"{title}: {', '.join(known)}"


def first_line(error: BaseException, longest: int = 500) -> str:
    """The first line of an error's text, or its class where it has none."""
    lines = str(error).strip().splitlines()
    return (lines[0] if lines else type(error).__name__)[:longest]
