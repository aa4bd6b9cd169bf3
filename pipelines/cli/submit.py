"""``vthink compile`` and ``vthink submit``: the same pipeline for Kubeflow Pipelines."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from .options import Host, Namespace, Overrides, Preset, Token, load

if TYPE_CHECKING:
    from ..config import Config
    from ..kfp_client.client import Pipelines
    from ..kfp_client.runs import SubmittedRun


def register(app: typer.Typer) -> None:
    """Add the commands to ``app``."""
    app.command(name="compile", epilog="Example: vthink compile --output vthink.yaml")(compile_pipeline)
    app.command(
        epilog="Example: vthink submit --host https://kubeflow.example.org/pipeline --preset video_r1_7b --wait"
    )(submit)


EvaluationGpus = Annotated[int, typer.Option("--evaluation-gpus", min=0, help="GPUs of the evaluation task.")]


def compile_pipeline(
    output: Annotated[Path, typer.Option("--output", "-o", help="File to write.")] = Path("vthink.yaml"),
    preset: Annotated[
        str | None,
        typer.Option("--preset", "--config", "-c", metavar="NAME|FILE", help="Settings to write in as defaults."),
    ] = None,
    overrides: Overrides = None,
    evaluation_gpus: EvaluationGpus = 1,
) -> None:
    """Write the pipeline as KFP's IR YAML, which the Kubeflow Pipelines page takes as an upload.

    With --preset the page's form for a new run is filled in; without, it asks for each stage's settings as JSON.
    """
    from ..pipeline import compile_to

    config = load(preset, overrides) if preset else None
    print(compile_to(output, config, evaluation_gpus))


def submit(
    host: Host,
    preset: Preset = "video_r1_7b",
    overrides: Overrides = None,
    namespace: Namespace = "kubeflow",
    token: Token = None,
    experiment: Annotated[str | None, typer.Option(help="KFP experiment; default: that of the configuration.")] = None,
    service_account: Annotated[
        str | None, typer.Option(help="Of the run's pods, e.g. vthink-pipeline; default: KFP's own.")
    ] = None,
    from_stage: Annotated[
        str | None, typer.Option("--from", metavar="STAGE", help="Redo this stage and everything after it.")
    ] = None,
    wait: Annotated[bool, typer.Option("--wait", help="Show the stages until the run is over.")] = False,
    cron: Annotated[
        str | None, typer.Option(metavar="'M H D M W'", help="Start it again and again, e.g. '0 3 * * *'.")
    ] = None,
    when_data_changes: Annotated[
        bool,
        typer.Option("--when-data-changes", help="Start it only if the rows differ from those of the last run."),
    ] = False,
    every: Annotated[
        float | None, typer.Option(metavar="SECONDS", min=1, help="With --when-data-changes: stay, and look again.")
    ] = None,
    evaluation_gpus: EvaluationGpus = 1,
) -> None:
    """Upload the pipeline where Kubeflow Pipelines lacks it, start a run, and print its page's address.

    Training goes to TrainJobs. Stages whose finished output is in the store are reused. Who asks: --token; or a service
    account's token in the file KF_PIPELINES_SA_TOKEN_PATH (in a pod: its own); or an OIDC client in VTHINK_OIDC_ISSUER,
    VTHINK_OIDC_CLIENT_ID and VTHINK_OIDC_CLIENT_SECRET.

    Exit codes with --wait: 0 in service, 3 refused by the gate, 1 failed or stopped.
    """
    import time

    from ...components.common.config import ConfigError
    from ..kfp_client.client import Pipelines
    from ..kfp_client.runs import rows_fingerprint
    from .run import stage_named

    if cron and (wait or when_data_changes):
        raise ConfigError("--cron starts runs later: it goes neither with --wait nor with --when-data-changes")
    if every and not when_data_changes:
        raise ConfigError("--every needs --when-data-changes")
    config, restart = load(preset, overrides), stage_named(from_stage)
    pipelines = Pipelines(host, namespace, token)

    def start(rows: str | None = None) -> SubmittedRun:
        run = pipelines.start(config, restart, experiment, service_account, cron, rows, evaluation_gpus)
        print(run.url, flush=True)
        return run

    if not when_data_changes:
        run = start(None if cron else _rows(config))
    else:
        while True:
            rows = rows_fingerprint(config)
            if rows != pipelines.rows(config.name):
                run = start(rows)
                if not every:
                    break
            elif not every:
                print(f"the rows of {config.data.source} are those of the last run ({rows}); nothing to do")
                return
            time.sleep(every)
    if wait:
        follow(pipelines, run.run_id)


def _rows(config: Config) -> str | None:
    """The rows' fingerprint where this machine can read them; it only serves a later --when-data-changes."""
    from ...components.common.storage.names import StorageError
    from ..kfp_client.runs import rows_fingerprint

    try:
        return rows_fingerprint(config)
    except StorageError:
        return None


def follow(pipelines: Pipelines, run_id: str) -> None:
    """Show a run's stages until it is over; leaves with the exit code that says how."""
    import sys

    from rich.console import Console

    from ..kfp_client.runs import ending
    from .run import REFUSED, Progress

    console = Console(highlight=False)
    with Progress(console) as progress:
        run = pipelines.wait(run_id, progress.update, lambda reason: print(f"{reason}; waiting", file=sys.stderr))
    how = ending(run)
    console.print(f"run {how}: {run.display_name}")
    if how != "succeeded":
        raise typer.Exit(REFUSED if how == "refused" else 1)
