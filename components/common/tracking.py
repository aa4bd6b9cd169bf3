"""What a run measured and made, recorded in MLflow.

One parent run per pipeline run, one child per stage. A stage's run is found again by its tags, so that a
stage that was killed continues in the run it began. Artifacts go to the experiment's S3 location.

MLflow takes seconds to import, so it is imported where it is used; importing this module is cheap.
"""

from __future__ import annotations

import contextlib
import json
import logging
import math
import os
import re
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, Literal, Self

from .config import STAGES, RunContext, StorageConfig, TrackingConfig
from .launch import (
    LaunchError,
    Process,
    free_port,
    git_commit,
    package_versions,
    spawn,
    wait_until_ready,
)
from .storage import MANIFEST, Manifest, Storage, StorageError

Status = Literal["FINISHED", "FAILED", "KILLED"]

_log = logging.getLogger(__name__)
_MAX_VALUE = 6000
"""MLflow's limit for the text of a parameter."""
_BATCH = 100
"""MLflow's limit for parameters and tags in one request."""
_LISTED_TABLES = 100
"""Tables that a run's tag lists: MLflow cuts a tag of more than 8,000 characters, and half a list is no JSON."""
_AWAY_S = 15.0
"""How long MLflow is left alone after it did not answer, so that a training is not held up at each step."""
_COUNT_S = 60.0
"""How often the accelerator time is recorded: a killed process loses at most so much of it."""
GPU_HOURS = "resources/gpu_hours"
"""Metric of a stage's run, and summed up of the pipeline's: hours times the accelerators of the training."""
_HOPELESS = frozenset({"INVALID_PARAMETER_VALUE", "BAD_REQUEST", "RESOURCE_DOES_NOT_EXIST", "PERMISSION_DENIED"})
"""What MLflow answers to a request that it will never take; there is no use in waiting."""
_NO_BUCKET = frozenset({"NoSuchBucket", "AccessDenied", "InvalidAccessKeyId", "SignatureDoesNotMatch"})
"""What a store answers where an experiment keeps its artifacts in one that is not ours."""
_NOTE = "mlflow.note.content"
"""Tag with a run's description, in Markdown."""
_NOTE_HEADING = "### What this run made"
"""Where our part of the pipeline's description begins; what a person wrote above it stays."""
_ORDER: dict[str, int] = {stage: index for index, stage in enumerate(STAGES)}


class TrackingError(RuntimeError):
    """The tracking store cannot be used; one line for a person."""


# --- MLflow's own settings ----------------------------------------------------------------------------------


def mlflow_environment(storage: StorageConfig | None = None) -> dict[str, str]:
    """The variables with which MLflow writes artifacts to our store and otherwise keeps quiet."""
    env = {
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "DO_NOT_TRACK": "true",
        "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
        "GIT_PYTHON_REFRESH": "quiet",
        # MLflow makes its own S3 client; without this it sends checksums that several servers refuse.
        "AWS_REQUEST_CHECKSUM_CALCULATION": "when_required",
        "AWS_RESPONSE_CHECKSUM_VALIDATION": "when_required",
    }
    if storage is not None:
        env["AWS_DEFAULT_REGION"] = os.environ.get("AWS_DEFAULT_REGION", storage.region)
        env["MLFLOW_BOTO_CLIENT_ADDRESSING_STYLE"] = "path" if storage.path_style else "auto"
        if storage.endpoint_url:
            env["MLFLOW_S3_ENDPOINT_URL"] = storage.endpoint_url
        if storage.ca_bundle:
            env["AWS_CA_BUNDLE"] = storage.ca_bundle
    return env


def tracking_uri(tracking: TrackingConfig) -> str:
    """Where runs are recorded.

    Raises:
        TrackingError: neither the configuration nor the environment says.
    """
    uri = tracking.uri or os.environ.get("MLFLOW_TRACKING_URI")
    if not uri:
        raise TrackingError("no MLflow tracking URI: set tracking.uri or MLFLOW_TRACKING_URI")
    return uri


