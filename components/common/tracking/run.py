"""The MLflow run of one stage."""

import json
import logging
import os
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any, Self

from ..context import RunContext
from ..provenance import package_versions
from ..retry import retry
from . import client as mlflow_client
from .client import GPU_HOURS, Status, TrackingError, finite, first_line, s3_error_code, short_timeouts
from .pipeline import describe_pipeline

_LISTED_TABLES = 100
"""Tables that a run's tag lists: MLflow cuts a tag of more than 8,000 characters, and half a list is no JSON."""
_MAX_PARAMS = 100  # MLflow's limit for parameters in one request
_COUNT_S = 60.0  # how often the accelerator time is recorded: a killed process loses at most so much of it
_AWAY_S = 15.0  # how long MLflow is left alone after it did not answer, so that a training is not held up at each step
_MAX_METRICS = 1000  # MLflow's limit for values in one request
_HOPELESS = frozenset({"INVALID_PARAMETER_VALUE", "BAD_REQUEST", "RESOURCE_DOES_NOT_EXIST", "PERMISSION_DENIED"})
"""What MLflow answers to a request that it will never take; there is no use in waiting."""
_NO_BUCKET = frozenset({"NoSuchBucket", "AccessDenied", "InvalidAccessKeyId", "SignatureDoesNotMatch"})
"""What a store answers where an experiment keeps its artifacts in one that is not ours."""

_log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True, slots=True)
class Trace:
    """One question to a model and what it said."""

    name: str
    inputs: Mapping[str, object]
    outputs: Mapping[str, object]
    tags: Mapping[str, str]


