"""``vthink submit``: the same pipeline on Kubeflow Pipelines."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Annotated

import typer

from .compile import EvaluationGpus
from .kubeflow import Host, Namespace, Token
from .runs import follow
from .settings import Overrides, Preset, load
from .stages import stage_named

if TYPE_CHECKING:
    from ..config import Config
    from ..kfp_client.runs import SubmittedRun


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
    from ...components.common.errors import UserError
    from ..kfp_client.connection import KfpConnection
    from ..kfp_client.runs import last_rows
    from ..kfp_client.submit import rows_fingerprint, submit_run

    if cron and (wait or when_data_changes):
        raise UserError("--cron starts runs later: it goes neither with --wait nor with --when-data-changes")
    if every and not when_data_changes:
        raise UserError("--every needs --when-data-changes")
    config, restart = load(preset, overrides), stage_named(from_stage)
    kfp = KfpConnection(host, namespace, token)

    def start(rows: str | None = None) -> SubmittedRun:
        run = submit_run(kfp, config, restart, experiment, service_account, cron, rows, evaluation_gpus)
        print(run.url, flush=True)
        return run

    if not when_data_changes:
        run = start(None if cron else _readable_rows(config))
    else:
        while True:
            rows = rows_fingerprint(config)
            if rows != last_rows(kfp, config.name):
                run = start(rows)
                if not every:
                    break
            elif not every:
                print(f"the rows of {config.data.source} are those of the last run ({rows}); nothing to do")
                return
            time.sleep(every)
    if wait:
        follow(kfp, run.run_id)


def _readable_rows(config: Config) -> str | None:
    """The rows' fingerprint where this machine can read them; it only serves a later --when-data-changes."""
    from ...components.common.storage.names import StorageError
    from ..kfp_client.submit import rows_fingerprint

    try:
        return rows_fingerprint(config)
    except StorageError:
        return None
