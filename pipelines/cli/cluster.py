"""``vthink status``, ``logs``, ``retry``, ``cancel`` and ``doctor``: runs on Kubeflow Pipelines, and what they need."""

from __future__ import annotations

from typing import Annotated

import typer

from .options import WORKSPACE, Folder, Host, Namespace, Overrides, Preset, Token, load

Run = Annotated[str, typer.Argument(help="A run's id or name.")]


def register(app: typer.Typer) -> None:
    """Add the commands to ``app``."""
    app.command(epilog="Example: vthink status video_r1_7b-20260101-090000-ab12")(status)
    app.command(epilog="Example: vthink logs video_r1_7b-20260101-090000-ab12 grpo")(logs)
    app.command(epilog="Example: vthink retry video_r1_7b-20260101-090000-ab12 --wait")(retry)
    app.command(epilog="Example: vthink cancel video_r1_7b-20260101-090000-ab12")(cancel)
    app.command(epilog="Example: vthink doctor --preset video_r1_7b --namespace vthink")(doctor)


def status(
    run: Annotated[str | None, typer.Argument(help="A run's id or name; without one the newest are listed.")] = None,
    host: Annotated[
        str | None, typer.Option(envvar="KF_PIPELINES_ENDPOINT", help="Address of Kubeflow Pipelines.")
    ] = None,
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

    from ...components.common.config import ConfigError
    from .run import stage_table

    console = Console(highlight=False)
    if host is None and run is not None:
        raise ConfigError("to look for a run, give --host or KF_PIPELINES_ENDPOINT")
    if host is not None:
        from ..kfp_client.client import Pipelines
        from ..kfp_client.runs import ending, stages

        pipelines = Pipelines(host, namespace, token)
        if run is not None:
            found = pipelines.find(run)
            console.print(stage_table(stages(found)))
            console.print(f"run {ending(found) or (found.state or 'pending').lower()}: {found.display_name}")
            if found.error and found.error.message:
                console.print(found.error.message, markup=False)
        else:
            for entry in pipelines.recent():
                state = ending(pipelines.get(entry.run_id)) or entry.state.lower()
                console.print(f"{entry.run_id}  {entry.created_at:%Y-%m-%d %H:%M}  {state:<10} {entry.display_name}")
    if preset is not None or host is None:
        from ..run.session import session
        from .serve import service_lines

        with session(load(preset or "laptop", overrides), workspace, exclusive=False) as opened:
            for line in service_lines(opened):
                console.print(line, markup=False, soft_wrap=True)


def logs(
    host: Host,
    run: Run,
    stage: Annotated[str | None, typer.Argument(help="Default: the stage that failed, or the one that runs.")] = None,
    namespace: Namespace = "kubeflow",
    token: Token = None,
) -> None:
    """Print what a stage of a run printed, training included."""
    from ..kfp_client.client import Pipelines
    from ..kfp_client.errors import SubmitError
    from ..kfp_client.runs import stages
    from .run import stage_named

    pipelines = Pipelines(host, namespace, token)
    found = pipelines.find(run)
    asked = stage_named(stage)
    if asked is None:
        all_stages = stages(found)
        begun = [s for status in ("failed", "running", "done") for s in all_stages if all_stages[s].status == status]
        if not begun:
            raise SubmitError(f"{found.display_name}: no stage has begun")
        asked = begun[0]
    for line in pipelines.logs(found, asked):
        print(line, flush=True)


def retry(
    host: Host,
    run: Run,
    namespace: Namespace = "kubeflow",
    token: Token = None,
    wait: Annotated[bool, typer.Option("--wait", help="Show the stages until the run is over.")] = False,
) -> None:
    """Continue a failed or stopped run; what is finished is kept, training goes on from its last checkpoint."""
    from ..kfp_client.client import Pipelines
    from .submit import follow

    pipelines = Pipelines(host, namespace, token)
    again = pipelines.retry(run)
    print(again.url, flush=True)
    if wait:
        follow(pipelines, again.run_id)


def cancel(host: Host, run: Run, namespace: Namespace = "kubeflow", token: Token = None) -> None:
    """Stop a run, its training job included; or delete a recurring run by its id."""
    from ..kfp_client.client import Pipelines

    print(Pipelines(host, namespace, token).cancel(run))


def doctor(
    preset: Preset = "video_r1_7b",
    overrides: Overrides = None,
    host: Annotated[
        str | None, typer.Option(envvar="KF_PIPELINES_ENDPOINT", help="Address of Kubeflow Pipelines.")
    ] = None,
    namespace: Namespace = "kubeflow",
    token: Token = None,
) -> None:
    """Check what a run of this configuration needs: each line is ok, or says what to do.

    Looked at: Kubeflow Pipelines, the cluster and its CRDs, queues, quota and GPU nodes, S3 by writing and reading,
    MLflow, KServe. The exit code is 1 when anything is missing.
    """
    from rich.console import Console
    from rich.text import Text

    from ..doctor import examine

    console, sound = Console(highlight=False, soft_wrap=True), True
    for finding in examine(load(preset, overrides), host, namespace, token):
        symbol, style = {"ok": ("✓", "green"), "unknown": ("–", "dim")}.get(finding.verdict, ("✗", "red"))
        console.print(Text(f"{symbol} {finding.subject}: ", style) + Text(finding.detail))
        sound = sound and finding.verdict != "bad"
    raise typer.Exit(0 if sound else 1)
