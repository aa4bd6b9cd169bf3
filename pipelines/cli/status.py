"""How runs stand and what they printed: ``vthink status``, ``logs``. A cluster's client is imported when asked."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from rich.console import Console
from typer import Argument, Option

from ...components.common.config import STAGES, Stage
from ...components.common.errors import UserError
from ..run.status import champion_line, is_running, read_progress, run_state, stage_log
from .display import ProgressView, stage_table
from .options import WORKSPACE, Folder, Namespace, OptionalHost, OptionalPreset, Overrides, Token, stage_named

if TYPE_CHECKING:
    from ..kfp_client.connection import KfpConnection

_WATCH_EVERY_S = 0.5


def status(
    run: Annotated[str | None, Argument(help="A run's id or name; without one the newest are listed.")] = None,
    host: OptionalHost = None, namespace: Namespace = "kubeflow", token: Token = None,
    preset: OptionalPreset = None, overrides: Overrides = None, workspace: Folder = WORKSPACE,
    watch: Annotated[bool, Option("--watch", help="Of a run on Kubeflow Pipelines: follow it to its end.")] = False,
) -> None:  # fmt: skip
    """How far a run is, stage by stage, and which model is in service: here, or with --host on Kubeflow Pipelines.

    There without a name the newest runs are listed; with --preset also which model is in service. With --watch the exit
    code says how the run ended: 0 in service, 3 refused by the gate, 1 failed or stopped."""
    console = Console(highlight=False)
    if watch and (host is None or run is None):
        raise UserError("--watch follows one run on Kubeflow Pipelines: vthink status RUN --host … --watch")
    if host is None and run is None and preset is None and not overrides:
        _print_here(console, workspace)
        return
    if host is not None:
        from ..kfp_client.connection import KfpConnection
        from ..kfp_client.runs import find_run

        kfp = KfpConnection(host, namespace, token)
        if watch and run is not None:
            from .cluster import follow

            follow(kfp, find_run(kfp, run).run_id)
        else:
            _print_runs(console, kfp, run)
    elif run is not None:
        raise UserError("to look for a run, give --host or KF_PIPELINES_ENDPOINT")
    if preset is not None or host is None:
        from ..config import load
        from ..run.session import session
        from .serve import service_lines

        with session(load(preset or "laptop", overrides), workspace, exclusive=False) as opened:
            for line in service_lines(opened):
                console.print(line, markup=False, soft_wrap=True)


def watch(workspace: Folder = WORKSPACE) -> None:
    """Follow the last run of this machine, from any terminal, until it is over. Ctrl-C ends the watching, not the run.

    Where there is no terminal, a line is printed when a stage begins or ends, and each minute."""
    console = Console(highlight=False)
    if read_progress(workspace) is None:
        raise UserError(f"no run in {workspace} yet: vthink run")
    with ProgressView(console) as view:
        while True:
            going_on = is_running(workspace)  # before what is read: the last look is at how it ended
            last = read_progress(workspace)
            if last is not None:
                view.update(last[1])
            if not going_on:
                break
            time.sleep(_WATCH_EVERY_S)
    if last is not None:
        console.print(run_state(workspace, *last), markup=False, soft_wrap=True)


def _print_here(console: Console, workspace: Path) -> None:
    """The last run of this machine."""
    last = read_progress(workspace)
    if last is None:
        console.print(f"no run in {workspace} yet: vthink run; of a cluster: --host", markup=False)
    else:
        name, stages = last
        console.print(stage_table(stages, console.width))
        console.print(run_state(workspace, name, stages), markup=False, soft_wrap=True)
    console.print(champion_line(workspace), markup=False, soft_wrap=True)


def _print_runs(console: Console, kfp: KfpConnection, name: str | None) -> None:
    """One run with its stages, or the newest ones."""
    from ..kfp_client import runs

    if name is None:
        for entry in runs.recent_runs(kfp):
            state = runs.ending(runs.get_run(kfp, entry.run_id)) or entry.state.lower()
            console.print(f"{entry.run_id}  {entry.created_at:%Y-%m-%d %H:%M}  {state:<10} {entry.display_name}")
        return
    run = runs.find_run(kfp, name)
    console.print(stage_table(runs.stage_progress(run)))
    console.print(f"run {runs.ending(run) or (run.state or 'pending').lower()}: {run.display_name}")
    console.print(runs.page_of(kfp, run.run_id), markup=False, soft_wrap=True)
    if run.error and run.error.message:
        console.print(run.error.message, markup=False)


def logs(
    run: Annotated[str | None, Argument(metavar="[RUN]", help="A run's id or name; of this machine none.")] = None,
    stage: Annotated[Stage | None, Argument(parser=stage_named, help="Default: what failed, or else runs.")] = None,
    host: OptionalHost = None, namespace: Namespace = "kubeflow", token: Token = None, workspace: Folder = WORKSPACE,
) -> None:  # fmt: skip
    """Print what a stage of a run printed, training included: on Kubeflow Pipelines, or of the last run here."""
    if host is None:
        if run is not None and run not in STAGES:
            raise UserError("to look for a run, give --host or KF_PIPELINES_ENDPOINT; here: vthink logs STAGE")
        print(stage_log(workspace, stage_named(run) if run else stage), end="")
        return
    if run is None:
        raise UserError("vthink logs RUN [STAGE]: which run? vthink status lists them")
    from ..kfp_client import runs
    from ..kfp_client.connection import KfpConnection

    kfp = KfpConnection(host, namespace, token)
    details = runs.find_run(kfp, run)
    if stage is None:
        stages = runs.stage_progress(details)
        begun = [name for state in ("failed", "running", "done") for name in stages if stages[name].status == state]
        if not begun:
            raise UserError(f"{details.display_name}: no stage has begun")
        stage = begun[0]
    for line in runs.stage_log(kfp, details, stage):
        print(line, flush=True)
