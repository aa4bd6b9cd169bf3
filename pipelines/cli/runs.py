"""``vthink status``, ``logs``, ``retry`` and ``cancel``: runs on Kubeflow Pipelines, and what is in service."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Annotated

import typer

from .kubeflow import Host, Namespace, OptionalHost, RunName, Token
from .settings import WORKSPACE, Folder, Overrides, load
from .stages import REFUSED, ProgressView, stage_named, stage_table

if TYPE_CHECKING:
    from rich.console import Console

    from ..kfp_client.connection import KfpConnection


def status(
    run: Annotated[str | None, typer.Argument(help="A run's id or name; without one the newest are listed.")] = None,
    host: OptionalHost = None,
    namespace: Namespace = "kubeflow",
    token: Token = None,
    preset: Annotated[
        str | None,
        typer.Option("--preset", "--config", "-c", metavar="NAME|FILE", help="Also say which model is in service."),
    ] = None,
    overrides: Overrides = None,
    workspace: Folder = WORKSPACE,
) -> None:
    """How far a run on Kubeflow Pipelines is, stage by stage; or which runs there are, and which model is in service.

    Without Kubeflow Pipelines: which model is in service, of this machine's runs or of --preset's.
    """
    from rich.console import Console

    from ...components.common.errors import UserError

    console = Console(highlight=False)
    if host is None and run is not None:
        raise UserError("to look for a run, give --host or KF_PIPELINES_ENDPOINT")
    if host is not None:
        from ..kfp_client.connection import KfpConnection

        _print_runs(console, KfpConnection(host, namespace, token), run)
    if preset is not None or host is None:
        from ..run.session import session
        from .serve import service_lines

        with session(load(preset or "laptop", overrides), workspace, exclusive=False) as opened:
            for line in service_lines(opened):
                console.print(line, markup=False, soft_wrap=True)


def _print_runs(console: Console, kfp: KfpConnection, name: str | None) -> None:
    """One run with its stages, or the newest ones."""
    from ..kfp_client import runs
    from ..kfp_client.progress import ending, stage_progress

    if name is None:
        for entry in runs.recent_runs(kfp):
            state = ending(runs.get_run(kfp, entry.run_id)) or entry.state.lower()
            console.print(f"{entry.run_id}  {entry.created_at:%Y-%m-%d %H:%M}  {state:<10} {entry.display_name}")
        return
    run = runs.find_run(kfp, name)
    console.print(stage_table(stage_progress(run)))
    console.print(f"run {ending(run) or (run.state or 'pending').lower()}: {run.display_name}")
    if run.error and run.error.message:
        console.print(run.error.message, markup=False)


def logs(
    host: Host,
    run: RunName,
    stage: Annotated[str | None, typer.Argument(help="Default: the stage that failed, or the one that runs.")] = None,
    namespace: Namespace = "kubeflow",
    token: Token = None,
) -> None:
    """Print what a stage of a run printed, training included."""
    from ...components.common.errors import UserError
    from ..kfp_client.connection import KfpConnection
    from ..kfp_client.progress import stage_progress
    from ..kfp_client.runs import find_run, stage_log

    kfp = KfpConnection(host, namespace, token)
    chosen = stage_named(stage)
    found = find_run(kfp, run)
    if chosen is None:
        stages = stage_progress(found)
        begun = [name for state in ("failed", "running", "done") for name in stages if stages[name].status == state]
        if not begun:
            raise UserError(f"{found.display_name}: no stage has begun")
        chosen = begun[0]
    for line in stage_log(kfp, found, chosen):
        print(line, flush=True)


def retry(
    host: Host,
    run: RunName,
    namespace: Namespace = "kubeflow",
    token: Token = None,
    wait: Annotated[bool, typer.Option("--wait", help="Show the stages until the run is over.")] = False,
) -> None:
    """Continue a failed or stopped run; what is finished is kept, training goes on from its last checkpoint."""
    from ..kfp_client.connection import KfpConnection
    from ..kfp_client.runs import retry_run

    kfp = KfpConnection(host, namespace, token)
    continued = retry_run(kfp, run)
    print(continued.url, flush=True)
    if wait:
        follow(kfp, continued.run_id)


def cancel(host: Host, run: RunName, namespace: Namespace = "kubeflow", token: Token = None) -> None:
    """Stop a run, its training job included; or delete a recurring run by its id."""
    from ..kfp_client.connection import KfpConnection
    from ..kfp_client.runs import cancel_run

    print(cancel_run(KfpConnection(host, namespace, token), run))


def follow(kfp: KfpConnection, run_id: str) -> None:
    """Show a run's stages until it is over; leaves with the exit code that says how."""
    from rich.console import Console

    from ..kfp_client.progress import ending
    from ..kfp_client.runs import wait_for_run

    console = Console(highlight=False)
    with ProgressView(console) as view:
        run = wait_for_run(kfp, run_id, view.update, lambda reason: print(f"{reason}; waiting", file=sys.stderr))
    how = ending(run)
    console.print(f"run {how}: {run.display_name}")
    if how != "succeeded":
        raise typer.Exit(REFUSED if how == "refused" else 1)
