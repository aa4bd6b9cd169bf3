"""How far something is: a bar on a terminal, a line now and then elsewhere."""

import contextlib
import sys
import time
from collections.abc import Callable, Iterator

_BETWEEN_LINES_S = 10.0

Report = Callable[..., None]  # called with what is done, what there is to do, and perhaps a note


@contextlib.contextmanager
def progress_bar(label: str) -> Iterator[Report]:
    """Show the progress of what happens in the block."""
    if sys.stderr.isatty():
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        note_column = TextColumn("{task.fields[note]}")
        columns = (TextColumn(label), BarColumn(), MofNCompleteColumn(), note_column, TimeRemainingColumn())
        with Progress(*columns, console=Console(stderr=True)) as bar:
            task = bar.add_task(label, total=None, note="")
            yield lambda done, total, note="": bar.update(task, completed=done, total=total, note=note)
        return
    last = time.monotonic()

    def line(done: int, total: int, note: str = "") -> None:
        nonlocal last
        if time.monotonic() - last >= _BETWEEN_LINES_S and done < total:
            last = time.monotonic()
            print(f"{label}: {done} of {total}{note and ', '}{note}", file=sys.stderr, flush=True)

    yield line
