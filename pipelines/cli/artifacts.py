"""What runs left in a workspace or store: ``vthink ui``, ``report`` and ``prune``."""

from datetime import timedelta
from pathlib import Path
from typing import Annotated

from typer import Option

from ...components.common.tracking.pipeline import experiment_url
from ...components.common.tracking.server import start_ui
from .. import retention
from ..config import load
from ..run.session import experiment_id, session
from ..run.summary import read_summary
from .options import WORKSPACE, Folder, Overrides, Preset


def ui(
    port: Annotated[int, Option(min=1, max=65535, help="TCP port.")] = 5000,
    preset: Preset = "laptop", overrides: Overrides = None, workspace: Folder = WORKSPACE,
) -> None:  # fmt: skip
    """Open MLflow on this workspace: runs, curves, rollout tables, reports and model versions. Ctrl-C ends it."""
    with session(load(preset, overrides), workspace, exclusive=False) as opened:
        context, log = opened.context, opened.workspace.logs_dir / "mlflow.log"
        print("starting MLflow …", flush=True)
        with start_ui(context.tracking, context.storage, context.storage.root_uri + "mlflow", log, port) as server:
            print(f"{experiment_url(server.url, experiment_id(opened))} (Ctrl-C ends it)", flush=True)
            server.process.wait()


def report(
    output: Annotated[Path | None, Option("--output", "-o", help="Default: in the workspace.")] = None,
    preset: Preset = "laptop", overrides: Overrides = None, workspace: Folder = WORKSPACE,
) -> None:  # fmt: skip
    """Write the last evaluation's HTML report to a file that opens in any browser."""
    config, summary, path = load(preset, overrides), read_summary(workspace), output or workspace / "report.html"
    with session(config, workspace, exclusive=False) as opened:
        opened.storage.download_file(summary.report, path)
    print(path)


def prune(
    older_than: Annotated[float, Option(metavar="DAYS", min=0, help="Keep what was written since.")] = 30.0,
    delete: Annotated[bool, Option("--delete", help="Delete it; without this it is only listed.")] = False,
    preset: Preset = "laptop", overrides: Overrides = None, workspace: Folder = WORKSPACE,
) -> None:  # fmt: skip
    """List the stages' output in the store, and what of it may go; --delete deletes that.

    A registered model version, served or not, stays, with all that it was made from; so does what is recent, and what
    that was made from. MLflow's runs and artifacts are not touched."""
    with session(load(preset, overrides), workspace) as opened:
        stored = retention.examine(opened.storage, opened.context.tracking, timedelta(days=older_than))
        for entry in stored:
            state = (entry.kept_by or "may go") + ("" if entry.finished else ", unfinished")
            print(f"{entry.modified:%Y-%m-%d} {entry.size / 1e6:12,.1f} MB  {entry.uri}  {state}")
        going = [entry for entry in stored if not entry.kept_by]
        sizes = f"{len(going)} of {len(stored)}", f"{sum(entry.size for entry in going) / 1e9:.3g} GB"
        if not delete:
            print(f"{sizes[0]} may go, {sizes[1]}; delete them with --delete")
            return
        for entry in retention.delete(opened.storage, going):
            print(f"deleted {entry.uri}", flush=True)
        print(f"deleted {sizes[0]}, {sizes[1]}")
