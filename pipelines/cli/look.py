"""``vthink ui`` and ``vthink report``: look at what runs left."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from .options import WORKSPACE, Folder, Overrides, Preset, load


def register(app: typer.Typer) -> None:
    """Add the commands to ``app``."""
    app.command(epilog="Example: vthink ui --port 5000")(ui)
    app.command(epilog="Example: vthink report --output report.html")(report)


def ui(
    port: Annotated[int, typer.Option(min=1, max=65535, help="TCP port.")] = 5000,
    preset: Preset = "laptop",
    overrides: Overrides = None,
    workspace: Folder = WORKSPACE,
) -> None:
    """Open MLflow on this workspace: runs, curves, rollout tables, reports and model versions. Ctrl-C ends it."""
    from ...components.common.tracking import experiment_url, start_ui
    from ..run import experiment_id, session

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
    from ..run import read_summary, session

    config = load(preset, overrides)
    summary = read_summary(workspace)
    path = output or workspace / "report.html"
    with session(config, workspace, exclusive=False) as opened:
        opened.storage.download_file(summary["report"], path)
    print(path)
