"""The MLflow run of a whole pipeline, and its description: links to everything that it made."""

import json
import logging
import os
from collections.abc import Mapping, Sequence
from typing import Any
from urllib.parse import quote

from ..config import STAGES
from ..context import RunContext
from ..storage.config import StorageConfig
from ..storage.manifest import Manifest
from ..storage.names import MANIFEST, StorageError
from ..storage.s3 import Storage
from . import client as mlflow_client
from .client import GPU_HOURS, Status
from .config import TrackingConfig

_log = logging.getLogger(__name__)

_NOTE = "mlflow.note.content"  # tag with a run's description, in Markdown
_NOTE_HEADING = "### What this run made"
"""Where our part of the pipeline's description begins; what a person wrote above it stays."""
_ORDER: dict[str, int] = {stage: index for index, stage in enumerate(STAGES)}


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
    ``config_yaml`` is kept as ``config.yaml``; ``artifact_root``, in ``storage``, is for the artifacts of an experiment
    that must be created."""
    client = mlflow_client.registry_client(tracking, storage)
    with mlflow_client.mlflow_errors(f"cannot start the MLflow run of {run_id}"):
        tags = {"vthink.run_id": run_id, **mlflow_client.origin_tags("vthink run")}
        if parent := os.environ.get("MLFLOW_RUN_ID"):
            parent = str(client.get_run(parent).data.tags.get("mlflow.parentRunId", parent))
        else:
            experiment = mlflow_client.ensure_experiment(client, tracking.experiment, artifact_root)
            tags["vthink.stage"] = "pipeline"
            parent = _pipeline_run(client, experiment, run_id)
        if parent is None:
            parent = str(client.create_run(experiment, tags=tags, run_name=name).info.run_id)
        else:
            mlflow_client.reopen_run(client, parent, tags)
        client.log_text(parent, config_yaml, "config.yaml")
        return parent


def _pipeline_run(client: Any, experiment: str, run_id: str) -> str | None:
    run = mlflow_client.find_run(client, experiment, {"vthink.run_id": run_id, "vthink.stage": "pipeline"})
    return None if run is None else str(run.info.run_id)


def _children(client: Any, parent: Any) -> Any:
    """The runs of the stages that ran in a pipeline's run, the newest first."""
    condition = f"tags.`mlflow.parentRunId` = '{parent.info.run_id}'"
    order = ["attributes.start_time DESC"]
    return client.search_runs([parent.info.experiment_id], filter_string=condition, order_by=order)


def finish_parent(tracking: TrackingConfig, parent_run_id: str, status: Status = "FINISHED") -> None:
    """Close the pipeline's run, with the accelerator hours of the stages that ran in it."""
    client = mlflow_client.registry_client(tracking)
    with mlflow_client.mlflow_errors(f"cannot close the MLflow run {parent_run_id}"):
        children = _children(client, client.get_run(parent_run_id))
        hours = [child.data.metrics[GPU_HOURS] for child in children if GPU_HOURS in child.data.metrics]
        if hours:
            client.log_metric(parent_run_id, GPU_HOURS, sum(hours))
        client.set_terminated(parent_run_id, status)


def begin_pipeline(run: str, config: str) -> str:
    """Begin or continue the MLflow run of a pipeline run on a cluster; returns the context for the stages, as JSON.
    ``run`` is a `RunContext` as JSON; one text may start many runs (a schedule, a clone), so KFP's id is added to the
    run's. ``config``, the whole configuration as JSON, is kept as ``config.yaml``."""
    import yaml

    context = _of_cluster(run)
    text = yaml.safe_dump(json.loads(config), sort_keys=False, allow_unicode=True) if config else ""
    root = context.storage.root_uri + "mlflow"
    parent = start_parent(context.tracking, context.run_id, text, context.run_id, root, context.storage)
    return context.model_copy(update={"parent_run_id": parent}).to_json()


def finish_pipeline(run: str, state: str) -> None:
    """Close what `begin_pipeline` began, with KFP's word for how it ended: SUCCEEDED, FAILED or CANCELLED."""
    context = _of_cluster(run)
    client = mlflow_client.registry_client(context.tracking, context.storage)
    with mlflow_client.mlflow_errors(f"cannot close the MLflow run of {context.run_id}"):
        parent = _pipeline_run(client, mlflow_client.our_experiment(client, context), context.run_id)
    if parent is not None:  # else it ended before it began, or KFP's plugin closes it
        status: Status = "FINISHED" if state == "SUCCEEDED" else "KILLED" if state.startswith("CANCEL") else "FAILED"
        finish_parent(context.tracking, parent, status)


def _of_cluster(run: str) -> RunContext:
    context = RunContext.load(run, "run")
    kfp_id = os.environ.get("KFP_PIPELINE_RUN_ID", "")
    return context.model_copy(update={"run_id": f"{context.run_id}-{kfp_id[:8]}"}) if kfp_id else context


