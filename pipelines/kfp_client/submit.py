"""Starting runs: upload a version of the pipeline where it is not known, and a run, or a recurring run, of it."""

import hashlib
import secrets
import tempfile
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import kfp_server_api

from ... import __version__
from ...components.common.config import Stage
from ...components.common.context import RunContext
from ...components.common.errors import UserError
from ...components.common.storage.names import fingerprint, sha256_file
from ...components.common.storage.s3 import Storage
from ..config import Config
from ..pipeline import arguments, compile_to, for_cluster
from .connection import KfpConnection
from .runs import SubmittedRun, named, newest, redo_counts

PIPELINE = "vthink"  # name of the pipeline in KFP


def submit_run(
    kfp: KfpConnection,
    config: Config,
    restart: Stage | None = None,
    experiment: str | None = None,
    service_account: str | None = None,
    cron: str | None = None,
    rows: str | None = None,
    evaluation_gpus: int = 1,
) -> SubmittedRun:
    """Upload the pipeline where KFP does not have it, and start a run of it.

    Args:
        config: made `for_cluster`; storage and tracking must be reachable from there.
        restart: do this stage and all after it afresh, though finished output is there.
        experiment: KFP experiment; None: the configuration's MLflow experiment.
        cron: start it again and again, at these times (see `cron_expression`).
        rows: fingerprint of the rows (`rows_fingerprint`), kept with the run.

    Raises:
        UserError: ``cron`` is none, or KFP refuses something."""
    schedule = cron_expression(cron) if cron else None
    redo = redo_counts(kfp, config.name)
    if restart:
        redo[restart] = redo.get(restart, 0) + 1
    name = f"{config.name}-{datetime.now(UTC):%Y%m%d-%H%M%S}-{secrets.token_hex(2)}"
    config = for_cluster(config)
    context = RunContext(
        run_id=name,
        redo={str(stage): count for stage, count in redo.items()},
        storage=config.storage,
        tracking=config.tracking,
        launch=config.launch,
    )
    with tempfile.TemporaryDirectory() as folder:
        package = compile_to(Path(folder) / "vthink.yaml", config, evaluation_gpus)
        pipeline_id, version_id = upload_pipeline(kfp, package)
    settings: dict[str, Any] = {
        "display_name": name,
        "description": f"vthink {__version__}" + (f"; rows {rows}" if rows else ""),
        "experiment_id": _experiment_id(kfp, experiment or config.tracking.experiment),
        "pipeline_version_reference": kfp_server_api.V2beta1PipelineVersionReference(pipeline_id, version_id),
        "runtime_config": kfp_server_api.V2beta1RuntimeConfig(parameters=arguments(config, context)),
        "service_account": service_account,
    }
    made: Any
    if schedule:
        trigger = kfp_server_api.V2beta1Trigger(cron_schedule=kfp_server_api.V2beta1CronSchedule(cron=schedule))
        enabled = kfp_server_api.RecurringRunMode.ENABLE
        recurring = kfp_server_api.V2beta1RecurringRun(
            **settings, trigger=trigger, mode=enabled, max_concurrency="1", no_catchup=True
        )
        schedules = kfp.apis.recurring_runs
        made = kfp.create(
            "schedule the run",
            lambda: schedules.recurring_run_service_create_recurring_run(recurring),
            lambda: newest(kfp, schedules.recurring_run_service_list_recurring_runs, "recurring_runs", named(name)),
        )
        return SubmittedRun(made.recurring_run_id, f"{kfp.host}/#/recurringrun/details/{made.recurring_run_id}", name)
    api = kfp.apis.runs
    made = kfp.create(
        "start the run",
        lambda: api.run_service_create_run(kfp_server_api.V2beta1Run(**settings)),
        lambda: newest(kfp, api.run_service_list_runs, "runs", named(name)),
    )
    return SubmittedRun(made.run_id, f"{kfp.host}/#/runs/details/{made.run_id}", name)


def upload_pipeline(kfp: KfpConnection, package: Path) -> tuple[str, str]:
    """Make a compiled pipeline known, once: its version is named by its contents. The ids of both."""
    api = kfp.apis.pipelines

    def find_pipeline() -> Any:
        try:
            return api.pipeline_service_get_pipeline_by_name(PIPELINE, **kfp.scope)
        except kfp_server_api.ApiException as error:
            if error.status != 404:
                raise
            return None

    body = kfp_server_api.V2beta1Pipeline(name=PIPELINE, display_name=PIPELINE, **kfp.scope)
    pipeline = kfp.ensure("the pipeline", lambda: api.pipeline_service_create_pipeline(body), find_pipeline)
    pipeline_id = str(pipeline.pipeline_id)
    name = f"{__version__}-{hashlib.sha256(package.read_bytes()).hexdigest()[:12]}"

    def find_version() -> Any:
        listed = api.pipeline_service_list_pipeline_versions(pipeline_id, filter=named(name), page_size=1)
        return listed.pipeline_versions[0] if listed.pipeline_versions else None

    upload = kfp.apis.uploads.upload_pipeline_version
    version = kfp.ensure(
        "the pipeline's version", lambda: upload(str(package), name=name, pipelineid=pipeline_id), find_version
    )
    return pipeline_id, str(version.pipeline_version_id)


def _experiment_id(kfp: KfpConnection, name: str) -> str:
    """The id of an experiment, which is made when there is none."""
    api = kfp.apis.experiments
    body = kfp_server_api.V2beta1Experiment(display_name=name, **kfp.scope)

    def find() -> Any:
        listed = api.experiment_service_list_experiments(filter=named(name), page_size=1, **kfp.scope)
        return listed.experiments[0] if listed.experiments else None

    experiment = kfp.ensure("the experiment", lambda: api.experiment_service_create_experiment(body), find)
    return str(experiment.experiment_id)


def cron_expression(text: str) -> str:
    """KFP's six fields, of which the first is the second, from the usual five or from six; else a `UserError`."""
    fields = text.split()
    if len(fields) not in (5, 6):
        raise UserError(f"--cron '{text}': expected five fields, for example '0 3 * * *' (every night at three)")
    return " ".join(["0", *fields] if len(fields) == 5 else fields)


def rows_fingerprint(config: Config) -> str:
    """Identifies the rows that a run would prepare by their contents; a `StorageError` if they cannot be read."""
    source = config.data.source
    if source == "synthesize":
        return fingerprint(config.data.synthesize)
    if not source.startswith("s3://"):
        return sha256_file(Path(source))[:16]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "rows"
        Storage(config.storage).download_file(source, path)
        return sha256_file(path)[:16]