class Tracker:
    """The MLflow run of one stage. As a context manager it closes the run with the right status.

    A stage that resumes from a checkpoint repeats some steps. MLflow cannot take a value back, so a value whose step is
    not beyond the last one recorded under its name is dropped: each step appears once, and because training is resumed
    exactly, with the value that the repetition would give again. The tag ``vthink.resumed`` counts the resumptions.

    A tracking server that fails for a while does not end a training: values and artifacts wait in memory and go out, in
    their order, with the next ones. Only `finish` insists, as long as ``tracking.outage_s`` says."""

    def __init__(
        self,
        client: Any,
        run_id: str | None,
        resumed: bool = False,
        context: RunContext | None = None,
        accelerators: int = 0,
    ):
        """``run_id`` is None in processes that do not record (rank other than 0)."""
        self._client, self.run_id, self._context = client, run_id, context
        self._outbox = _Outbox(client, run_id or "", resumed)
        self._finished = False
        self._accelerators = accelerators
        self._begun = self._counted = time.monotonic()
        self._hours_before = 0.0  # accelerator hours of the processes that this one continues

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
        ``context.parent_run_id`` that has this stage and fingerprint, or a new one. The stage's section, ``config``,
        becomes parameters ``a.b``; the URIs of what goes in become tags ``vthink.input.<name>``. ``accelerators`` are
        those that the stage keeps busy, for its accelerator hours; None: one per process of this training, if there are
        any."""
        if os.environ.get("RANK", "0") != "0":
            return cls(None, None)
        client = mlflow_client.registry_client(context.tracking, context.storage)
        with mlflow_client.mlflow_errors(f"cannot start the MLflow run of {stage}"):
            run = _find_or_create(client, context, stage, fingerprint, inputs)
            begun = "vthink.fingerprint" in run.data.tags and bool(run.data.params or run.data.metrics)
            busy = _accelerators() if accelerators is None else accelerators
            tracker = cls(client, str(run.info.run_id), begun, context, busy)
            if begun and busy:
                counted = client.get_metric_history(tracker.run_id, GPU_HOURS)
                tracker._hours_before = max((metric.value for metric in counted), default=0.0)
                tracker._outbox.last_stamp_ms = max((metric.timestamp for metric in counted), default=0)
            tracker._check_artifacts(run.info.artifact_uri, config)
            tracker.log_params(config)
            tags = {"vthink.packages": json.dumps(package_versions(), sort_keys=True)}
            if begun:
                tags["vthink.resumed"] = str(int(run.data.tags.get("vthink.resumed", 0)) + 1)
            tracker.set_tags(tags)
        describe_pipeline(client, context)
        return tracker

    def _check_artifacts(self, artifact_uri: str, config: Mapping[str, Any]) -> None:
        """Keep the stage's settings as a file: where that is refused, a report would have nowhere to go either."""
        text = json.dumps(finite(config), indent=2, ensure_ascii=False, default=str)
        try:
            with short_timeouts():
                self._client.log_text(self.run_id, text, "settings.json")
        except Exception as error:
            if (code := s3_error_code(error)) in _NO_BUCKET:
                raise TrackingError(
                    f"the MLflow experiment keeps its artifacts at {artifact_uri}, which cannot be written ({code}): "
                    "set tracking.experiment to another name, or give the keys of that store"
                ) from error
            self.log_text("settings.json", text)  # MLflow or its store is away for a while

    def _send(self, request: Callable[[], object]) -> None:
        if self.run_id is not None:
            self._outbox.deliver(request)

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Record values. ``step`` is the training step; without one they are the stage's final values. A step that was
        already recorded under a name is dropped; a final value replaces the earlier one."""
        if self.run_id is None:
            return
        for key, value in metrics.items():
            self._outbox.add_metric(key, value, step)
        if self._accelerators and time.monotonic() - self._counted >= _COUNT_S:
            self._count_hours()
        self._outbox.deliver()

    def _count_hours(self) -> None:
        self._counted = time.monotonic()
        hours = (self._counted - self._begun) / 3600 * self._accelerators
        self._outbox.add_metric(GPU_HOURS, self._hours_before + hours, None)

    def log_params(self, params: Mapping[str, Any]) -> None:
        """Record settings; nested mappings become ``a.b``. MLflow keeps the first value of each."""
        flat = mlflow_client.flatten(params)

        def send() -> None:
            from mlflow.entities import Param

            known = self._client.get_run(self.run_id).data.params
            items = [Param(key, value) for key, value in flat.items() if key not in known]
            for start in range(0, len(items), _MAX_PARAMS):
                self._client.log_batch(self.run_id, params=items[start : start + _MAX_PARAMS])

        self._send(send)

    def set_tags(self, tags: Mapping[str, str]) -> None:
        """Set tags, replacing earlier values."""
        self._send(lambda: mlflow_client.set_tags(self._client, self.run_id or "", tags))

    def log_text(self, name: str, text: str, suffix: str = ".txt") -> None:
        """Keep a text; ``suffix`` is added to a name without one."""
        path = PurePosixPath(name)
        if path.is_absolute() or ".." in path.parts:
            raise TrackingError(f"'{name}' is not a name below the run's artifacts")
        self._send(lambda: self._client.log_text(self.run_id, text, name if path.suffix else name + suffix))

    def log_html(self, name: str, html: str) -> None:
        """Keep a page; ``.html`` is added to a name without a suffix."""
        self.log_text(name, html, ".html")

    def log_table(self, name: str, columns: Mapping[str, Sequence[Any]]) -> None:
        """Keep a table that MLflow shows as one; the columns must be equally long and JSON. It replaces a table of the
        same name, unlike MLflow's own ``log_table``: a resumed stage lists its rows once."""
        if len({len(column) for column in columns.values()}) > 1:
            raise ValueError(f"the columns of table '{name}' differ in length")
        rows = [list(row) for row in zip(*columns.values(), strict=True)]
        table = json.dumps({"columns": list(columns), "data": finite(rows)}, ensure_ascii=False, default=str)
        path = name if PurePosixPath(name).suffix else f"{name}.json"
        self.log_text(path, table)

        def list_it() -> None:
            tag, entry = "mlflow.loggedArtifacts", {"path": path, "type": "table"}
            listed = json.loads(self._client.get_run(self.run_id).data.tags.get(tag, "[]"))
            if entry not in listed:
                self._client.set_tag(self.run_id, tag, json.dumps([*listed, entry][-_LISTED_TABLES:]))

        self._send(list_it)

    def log_traces(self, traces: Sequence[Trace]) -> None:
        """Record questions and answers as traces of this run; a warning where MLflow does not take them. A run that has
        traces already (of an attempt that was cut off) gets no more."""
        if self.run_id is None or not traces:
            return
        import mlflow

        before = mlflow.get_tracking_uri()
        try:
            run = {"experiment_id": self._client.get_run(self.run_id).info.experiment_id, "run_id": self.run_id}
            if self._client.search_traces(locations=[run["experiment_id"]], run_id=self.run_id, max_results=1):
                return
            mlflow.set_tracking_uri(self._client.tracking_uri)  # MLflow's own threads, which send traces, ask it
            for trace in traces:
                said = {"inputs": finite(dict(trace.inputs)), "tags": dict(trace.tags)}
                span = self._client.start_trace(trace.name, span_type="LLM", **said, **run)
                self._client.end_trace(span.trace_id, outputs=finite(dict(trace.outputs)))
            mlflow.flush_trace_async_logging()
        except Exception as error:
            _log.warning("MLflow did not take the traces: %s", first_line(error))
        finally:
            mlflow.set_tracking_uri(before)

    def finish(self, status: Status = "FINISHED") -> None:
        """Send what still waits and close the run; a `TrackingError` where MLflow does not take it. A finished stage
        waits for MLflow, ``tracking.outage_s`` at most; one that failed or is being stopped does not."""
        if self.run_id is None or self._finished:
            return
        if self._accelerators:
            self._count_hours()
        outage_s = self._context.tracking.outage_s if self._context is not None and status == "FINISHED" else 0.0

        def close() -> None:
            self._outbox.flush()
            with short_timeouts():
                self._client.set_terminated(self.run_id, status)

        def warn(error: Exception, failures: int, left_s: float) -> None:
            _log.warning("MLflow does not answer; trying for another %.0f s: %s", left_s, first_line(error))

        try:
            retry(close, transient=_may_pass, limit_s=outage_s, on_retry=warn)
        except Exception as error:
            raise TrackingError(f"cannot close the MLflow run {self.run_id}: {first_line(error)}") from error
        self._finished = True
        if self._context is not None:
            describe_pipeline(self._client, self._context)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: object) -> None:
        if kind is None:
            self.finish()
            return
        try:
            self.finish("FAILED" if issubclass(kind, Exception) else "KILLED")
        except TrackingError as failure:  # the error that brought us here is the one to see
            _log.warning("%s", failure)


