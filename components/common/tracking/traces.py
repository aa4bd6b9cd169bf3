"""Questions to a model and what it said, as MLflow traces."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from .client import finite, first_line

_log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True, slots=True)
class Trace:
    """One question to a model and what it said."""

    name: str
    inputs: Mapping[str, Any]
    outputs: Mapping[str, Any]
    tags: Mapping[str, str]


def log_traces(client: Any, run_id: str, traces: Sequence[Trace]) -> None:
    """Record traces of a run, to be read and searched in MLflow.

    A run that has traces already (of an attempt that was cut off) gets no more. They are for reading: where MLflow does
    not take them, that is a warning.
    """
    import mlflow

    before = mlflow.get_tracking_uri()
    try:
        experiment = client.get_run(run_id).info.experiment_id
        if client.search_traces(locations=[experiment], run_id=run_id, max_results=1):
            return
        mlflow.set_tracking_uri(client.tracking_uri)  # traces are sent by MLflow's own threads, which ask it
        for trace in traces:
            span = client.start_trace(
                trace.name,
                span_type="LLM",
                inputs=finite(dict(trace.inputs)),
                tags=dict(trace.tags),
                experiment_id=experiment,
                run_id=run_id,
            )
            client.end_trace(span.trace_id, outputs=finite(dict(trace.outputs)))
        mlflow.flush_trace_async_logging()
    except Exception as error:
        _log.warning("MLflow did not take the traces: %s", first_line(error))
    finally:
        mlflow.set_tracking_uri(before)