def registry_client(tracking: TrackingConfig, storage: StorageConfig | None = None) -> Any:
    """An ``MlflowClient`` for runs, artifacts and the model registry.

    Raises:
        TrackingError: the store cannot be opened.
    """
    os.environ.update(mlflow_environment(storage))
    # Schema migrations are announced line by line otherwise.
    for name in ("mlflow", "alembic"):
        logging.getLogger(name).setLevel(logging.WARNING)
    from mlflow.exceptions import MlflowException
    from mlflow.tracking import MlflowClient

    uri = tracking_uri(tracking)
    try:
        client = MlflowClient(tracking_uri=uri, registry_uri=uri)
        logging.getLogger("mlflow").setLevel(logging.WARNING)
        return client
    except (MlflowException, OSError) as error:
        raise TrackingError(f"cannot use MLflow at {_shown(uri)}: {_first_line(error)}") from error


def _shown(uri: str) -> str:
    """A URI without the password that it may carry."""
    scheme, separator, rest = uri.partition("://")
    authority, slash, path = rest.partition("/")
    return f"{scheme}{separator}{authority.rpartition('@')[2]}{slash}{path}"


def _first_line(error: BaseException) -> str:
    """The first line of an error, without a password in a URI that it quotes."""
    lines = str(error).splitlines()
    return re.sub(r"//[^/@\s]+@", "//", lines[0]) if lines else type(error).__name__


def _s3_code(error: BaseException | None) -> str | None:
    """The code with which an S3 store refused a request, if that is behind this error."""
    while error is not None:
        response = getattr(error, "response", None)
        if isinstance(response, Mapping) and "Error" in response:
            return str(response["Error"].get("Code"))
        error = error.__cause__ or error.__context__
    return None


@contextlib.contextmanager
def _errors(what: str) -> Iterator[None]:
    from mlflow.exceptions import MlflowException

    try:
        yield
    except MlflowException as error:
        raise TrackingError(f"{what}: {_first_line(error)}") from error


@contextlib.contextmanager
def impatient() -> Iterator[None]:
    """MLflow's client tries for minutes by default, which is right for the beginning of a stage but not within it."""
    wanted = {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1", "MLFLOW_HTTP_REQUEST_TIMEOUT": "10"}
    before = {name: os.environ.get(name) for name in wanted}
    os.environ.update(wanted)
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name) if value is None else os.environ.update({name: value})


# --- runs ---------------------------------------------------------------------------------------------------


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
    with _errors(f"cannot start the MLflow run of {run_id}"):
        parent = os.environ.get("MLFLOW_RUN_ID")
        tags = {"vthink.run_id": run_id, **_origin_tags("vthink run")}
        if parent:
            parent = str(client.get_run(parent).data.tags.get("mlflow.parentRunId", parent))
            _continue(client, parent, tags)
        else:
            experiment = ensure_experiment(client, tracking.experiment, artifact_root)
            found = _search(client, experiment, {"vthink.run_id": run_id, "vthink.stage": "pipeline"})
            tags["vthink.stage"] = "pipeline"
            if found is not None:
                parent = str(found.info.run_id)
                _continue(client, parent, tags)
            else:
                parent = str(client.create_run(experiment, tags=tags, run_name=name).info.run_id)
        client.log_text(parent, config_yaml, "config.yaml")
        return parent


def finish_parent(tracking: TrackingConfig, parent_run_id: str, status: Status = "FINISHED") -> None:
    """Close the pipeline's run, with the accelerator hours of the stages that ran in it."""
    client = registry_client(tracking)
    with _errors(f"cannot close the MLflow run {parent_run_id}"):
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
    with _errors(f"cannot close the MLflow run of {context.run_id}"):
        experiment = ensure_experiment(client, context.tracking.experiment, context.storage.root_uri + "mlflow")
        found = _search(client, experiment, {"vthink.run_id": context.run_id, "vthink.stage": "pipeline"})
    if found is not None:  # else it ended before it began, or KFP's plugin closes it
        status: Status = "FINISHED" if state == "SUCCEEDED" else "KILLED" if state.startswith("CANCEL") else "FAILED"
        finish_parent(context.tracking, str(found.info.run_id), status)


