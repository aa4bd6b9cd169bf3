"""``vthink ui``: MLflow on this workspace."""

from __future__ import annotations

from typing import Annotated

import typer

from .settings import WORKSPACE, Folder, Overrides, Preset, load


def ui(
    port: Annotated[int, typer.Option(min=1, max=65535, help="TCP port.")] = 5000,
    preset: Preset = "laptop",
    overrides: Overrides = None,
    workspace: Folder = WORKSPACE,
) -> None:
    """Open MLflow on this workspace: runs, curves, rollout tables, reports and model versions. Ctrl-C ends it."""
    from ...components.common.tracking.pipeline import experiment_url
    from ...components.common.tracking.server import start_ui
    from ..run.session import experiment_id, session

    config = load(preset, overrides)
    with session(config, workspace, exclusive=False) as opened:
        context, log = opened.context, opened.workspace.logs_dir / "mlflow.log"
        print("starting MLflow …", flush=True)
        with start_ui(context.tracking, context.storage, context.storage.root_uri + "mlflow", log, port) as server:
            print(f"{experiment_url(server.url, experiment_id(opened))} (Ctrl-C ends it)", flush=True)
            server.process.wait()
