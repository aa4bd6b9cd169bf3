"""Runs on Kubeflow Pipelines: ``vthink doctor, compile, submit, status, logs, retry, cancel``."""

import sys
import time
from contextlib import suppress
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Annotated

from rich.console import Console
from rich.text import Text
from typer import Exit, Option

from ...components.common.errors import UserError
from ...components.common.storage.names import StorageError
from ..config import load
from ..doctor import examine, knows_cluster
from ..kfp_client import runs
from ..kfp_client.connection import KfpConnection
from ..kfp_client.submit import rows_fingerprint, submit_run
from ..pipeline import compile_to, for_cluster
from ..preflight.examine import examine_run, examine_submission
from ..preflight.finding import finding, require
from ..preflight.machine import check_storage
from ..run.session import session
from .display import ProgressView, print_findings
from .options import (
    REFUSED,
    WORKSPACE,
    EvaluationGpus,
    Folder,
    Host,
    Namespace,
    OptionalHost,
    OptionalPreset,
    Overrides,
    Preset,
    Restart,
    RunName,
    Token,
    Wait,
)


def doctor(
    preset: OptionalPreset = None, overrides: Overrides = None, host: OptionalHost = None,
    namespace: Namespace = "kubeflow", token: Token = None, workspace: Folder = WORKSPACE,
) -> None:  # fmt: skip
    """Check what a run of this configuration needs: each line is ok, or says what to do.

    Looked at, on this machine: rows, model, accelerators, disk, S3, MLflow. Where Kubeflow Pipelines or a cluster is
    known (--host, KUBECONFIG): these with CRDs, queues, quota and GPU nodes, KServe, and the configuration's stores.
    The exit code is 1 when anything is missing."""
    console = Console(highlight=False)
    if host is not None or knows_cluster(namespace):
        findings = examine(load(preset or "video_r1_7b", overrides), host, namespace, token)
        raise Exit(0 if print_findings(console, findings) else 1)
    with session(load(preset or "laptop", overrides), workspace, exclusive=False) as opened:
        store = finding("S3", partial(check_storage, opened.storage.config))
        sound = print_findings(console, chain([store], examine_run(opened)))
    console.print(Text("no cluster is known here (--host, KUBECONFIG): looked at this machine alone", "dim"))
    raise Exit(0 if sound else 1)


def compile_pipeline(
    output: Annotated[Path, Option("--output", "-o", help="File to write.")] = Path("vthink.yaml"),
    preset: OptionalPreset = None, overrides: Overrides = None, evaluation_gpus: EvaluationGpus = 1,
) -> None:  # fmt: skip
    """Write the pipeline as KFP's IR YAML, which the Kubeflow Pipelines page takes as an upload.

    With --preset its settings fill in the page's form for a new run; without, it asks for each as JSON."""
    print(compile_to(output, load(preset, overrides) if preset else None, evaluation_gpus))


def submit(
    host: Host, preset: Preset = "video_r1_7b", overrides: Overrides = None, namespace: Namespace = "kubeflow",
    token: Token = None,
    experiment: Annotated[str | None, Option(help="KFP experiment; default: that of the configuration.")] = None,
    service_account: Annotated[str | None, Option(help="Of the pods, e.g. vthink-pipeline; default: KFP's.")] = None,
    from_stage: Restart = None, wait: Wait = False,
    cron: Annotated[str | None, Option(metavar="'M H D M W'", help="Start it again and again: '0 3 * * *'.")] = None,
    when_data_changes: Annotated[bool, Option("--when-data-changes", help="Start it only if the rows differ.")] = False,
    every: Annotated[float | None, Option(metavar="SECONDS", min=1, help="Of --when-data-changes: repeat.")] = None,
    evaluation_gpus: EvaluationGpus = 1,
) -> None:  # fmt: skip
    """Upload the pipeline where Kubeflow Pipelines lacks it, start a run, and print its page's address.

    Training goes to TrainJobs. Stages whose finished output is in the store are reused. Who asks: --token; or a service
    account's token in the file KF_PIPELINES_SA_TOKEN_PATH (in a pod: its own); or an OIDC client in VTHINK_OIDC_ISSUER,
    VTHINK_OIDC_CLIENT_ID and VTHINK_OIDC_CLIENT_SECRET.

    Exit codes with --wait: 0 in service, 3 refused by the gate, 1 failed or stopped."""
    if cron and (wait or when_data_changes):
        raise UserError("--cron starts runs later: it goes neither with --wait nor with --when-data-changes")
    if every and not when_data_changes:
        raise UserError("--every needs --when-data-changes")
    config = load(preset, overrides)
    require(examine_submission(for_cluster(config)))
    kfp = KfpConnection(host, namespace, token)

    def start(rows: str | None = None) -> runs.SubmittedRun:
        run = submit_run(kfp, config, from_stage, experiment, service_account, cron, rows, evaluation_gpus)
        print(run.url, flush=True)
        return run

    if not when_data_changes:
        rows = None
        if not cron:
            with suppress(StorageError):  # only a later --when-data-changes needs them
                rows = rows_fingerprint(config)
        run = start(rows)
    while when_data_changes:
        rows = rows_fingerprint(config)
        if rows != runs.last_rows(kfp, config.name):
            run = start(rows)
            if not every:
                break
        elif not every:
            print(f"the rows of {config.data.source} are those of the last run ({rows}); nothing to do")
            return
        time.sleep(every)
    if wait:
        follow(kfp, run.run_id)


def retry(host: Host, run: RunName, namespace: Namespace = "kubeflow", token: Token = None, wait: Wait = False) -> None:
    """Continue a failed or stopped run; what is finished is kept, training goes on from its last checkpoint."""
    kfp = KfpConnection(host, namespace, token)
    continued = runs.retry_run(kfp, run)
    print(continued.url, flush=True)
    if wait:
        follow(kfp, continued.run_id)


def cancel(host: Host, run: RunName, namespace: Namespace = "kubeflow", token: Token = None) -> None:
    """Stop a run, its training job included; or delete a recurring run by its id."""
    print(runs.cancel_run(KfpConnection(host, namespace, token), run))


def follow(kfp: KfpConnection, run_id: str) -> None:
    """Show a run's stages until it is over; leaves with the exit code that says how."""
    console = Console(highlight=False)
    with ProgressView(console) as view:
        run = runs.wait_for_run(kfp, run_id, view.update, lambda why: print(f"{why}; waiting", file=sys.stderr))
    how = runs.ending(run)
    console.print(f"run {how}: {run.display_name}")
    if how != "succeeded":
        raise Exit(REFUSED if how == "refused" else 1)