def _of_cluster(run: str) -> RunContext:
    context = RunContext.load(run, "run")
    kfp_id = os.environ.get("KFP_PIPELINE_RUN_ID", "")
    return context.model_copy(update={"run_id": f"{context.run_id}-{kfp_id[:8]}"}) if kfp_id else context


def _accelerators() -> int:
    """Accelerators of this training: one per process. Only a process that has loaded torch can have any."""
    torch = sys.modules.get("torch")
    return int(os.environ.get("WORLD_SIZE", "1")) if torch is not None and torch.cuda.is_available() else 0


def ensure_experiment(client: Any, name: str, artifact_root: str | None = None) -> str:
    """The id of the experiment; created, with its artifacts below ``artifact_root``, when there is none."""
    from mlflow.exceptions import MlflowException

    for attempt in range(2):
        found = client.get_experiment_by_name(name)
        if found is not None:
            if found.lifecycle_stage != "active":
                client.restore_experiment(found.experiment_id)
            return str(found.experiment_id)
        try:
            return str(client.create_experiment(name, artifact_location=artifact_root))
        except MlflowException as error:
            # Another process created it between the two calls.
            if attempt or error.error_code != "RESOURCE_ALREADY_EXISTS":
                raise
    raise AssertionError("unreachable")


def _search(client: Any, experiment: str, tags: Mapping[str, str]) -> Any:
    """The newest run with these tags, or None."""
    condition = " and ".join(f"tags.`{key}` = '{value}'" for key, value in tags.items())
    runs = client.search_runs(
        [experiment], filter_string=condition, order_by=["attributes.start_time DESC"], max_results=1
    )
    return runs[0] if runs else None


def _continue(client: Any, run_id: str, tags: Mapping[str, str]) -> Any:
    """Reopen a run."""
    run = client.get_run(run_id)
    if run.info.status != "RUNNING":
        client.update_run(run_id, status="RUNNING")
    _set_tags(client, run_id, tags)
    return run


def _set_tags(client: Any, run_id: str, tags: Mapping[str, str]) -> None:
    from mlflow.entities import RunTag

    items = [RunTag(key, str(value)[:_MAX_VALUE]) for key, value in tags.items()]
    for start in range(0, len(items), _BATCH):
        client.log_batch(run_id, tags=items[start : start + _BATCH])


def _origin_tags(source: str) -> dict[str, str]:
    """Where a run comes from: code, person, KFP run."""
    tags = {"mlflow.source.name": source, "mlflow.source.type": "JOB"}
    if commit := git_commit():
        tags["vthink.git_commit"] = tags["mlflow.source.git.commit"] = commit
    with contextlib.suppress(Exception):
        # A container's user often has no name.
        import getpass

        tags["mlflow.user"] = getpass.getuser()
    for name in ("pipeline_run_id", "pipeline_run_url"):
        if value := os.environ.get(f"KFP_{name.upper()}"):
            tags[f"kfp.{name}"] = value
    return tags


