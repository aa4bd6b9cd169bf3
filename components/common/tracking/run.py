"""The MLflow run of one stage."""

from __future__ import annotations

import json
import math
import os
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, Self

from ..context import RunContext
from ..provenance import package_versions
from .client import (
    _AWAY_S,
    _BATCH,
    _HOPELESS,
    _NO_BUCKET,
    GPU_HOURS,
    Status,
    TrackingError,
    _continue,
    _errors,
    _first_line,
    _flatten,
    _log,
    _origin_tags,
    _s3_code,
    _search,
    _set_tags,
    ensure_experiment,
    impatient,
    registry_client,
)
from .description import describe_pipeline

_LISTED_TABLES = 100
"""Tables that a run's tag lists: MLflow cuts a tag of more than 8,000 characters, and half a list is no JSON."""


_COUNT_S = 60.0
"""How often the accelerator time is recorded: a killed process loses at most so much of it."""


def _accelerators() -> int:
    """Accelerators of this training: one per process. Only a process that has loaded torch can have any."""
    torch = sys.modules.get("torch")
    return int(os.environ.get("WORLD_SIZE", "1")) if torch is not None and torch.cuda.is_available() else 0


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


def _finite(value: Any) -> Any:
    """JSON has no NaN and no infinity: they become null."""
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    if isinstance(value, Mapping):
        return {key: _finite(item) for key, item in value.items()}
    return value
