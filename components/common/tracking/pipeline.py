"""The MLflow run of a whole pipeline."""

from __future__ import annotations

import json
import os

from ..context import RunContext
from ..storage.config import StorageConfig
from .client import (
    GPU_HOURS,
    Status,
    ensure_experiment,
    find_run,
    mlflow_errors,
    origin_tags,
    registry_client,
    reopen_run,
)
from .config import TrackingConfig


def start_parent(
    tracking: TrackingConfig,
    run_id: str,
    config_yaml: str,
    name: str,
    artifact_root: str,
    storage: StorageConfig | None = None,
) -> str:
    """The pipeline's run, begun or continued; returns its id.

    ``MLFLOW_RUN_ID`` in the environment names the run to use (or the parent of the run that it names, where KFP's
    MLflow plugin has given a task its own); otherwise it is found by its tag ``vthink.run_id`` or created.

    Args:
        tracking: where.
        run_id: of the pipeline run.
        config_yaml: the whole configuration, kept as ``config.yaml``.
        name: shown in MLflow.
        artifact_root: ``s3://…`` folder for the artifacts of an experiment that must be created.
        storage: the store of ``artifact_root``.
    """
    client = registry_client(tracking, storage)
    with mlflow_errors(f"cannot start the MLflow run of {run_id}"):
        parent = os.environ.get("MLFLOW_RUN_ID")
        tags = {"vthink.run_id": run_id, **origin_tags("vthink run")}
        if parent:
            parent = str(client.get_run(parent).data.tags.get("mlflow.parentRunId", parent))
            reopen_run(client, parent, tags)
        else:
            experiment = ensure_experiment(client, tracking.experiment, artifact_root)
            pipeline_run = find_run(client, experiment, {"vthink.run_id": run_id, "vthink.stage": "pipeline"})
            tags["vthink.stage"] = "pipeline"
            if pipeline_run is not None:
                parent = str(pipeline_run.info.run_id)
                reopen_run(client, parent, tags)
            else:
                parent = str(client.create_run(experiment, tags=tags, run_name=name).info.run_id)
        client.log_text(parent, config_yaml, "config.yaml")
        return parent


def finish_parent(tracking: TrackingConfig, parent_run_id: str, status: Status = "FINISHED") -> None:
    """Close the pipeline's run, with the accelerator hours of the stages that ran in it."""
    client = registry_client(tracking)
    with mlflow_errors(f"cannot close the MLflow run {parent_run_id}"):
        run = client.get_run(parent_run_id)
        condition = f"tags.`mlflow.parentRunId` = '{parent_run_id}'"
        children = client.search_runs([run.info.experiment_id], filter_string=condition)
        hours = [child.data.metrics[GPU_HOURS] for child in children if GPU_HOURS in child.data.metrics]
        if hours:
            client.log_metric(parent_run_id, GPU_HOURS, sum(hours))
        client.set_terminated(parent_run_id, status)


def begin_pipeline(run: str, config: str) -> str:
    """Begin or continue the MLflow run of a pipeline run on a cluster.

    Args:
        run: `RunContext` as JSON. On a cluster one text may start many runs (a schedule, a clone), so KFP's id is added
            to the run's.
        config: the whole configuration as JSON, kept as ``config.yaml``.

    Returns:
        The context for the stages, as JSON.
    """
    import yaml

    context = _of_cluster(run)
    text = yaml.safe_dump(json.loads(config), sort_keys=False, allow_unicode=True) if config else ""
    root = context.storage.root_uri + "mlflow"
    parent = start_parent(context.tracking, context.run_id, text, context.run_id, root, context.storage)
    return context.model_copy(update={"parent_run_id": parent}).to_json()


def finish_pipeline(run: str, state: str) -> None:
    """Close the MLflow run of a pipeline run on a cluster.

    Args:
        run: as `begin_pipeline` got it.
        state: how KFP says that the pipeline ended: SUCCEEDED, FAILED or CANCELLED.
    """
    context = _of_cluster(run)
    client = registry_client(context.tracking, context.storage)
    with mlflow_errors(f"cannot close the MLflow run of {context.run_id}"):
        experiment = ensure_experiment(client, context.tracking.experiment, context.storage.root_uri + "mlflow")
        pipeline_run = find_run(client, experiment, {"vthink.run_id": context.run_id, "vthink.stage": "pipeline"})
    if pipeline_run is not None:  # else it ended before it began, or KFP's plugin closes it
        status: Status = "FINISHED" if state == "SUCCEEDED" else "KILLED" if state.startswith("CANCEL") else "FAILED"
        finish_parent(context.tracking, str(pipeline_run.info.run_id), status)


def _of_cluster(run: str) -> RunContext:
    context = RunContext.load(run, "run")
    kfp_id = os.environ.get("KFP_PIPELINE_RUN_ID", "")
    return context.model_copy(update={"run_id": f"{context.run_id}-{kfp_id[:8]}"}) if kfp_id else context