def _flatten(config: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """Nested mappings as one level of ``a.b`` keys, with values as text."""
    flat: dict[str, str] = {}
    for key, value in config.items():
        if isinstance(value, Mapping):
            flat.update(_flatten(value, f"{prefix}{key}."))
        else:
            text = value if isinstance(value, str) else json.dumps(value, default=str, sort_keys=True)
            flat[f"{prefix}{key}"] = text[:_MAX_VALUE]
    return flat


def _artifact_name(name: str, suffix: str) -> str:
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts:
        raise TrackingError(f"'{name}' is not a name below the run's artifacts")
    return name if path.suffix else name + suffix


@dataclass(frozen=True, kw_only=True, slots=True)
class Trace:
    """One question to a model and what it said."""

    name: str
    inputs: Mapping[str, Any]
    outputs: Mapping[str, Any]
    tags: Mapping[str, str]


class Tracker:
    """The MLflow run of one stage. As a context manager it closes the run with the right status.

    A stage that resumes from a checkpoint repeats some steps. MLflow cannot take a value back, so a value
    whose step is not beyond the last one recorded under its name is dropped: each step appears once, and
    because training is resumed exactly, with the value that the repetition would give again. The tag
    ``vthink.resumed`` counts how often a stage continued.

    A tracking server that fails for a while does not end a training: values and artifacts wait in memory and go
    out, in their order, with the next ones. Only `finish` insists, as long as ``tracking.outage_s`` says.
    """

    def __init__(
        self,
        client: Any,
        run_id: str | None,
        resumed: bool = False,
        context: RunContext | None = None,
        accelerators: int = 0,
    ):
        self._client = client
        self._context = context
        self.run_id = run_id
        """MLflow's id; None in processes that do not record (rank other than 0)."""
        self._resumed = resumed
        self._last_step: dict[str, int] = {}
        self._compared: set[str] = set()
        """Names whose earlier values, of the process that this one continues, are known."""
        self._waiting: list[tuple[Any, bool]] = []
        """Values (``Metric``), and whether each belongs to a step."""
        self._outbox: list[Callable[[], object]] = []
        """What waits besides values."""
        self._leave_alone_until = 0.0
        self._finished = False
        self._accelerators = accelerators
        self._begun = self._counted = time.monotonic()
        self._hours_before = 0.0
        """Accelerator hours of the processes that this one continues."""
        self._last_stamp_ms = 0

    @classmethod
    def start(
        cls,
        context: RunContext,
        stage: str,
        fingerprint: str,
        config: Mapping[str, Any],
        inputs: Mapping[str, str],
        accelerators: int | None = None,
    ) -> Self:
        """Begin or continue the run of a stage.

        The run is the one named by ``MLFLOW_RUN_ID`` (unless that is the pipeline's own), or the one under
        ``context.parent_run_id`` that has this stage and fingerprint, or a new one.

        Args:
            context: the pipeline run.
            stage: name of the stage.
            fingerprint: of the stage.
            config: the stage's section; logged as parameters ``a.b``.
            inputs: URIs of what goes in, by name; logged as tags ``vthink.input.<name>``.
            accelerators: how many the stage keeps busy, for its accelerator hours; None: one per process of this
                training, if there are any.
        """
        if os.environ.get("RANK", "0") != "0":
            return cls(None, None)
        client = registry_client(context.tracking, context.storage)
        with _errors(f"cannot start the MLflow run of {stage}"):
            tags = {
                "vthink.run_id": context.run_id,
                "vthink.stage": stage,
                "vthink.fingerprint": fingerprint,
                **_origin_tags(f"vthink {stage}"),
                **{f"vthink.input.{name}": uri for name, uri in inputs.items()},
            }
            parent = context.parent_run_id
            if parent:
                of_parent = client.get_run(parent)
                tags["mlflow.parentRunId"] = parent
                # KFP's own MLflow plugin leaves its ids there.
                tags |= {k: v for k, v in of_parent.data.tags.items() if k.startswith("kfp.")}
            adopted = os.environ.get("MLFLOW_RUN_ID")
            if adopted and adopted != parent:
                run = _continue(client, adopted, tags)
            else:
                experiment = (
                    str(of_parent.info.experiment_id)
                    if parent
                    else ensure_experiment(client, context.tracking.experiment, context.storage.root_uri + "mlflow")
                )
                wanted = {"vthink.stage": stage, "vthink.fingerprint": fingerprint}
                wanted |= {"mlflow.parentRunId": parent} if parent else {"vthink.run_id": context.run_id}
                run = _search(client, experiment, wanted)
                if run is None:
                    run = client.create_run(experiment, tags=tags, run_name=stage)
                else:
                    run = _continue(client, run.info.run_id, tags)
            earlier = run.data.tags.get("vthink.resumed")
            begun = "vthink.fingerprint" in run.data.tags and bool(run.data.params or run.data.metrics)
            busy = _accelerators() if accelerators is None else accelerators
            tracker = cls(client, str(run.info.run_id), begun, context, busy)
            if begun and busy:
                counted = client.get_metric_history(tracker.run_id, GPU_HOURS)
                tracker._hours_before = max((metric.value for metric in counted), default=0.0)
                tracker._last_stamp_ms = max((metric.timestamp for metric in counted), default=0)
            tracker._check_artifacts(run.info.artifact_uri, config)
            tracker.log_params(config)
            versions = json.dumps(package_versions(), sort_keys=True)
            tracker.set_tags({"vthink.packages": versions})
            if begun:
                tracker.set_tags({"vthink.resumed": str(int(earlier or 0) + 1)})
        describe_pipeline(client, context)
        return tracker

    def _check_artifacts(self, artifact_uri: str, config: Mapping[str, Any]) -> None:
        """Keep the stage's settings as a file: where that is refused, a report would have nowhere to go either."""
        text = json.dumps(_finite(config), indent=2, ensure_ascii=False, default=str)
        try:
            with impatient():
                self._client.log_text(self.run_id, text, "settings.json")
        except Exception as error:
            if _s3_code(error) in _NO_BUCKET:
                raise TrackingError(
                    f"the MLflow experiment keeps its artifacts at {artifact_uri}, which cannot be written "
                    f"({_s3_code(error)}): set tracking.experiment to another name, or give the keys of that store"
                ) from error
            self.log_text("settings.json", text)  # MLflow or its store is away for a while

    # --- numbers and words ----------------------------------------------------------------------------------

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Record values. ``step`` is the training step; without one they are the stage's final values.

        A step that was already recorded under a name is dropped; a final value replaces the earlier one.
        """
        if self.run_id is None:
            return
        for key, value in metrics.items():
            self._add(key, value, step)
        if self._accelerators and time.monotonic() - self._counted >= _COUNT_S:
            self._count_hours()
        self._deliver()

    def _add(self, key: str, value: float, step: int | None) -> None:
        from mlflow.entities import Metric

        if step is not None:
            if step <= self._last_step.get(key, -1):
                return
            self._last_step[key] = step
        # MLflow shows the value with the latest time; a clock that is set back must not hide the newer one.
        self._last_stamp_ms = max(self._last_stamp_ms + 1, int(time.time() * 1000))
        metric = Metric(key, float(value), self._last_stamp_ms, 0 if step is None else step)
        self._waiting.append((metric, step is not None))

    def _count_hours(self) -> None:
        self._counted = time.monotonic()
        hours = (self._counted - self._begun) / 3600 * self._accelerators
        self._add(GPU_HOURS, self._hours_before + hours, None)

    def _deliver(self, *sends: Callable[[], object]) -> None:
        """Send what waits and then this; what MLflow does not take waits for the next time."""
        self._outbox += sends
        if time.monotonic() < self._leave_alone_until:
            return
        try:
            with impatient():
                self._send()
        except Exception as error:
            self._leave_alone_until = time.monotonic() + _AWAY_S
            values, others = len(self._waiting), len(self._outbox)
            _log.warning(
                "MLflow did not take %d values and %d other things, will try again: %s",
                values,
                others,
                _first_line(error),
            )

    def _send(self) -> None:
        if self._resumed:
            self._drop_repeated()
        while self._waiting:
            batch = self._waiting[:1000]
            self._client.log_batch(self.run_id, metrics=[metric for metric, _ in batch])
            del self._waiting[: len(batch)]
        while self._outbox:
            self._outbox[0]()
            del self._outbox[0]
        self._leave_alone_until = 0.0

    def _drop_repeated(self) -> None:
        """Leave out the values that the process which this one continues has recorded already."""
        for key in {metric.key for metric, of_step in self._waiting if of_step} - self._compared:
            history = self._client.get_metric_history(self.run_id, key)
            last = max((metric.step for metric in history), default=-1)
            self._waiting = [
                (m, of_step) for m, of_step in self._waiting if m.key != key or not of_step or m.step > last
            ]
            self._last_step[key] = max(last, self._last_step[key])
            self._compared.add(key)

    def log_params(self, params: Mapping[str, Any]) -> None:
        """Record settings; nested mappings become ``a.b``. MLflow keeps the first value of each."""
        if self.run_id is None:
            return
        flat = _flatten(params)

        def send() -> None:
            from mlflow.entities import Param

            known = self._client.get_run(self.run_id).data.params
            items = [Param(key, value) for key, value in flat.items() if key not in known]
            for start in range(0, len(items), _BATCH):
                self._client.log_batch(self.run_id, params=items[start : start + _BATCH])

        self._deliver(send)

    def set_tags(self, tags: Mapping[str, str]) -> None:
        """Set tags, replacing earlier values."""
        if (run_id := self.run_id) is not None:
            self._deliver(lambda: _set_tags(self._client, run_id, tags))

    # --- artifacts: a name that was used before is replaced -------------------------------------------------

    def log_text(self, name: str, text: str) -> None:
        """Keep a text; ``.txt`` is added to a name without a suffix."""
        if self.run_id is not None:
            path = _artifact_name(name, ".txt")
            self._deliver(lambda: self._client.log_text(self.run_id, text, path))

    def log_html(self, name: str, html: str) -> None:
        """Keep a page; ``.html`` is added to a name without a suffix."""
        self.log_text(_artifact_name(name, ".html"), html)

    def log_table(self, name: str, columns: Mapping[str, Sequence[Any]]) -> None:
        """Keep a table that MLflow shows as one; the columns must be equally long and JSON.

        Unlike MLflow's own ``log_table`` it replaces a table of the same name instead of growing it, so that
        a resumed stage does not list its rows twice.
        """
        if len({len(column) for column in columns.values()}) > 1:
            raise ValueError(f"the columns of table '{name}' differ in length")
        if self.run_id is None:
            return
        path = _artifact_name(name, ".json")
        rows = [list(row) for row in zip(*columns.values(), strict=True)]
        table = json.dumps({"columns": list(columns), "data": _finite(rows)}, ensure_ascii=False, default=str)

        def send() -> None:
            self._client.log_text(self.run_id, table, path)
            tag = "mlflow.loggedArtifacts"
            listed = json.loads(self._client.get_run(self.run_id).data.tags.get(tag, "[]"))
            entry = {"path": path, "type": "table"}
            if entry not in listed:
                self._client.set_tag(self.run_id, tag, json.dumps([*listed, entry][-_LISTED_TABLES:]))

        self._deliver(send)

    def log_image(self, name: str, image: Any, step: int | None = None) -> None:
        """Keep a PIL image or an array (H, W, 3) of uint8 as PNG; with a step ``<name>/step-000050.png``."""
        if self.run_id is not None:
            path = _artifact_name(name if step is None else f"{name}/step-{step:06d}.png", ".png")
            self._deliver(lambda: self._client.log_image(self.run_id, image, artifact_file=path))

    def log_artifact(self, path: Path | str, folder: str | None = None) -> None:
        """Keep a file under its own name, in a folder of the run's artifacts; it must stay until `finish`."""
        if self.run_id is not None:
            self._deliver(lambda: self._client.log_artifact(self.run_id, str(path), folder))

    def log_traces(self, traces: Sequence[Trace]) -> None:
        """Record questions and answers as traces of this run, to be read and searched in MLflow.

        A run that has traces already (of an attempt that was cut off) gets no more. They are for reading: where
        MLflow does not take them, that is a warning.
        """
        if self.run_id is None or not traces:
            return
        import mlflow

        client = self._client
        before = mlflow.get_tracking_uri()
        try:
            experiment = client.get_run(self.run_id).info.experiment_id
            if client.search_traces(locations=[experiment], run_id=self.run_id, max_results=1):
                return
            mlflow.set_tracking_uri(client.tracking_uri)  # traces are sent by MLflow's own threads, which ask it
            for trace in traces:
                span = client.start_trace(
                    trace.name,
                    span_type="LLM",
                    inputs=_finite(dict(trace.inputs)),
                    tags=dict(trace.tags),
                    experiment_id=experiment,
                    run_id=self.run_id,
                )
                client.end_trace(span.trace_id, outputs=_finite(dict(trace.outputs)))
            mlflow.flush_trace_async_logging()
        except Exception as error:
            _log.warning("MLflow did not take the traces: %s", _first_line(error))
        finally:
            mlflow.set_tracking_uri(before)

    # --- the end --------------------------------------------------------------------------------------------

    def finish(self, status: Status = "FINISHED") -> None:
        """Send what still waits and close the run.

        A finished stage waits for MLflow, ``tracking.outage_s`` at most; one that failed or is being stopped does not.

        Raises:
            TrackingError: MLflow does not take it.
        """
        if self.run_id is None or self._finished:
            return
        if self._accelerators:
            self._count_hours()
        outage_s = self._context.tracking.outage_s if self._context is not None and status == "FINISHED" else 0.0
        until = time.monotonic() + outage_s
        while True:
            try:
                with impatient():
                    self._send()
                    self._client.set_terminated(self.run_id, status)
                break
            except Exception as error:
                left_s = until - time.monotonic()
                hopeless = getattr(error, "error_code", None) in _HOPELESS or _s3_code(error) == "NoSuchBucket"
                if left_s <= 0 or hopeless:
                    raise TrackingError(f"cannot close the MLflow run {self.run_id}: {_first_line(error)}") from error
                _log.warning("MLflow does not answer; trying for another %.0f s: %s", left_s, _first_line(error))
                time.sleep(min(_AWAY_S, max(0.1, left_s)))
        self._finished = True
        if self._context is not None:
            describe_pipeline(self._client, self._context)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: object) -> None:
        if kind is None:
            self.finish()
            return
        stopped = not issubclass(kind, Exception)
        try:
            self.finish("KILLED" if stopped else "FAILED")
        except TrackingError as failure:
            # The error that brought us here is the one to see.
            _log.warning("%s", failure)


