"""``vthink prune``: clear away output that nothing needs any more."""

from __future__ import annotations

from typing import Annotated

import typer

from .settings import WORKSPACE, Folder, Overrides, Preset, load


def prune(
    older_than: Annotated[float, typer.Option(metavar="DAYS", min=0, help="Keep what was written since.")] = 30.0,
    delete: Annotated[bool, typer.Option("--delete", help="Delete it; without this it is only listed.")] = False,
    preset: Preset = "laptop",
    overrides: Overrides = None,
    workspace: Folder = WORKSPACE,
) -> None:
    """List the stages' output in the store, and what of it may go; --delete deletes that.

    A registered model version, served or not, stays, with all that it was made from; so does what is recent, and what
    that was made from. MLflow's runs and artifacts are not touched.
    """
    from datetime import timedelta

    from .. import retention
    from ..run.session import session

    config = load(preset, overrides)
    with session(config, workspace) as opened:
        stored = retention.examine(opened.storage, opened.context.tracking, timedelta(days=older_than))
        for entry in stored:
            state = entry.kept_by or "may go"
            unfinished = "" if entry.finished else ", unfinished"
            print(f"{entry.modified:%Y-%m-%d} {entry.size / 1e6:12,.1f} MB  {entry.uri}  {state}{unfinished}")
        going = [entry for entry in stored if not entry.kept_by]
        size = sum(entry.size for entry in going) / 1e9
        if not delete:
            print(f"{len(going)} of {len(stored)} may go, {size:.3g} GB; delete them with --delete")
            return
        for entry in retention.delete(opened.storage, going):
            print(f"deleted {entry.uri}", flush=True)
        print(f"deleted {len(going)} of {len(stored)}, {size:.3g} GB")