def describe_pipeline(client: Any, context: RunContext) -> None:
    """Write links to everything that was made into the description of the pipeline's run, as far as it is there.

    That is: the run of each stage with its pages, the curves of SFT and GRPO side by side, and the model version. A
    stage that was reused has its run below an earlier pipeline run, and is found through the manifests that the later
    stages began with. Called whenever a stage begins or ends; a description that cannot be written is no reason to
    fail."""
    if context.parent_run_id is None:
        return
    try:
        parent = client.get_run(context.parent_run_id)
        written = _description(client, context, parent)
        by_hand, _, _ = parent.data.tags.get(_NOTE, "").partition(_NOTE_HEADING)
        note = f"{by_hand}{_NOTE_HEADING}\n{written}"
        mlflow_client.set_tags(client, context.parent_run_id, {_NOTE: note})
    except Exception as error:
        line = mlflow_client.first_line(error)
        _log.warning("cannot describe the MLflow run %s: %s", context.parent_run_id, line)


def _description(client: Any, context: RunContext, parent: Any) -> str:
    """The links, in Markdown. Relative ones, because MLflow's pages may be served from anywhere."""
    runs = _stage_runs(client, context, parent)
    stages, pages, models, curves = [], [], [], []
    for stage, run in sorted(runs.items(), key=lambda entry: _ORDER.get(entry[0], len(_ORDER))):
        url = run_url(".", run.info.experiment_id, run.info.run_id)
        gate = run.data.tags.get("vthink.gate")
        stages.append(f"[{stage}]({url}) {gate or run.info.status.lower()}")
        newest = {path.rpartition("/")[0]: path for path in _pages(client, run.info.run_id)}
        for path in newest.values():
            pages.append(f"[{path.removesuffix('.html').replace('_', ' ')}]({url}/artifacts/{path})")
        if version := run.data.tags.get("vthink.model_version"):
            name = context.tracking.registered_model
            models = [f"[{name} version {version}]({model_version_url('.', name, version)})"]
    trained = [runs[stage].info for stage in ("sft", "grpo") if stage in runs]
    if trained:
        experiments, ids = [run.experiment_id for run in trained], [run.run_id for run in trained]
        url = curves_url(".", experiments, ids, "validation/accuracy")
        curves.append(f"[validation accuracy of {' and '.join(run.run_name for run in trained)}]({url})")
    # What a person looks for comes first: of a long description, MLflow folds away the end.
    lines = {"model": models, "pages": pages, "curves": curves, "stages": stages}
    return "\n".join(f"- {title}: {', '.join(links)}" for title, links in lines.items() if links)


def _pages(client: Any, run_id: str, folder: str | None = None) -> list[str]:
    """The HTML artifacts of a run, also in folders, in the order of their names."""
    paths: list[str] = []
    for entry in client.list_artifacts(run_id, folder):
        paths += _pages(client, run_id, entry.path) if entry.is_dir else [entry.path]
    return sorted(path for path in paths if path.endswith(".html"))


def _stage_runs(client: Any, context: RunContext, parent: Any) -> dict[str, Any]:
    """The MLflow run of each stage that the pipeline's run has gone through, by the stage's name."""
    runs: dict[str, Any] = {}
    waiting: list[str] = []
    for run in _children(client, parent):
        tags = run.data.tags
        runs.setdefault(tags.get("vthink.stage", run.info.run_name), run)
        inputs = {k.removeprefix("vthink.input."): v for k, v in tags.items() if k.startswith("vthink.input.")}
        waiting += _manifests(inputs)
    storage, seen = Storage(context.storage), set[str]()
    while waiting:
        uri = waiting.pop(0)
        if uri in seen:
            continue
        seen.add(uri)
        try:
            manifest = Manifest.read(storage, uri)
        except StorageError:  # cleared away since; its stage stays without a link
            continue
        if manifest.mlflow_run_id and manifest.stage not in runs:
            runs[manifest.stage] = client.get_run(manifest.mlflow_run_id)
        waiting += _manifests(manifest.inputs)
    return runs


def _manifests(inputs: Mapping[str, str]) -> list[str]:
    """The manifests among a stage's inputs. The champion, with which the gate compares, is of another run."""
    return [uri for name, uri in inputs.items() if name != "champion" and uri.endswith(f"/{MANIFEST}")]


def experiment_url(base: str, experiment_id: str) -> str:
    """Link to the list of an experiment's runs (without ``/runs`` MLflow opens an overview)."""
    return f"{base.rstrip('/')}/#/experiments/{experiment_id}/runs"


def run_url(base: str, experiment_id: str, run_id: str) -> str:
    """Link to a run."""
    return f"{experiment_url(base, experiment_id)}/{run_id}"


def curves_url(base: str, experiment_ids: Sequence[str], run_ids: Sequence[str], metric: str) -> str:
    """Link to one chart with the curves of a metric in several runs; from there MLflow leads on to their comparison."""
    settings: dict[str, object] = {
        "runs": list(run_ids), "metric": metric, "experiments": sorted(set(experiment_ids)),
        "plot_metric_keys": [metric], "plot_layout": {}, "line_smoothness": 1, "show_point": True,
        "deselected_curves": [], "last_linear_y_axis_range": [],
    }  # fmt: skip
    query = "&".join(f"{key}={quote(json.dumps(value), safe='')}" for key, value in settings.items())
    # MLflow's page fails where one of them is missing.
    return f"{base.rstrip('/')}/#/metric?{query}&x_axis=step&y_axis_scale=linear"


def model_version_url(base: str, name: str, version: str | int) -> str:
    """Link to a version of a registered model."""
    return f"{base.rstrip('/')}/#/models/{quote(name, safe='')}/versions/{version}"