# --- the pipeline's description -----------------------------------------------------------------------------


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
        _set_tags(client, context.parent_run_id, {_NOTE: f"{by_hand}{_NOTE_HEADING}\n{written}"})
    except Exception as error:
        _log.warning("cannot describe the MLflow run %s: %s", context.parent_run_id, _first_line(error))


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
    found: list[str] = []
    for entry in client.list_artifacts(run_id, folder):
        found += _pages(client, run_id, entry.path) if entry.is_dir else [entry.path]
    return sorted(path for path in found if path.endswith(".html"))


def _stage_runs(client: Any, context: RunContext, parent: Any) -> dict[str, Any]:
    """The MLflow run of each stage that the pipeline's run has gone through, by the stage's name."""
    condition = f"tags.`mlflow.parentRunId` = '{parent.info.run_id}'"
    order = ["attributes.start_time DESC"]
    children = client.search_runs([parent.info.experiment_id], filter_string=condition, order_by=order)
    found: dict[str, Any] = {}
    waiting: list[str] = []
    for run in children:
        found.setdefault(run.data.tags.get("vthink.stage", run.info.run_name), run)
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
        if manifest.mlflow_run_id and manifest.stage not in found:
            found[manifest.stage] = client.get_run(manifest.mlflow_run_id)
        waiting += _manifests(manifest.inputs)
    return found


