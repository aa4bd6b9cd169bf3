"""``vthink report``: the last evaluation's HTML report as a file."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from .settings import WORKSPACE, Folder, Overrides, Preset, load


def report(
    output: Annotated[Path | None, typer.Option("--output", "-o", help="Default: in the workspace.")] = None,
    preset: Preset = "laptop",
    overrides: Overrides = None,
    workspace: Folder = WORKSPACE,
) -> None:
    """Write the last evaluation's HTML report to a file that opens in any browser."""
    from ..run.session import session
    from ..run.summary import read_summary

    config = load(preset, overrides)
    summary = read_summary(workspace)
    path = output or workspace / "report.html"
    with session(config, workspace, exclusive=False) as opened:
        opened.storage.download_file(summary.report, path)
    print(path)
