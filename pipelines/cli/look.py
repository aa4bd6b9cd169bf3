"""``vthink ui``, ``vthink report`` and ``vthink prune``: look at what runs left, and clear away what is old."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from .options import WORKSPACE, Folder, Overrides, Preset, load


def register(app: typer.Typer) -> None:
    """Add the commands to ``app``."""
    app.command(epilog="Example: vthink ui --port 5000")(ui)
    app.command(epilog="Example: vthink report --output report.html")(report)
    app.command(epilog="Example: vthink prune --older-than 30 --delete")(prune)


def ui(
    port: Annotated[int, typer.Option(min=1, max=65535, help="TCP port.")] = 5000,
    preset: Preset = "laptop",
    overrides: Overrides = None,
    workspace: Folder = WORKSPACE,
) -> None:
    """Open MLflow on this workspace: runs, curves, rollout tables, reports and model versions. Ctrl-C ends it."""
    from ...components.common.tracking.links import experiment_url
    from ...components.common.tracking.server import start_ui
    from ..run.session import experiment_id, session

    config = load(preset, overrides)
    with session(config, workspace, exclusive=False) as opened:
        context, log = opened.context, opened.workspace.logs_dir / "mlflow.log"
        print("starting MLflow …", flush=True)
        with start_ui(context.tracking, context.storage, context.storage.root_uri + "mlflow", log, port) as server:
            print(f"{experiment_url(server.url, experiment_id(opened))} (Ctrl-C ends it)", flush=True)
            server.process.wait()


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
        opened.storage.download_file(summary["report"], path)
    print(path)


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