def _manifests(inputs: Mapping[str, str]) -> list[str]:
    """The manifests among a stage's inputs. The champion, with which the gate compares, is of another run."""
    return [uri for name, uri in inputs.items() if name != "champion" and uri.endswith(f"/{MANIFEST}")]


def _finite(value: Any) -> Any:
    """JSON has no NaN and no infinity: they become null."""
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    if isinstance(value, Mapping):
        return {key: _finite(item) for key, item in value.items()}
    return value


# --- the user interface -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Ui:
    """A running MLflow server."""

    url: str
    process: Process

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.stop()


def start_ui(
    tracking: TrackingConfig, storage: StorageConfig, artifact_root: str, log: Path, port: int | None = None
) -> Ui:
    """Serve MLflow's pages over the database and the store, on 127.0.0.1, and wait until they answer.

    Args:
        tracking: whose ``uri`` is the database (``sqlite:///…``).
        storage: where the artifacts are; its keys come from this process's environment.
        artifact_root: ``s3://…`` folder of the artifacts.
        log: the server's log file.
        port: default: a free one.

    Raises:
        LaunchError: the server does not start; says what it printed last.
    """
    uri = tracking_uri(tracking)
    if uri.startswith(("http://", "https://")):
        raise LaunchError(f"MLflow already runs at {_shown(uri)}: open it there")
    port = port or free_port()
    url = f"http://127.0.0.1:{port}"
    command = [
        sys.executable, "-m", "mlflow", "server", "--backend-store-uri", uri,
        "--artifacts-destination", artifact_root, "--serve-artifacts",
        "--host", "127.0.0.1", "--port", str(port), "--workers", "1",
    ]  # fmt: skip
    env = {**os.environ, **mlflow_environment(storage)}
    # It would make the server a client of another server.
    env.pop("MLFLOW_TRACKING_URI", None)
    process = spawn(command, env=env, log=log)
    try:
        wait_until_ready(process, "MLflow", lambda: _answers(f"{url}/health"), timeout_s=240)
    except LaunchError:
        process.stop(1)
        raise
    return Ui(url, process)


