"""The description of a pipeline's MLflow run: links to everything that it made."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

from ..config import STAGES
from ..context import RunContext
from ..storage.manifest import Manifest
from ..storage.names import MANIFEST, StorageError
from ..storage.s3 import Storage
from .client import first_line, set_tags
from .links import curves_url, model_version_url, run_url

_log = logging.getLogger(__name__)

_NOTE = "mlflow.note.content"
"""Tag with a run's description, in Markdown."""

_NOTE_HEADING = "### What this run made"
"""Where our part of the pipeline's description begins; what a person wrote above it stays."""

_ORDER: dict[str, int] = {stage: index for index, stage in enumerate(STAGES)}


def describe_pipeline(client: Any, context: RunContext) -> None:
    """Write links to everything that was made into the description of the pipeline's run, as far as it is there.

    That is: the run of each stage with its pages (reports, the newest rollouts), the curves of SFT and GRPO side by
    side, and the model version. A stage that was reused has its run below an earlier pipeline run; it is found through
    the manifests that the later stages began with. Called whenever a stage begins or ends. A description that cannot be
    written is no reason for a stage to fail.
    """
    if context.parent_run_id is None:
        return
    try:
        parent = client.get_run(context.parent_run_id)
        written = _description(client, context, parent)
        by_hand, _, _ = parent.data.tags.get(_NOTE, "").partition(_NOTE_HEADING)
        set_tags(client, context.parent_run_id, {_NOTE: f"{by_hand}{_NOTE_HEADING}\n{written}"})
    except Exception as error:
        _log.warning("cannot describe the MLflow run %s: %s", context.parent_run_id, first_line(error))


def _description(client: Any, context: RunContext, parent: Any) -> str:
    """The links, in Markdown. Relative ones, because MLflow's pages may be served from anywhere."""
    runs = _stage_runs(client, context, parent)
    stages, pages, models = [], [], []
    for stage, run in sorted(runs.items(), key=lambda entry: _ORDER.get(entry[0], len(_ORDER))):
        url = run_url(".", run.info.experiment_id, run.info.run_id)
        gate = run.data.tags.get("vthink.gate")
        stages.append(f"[{stage}]({url}) {gate or run.info.status.lower()}")
        newest = {path.rpartition("/")[0]: path for path in _pages(client, run.info.run_id)}
        pages += [
            f"[{path.removesuffix('.html').replace('_', ' ')}]({url}/artifacts/{path})" for path in newest.values()
        ]
        if version := run.data.tags.get("vthink.model_version"):
            name = context.tracking.registered_model
            models.append(f"[{name} version {version}]({model_version_url('.', name, version)})")
    lines = {"model": models[-1:], "pages": pages, "curves": [], "stages": stages}
    trained = [runs[stage].info for stage in ("sft", "grpo") if stage in runs]
    if trained:
        experiments, ids = [run.experiment_id for run in trained], [run.run_id for run in trained]
        url = curves_url(".", experiments, ids, "validation/accuracy")
        lines["curves"].append(f"[validation accuracy of {' and '.join(run.run_name for run in trained)}]({url})")
    # What a person looks for comes first: of a long description, MLflow folds away the end.
    return "\n".join(f"- {title}: {', '.join(links)}" for title, links in lines.items() if links)


def _pages(client: Any, run_id: str, folder: str | None = None) -> list[str]:
    """The HTML artifacts of a run, also in folders, in the order of their names."""
    paths: list[str] = []
    for entry in client.list_artifacts(run_id, folder):
        paths += _pages(client, run_id, entry.path) if entry.is_dir else [entry.path]
    return sorted(path for path in paths if path.endswith(".html"))


def _stage_runs(client: Any, context: RunContext, parent: Any) -> dict[str, Any]:
    """The MLflow run of each stage that the pipeline's run has gone through, by the stage's name."""
    condition = f"tags.`mlflow.parentRunId` = '{parent.info.run_id}'"
    order = ["attributes.start_time DESC"]
    children = client.search_runs([parent.info.experiment_id], filter_string=condition, order_by=order)
    runs: dict[str, Any] = {}
    waiting: list[str] = []
    for run in children:
        runs.setdefault(run.data.tags.get("vthink.stage", run.info.run_name), run)
        inputs = {k.removeprefix("vthink.input."): v for k, v in run.data.tags.items() if k.startswith("vthink.input.")}
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