class _Outbox:
    """Values and other requests of one run, sent in their order; what MLflow does not take waits for the next time.
    MLflow cannot take a value back, so one whose step is not beyond the last one recorded under its name, by this
    process or the one that it continues, is dropped."""

    def __init__(self, client: Any, run_id: str, resumed: bool) -> None:
        self._client, self._run_id, self._resumed = client, run_id, resumed
        self._last_step: dict[str, int] = {}
        self._compared: set[str] = set()  # names whose values of the process that this one continues are known
        self._metrics: list[tuple[Any, bool]] = []  # values (`Metric`), and whether each belongs to a step
        self._requests: list[Callable[[], object]] = []
        self._leave_alone_until = 0.0
        self.last_stamp_ms = 0  # time of the newest value

    def add_metric(self, key: str, value: float, step: int | None) -> None:
        """A value to send with the next delivery; without a step it is a final one, which replaces the earlier."""
        from mlflow.entities import Metric

        if step is not None:
            if step <= self._last_step.get(key, -1):
                return
            self._last_step[key] = step
        # MLflow shows the value with the latest time; a clock that is set back must not hide the newer one.
        self.last_stamp_ms = max(self.last_stamp_ms + 1, int(time.time() * 1000))
        metric = Metric(key, float(value), self.last_stamp_ms, 0 if step is None else step)
        self._metrics.append((metric, step is not None))

    def deliver(self, *requests: Callable[[], object]) -> None:
        """Send what waits, and then these; a failure is a warning."""
        self._requests += requests
        if time.monotonic() < self._leave_alone_until:
            return
        try:
            self.flush()
        except Exception as error:
            self._leave_alone_until = time.monotonic() + _AWAY_S
            left = f"{len(self._metrics)} values and {len(self._requests)} other things"
            _log.warning("MLflow did not take %s, will try again: %s", left, first_line(error))

    def flush(self) -> None:
        """Send everything that waits; raises what MLflow raises."""
        with short_timeouts():
            if self._resumed:
                self._drop_repeated()
            while self._metrics:
                batch = self._metrics[:_MAX_METRICS]
                self._client.log_batch(self._run_id, metrics=[metric for metric, _ in batch])
                del self._metrics[: len(batch)]
            while self._requests:
                self._requests[0]()
                del self._requests[0]
        self._leave_alone_until = 0.0

    def _drop_repeated(self) -> None:
        """Leave out the values that the process which this one continues has recorded already."""
        for key in {metric.key for metric, of_step in self._metrics if of_step} - self._compared:
            history = self._client.get_metric_history(self._run_id, key)
            last = max((metric.step for metric in history), default=-1)
            self._metrics = [(m, s) for m, s in self._metrics if m.key != key or not s or m.step > last]
            self._last_step[key] = max(last, self._last_step[key])
            self._compared.add(key)


def _accelerators() -> int:
    """Accelerators of this training: one per process. Only a process that has loaded torch can have any."""
    torch = sys.modules.get("torch")
    return int(os.environ.get("WORLD_SIZE", "1")) if torch is not None and torch.cuda.is_available() else 0


def _find_or_create(client: Any, context: RunContext, stage: str, fingerprint: str, inputs: Mapping[str, str]) -> Any:
    """The stage's run, as it was before it was reopened (see `Tracker.start`)."""
    wanted = {"vthink.stage": stage, "vthink.fingerprint": fingerprint}
    tags = {"vthink.run_id": context.run_id, **wanted, **mlflow_client.origin_tags(f"vthink {stage}")}
    tags |= {f"vthink.input.{name}": uri for name, uri in inputs.items()}
    parent, adopted = context.parent_run_id, os.environ.get("MLFLOW_RUN_ID")
    if parent:
        of_parent = client.get_run(parent)
        experiment = str(of_parent.info.experiment_id)
        tags["mlflow.parentRunId"] = wanted["mlflow.parentRunId"] = parent
        # KFP's own MLflow plugin leaves its ids there.
        tags |= {k: v for k, v in of_parent.data.tags.items() if k.startswith("kfp.")}
    if adopted and adopted != parent:
        return mlflow_client.reopen_run(client, adopted, tags)
    if not parent:
        experiment = mlflow_client.our_experiment(client, context)
        wanted["vthink.run_id"] = context.run_id
    run = mlflow_client.find_run(client, experiment, wanted)
    if run is None:
        return client.create_run(experiment, tags=tags, run_name=stage)
    return mlflow_client.reopen_run(client, run.info.run_id, tags)


def _may_pass(error: Exception) -> bool:
    return getattr(error, "error_code", None) not in _HOPELESS and s3_error_code(error) != "NoSuchBucket"