def _answers(url: str) -> bool:
    # No proxy: the server is on this machine.
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(url, timeout=2) as response:
            return bool(response.status == 200)
    except (OSError, urllib.error.URLError):
        return False


def experiment_url(base: str, experiment_id: str) -> str:
    """Link to the list of an experiment's runs (without ``/runs`` MLflow opens an overview)."""
    return f"{base.rstrip('/')}/#/experiments/{experiment_id}/runs"


def run_url(base: str, experiment_id: str, run_id: str) -> str:
    """Link to a run."""
    return f"{base.rstrip('/')}/#/experiments/{experiment_id}/runs/{run_id}"


def curves_url(base: str, experiment_ids: Sequence[str], run_ids: Sequence[str], metric: str) -> str:
    """Link to one chart with the curves of a metric in several runs; from there MLflow leads on to their comparison."""
    from urllib.parse import quote

    settings: dict[str, Any] = {
        "runs": list(run_ids), "metric": metric, "experiments": sorted(set(experiment_ids)),
        "plot_metric_keys": [metric], "plot_layout": {}, "line_smoothness": 1, "show_point": True,
        "deselected_curves": [], "last_linear_y_axis_range": [],
    }  # fmt: skip
    query = "&".join(f"{key}={quote(json.dumps(value), safe='')}" for key, value in settings.items())
    # MLflow's page fails where one of them is missing.
    return f"{base.rstrip('/')}/#/metric?{query}&x_axis=step&y_axis_scale=linear"


def model_version_url(base: str, name: str, version: str | int) -> str:
    """Link to a version of a registered model."""
    from urllib.parse import quote

    return f"{base.rstrip('/')}/#/models/{quote(name, safe='')}/versions/{version}"
