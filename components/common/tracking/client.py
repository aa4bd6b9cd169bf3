"""MLflow's client, and what its errors mean."""

import contextlib
import getpass
import json
import logging
import math
import os
import re
import sys
from collections.abc import Iterator, Mapping
from typing import Any, Literal

from .. import errors
from ..context import RunContext
from ..provenance import git_commit
from ..storage.config import StorageConfig
from .config import TrackingConfig

Status = Literal["FINISHED", "FAILED", "KILLED"]

_MAX_VALUE = 6000  # MLflow's limit for the text of a parameter
GPU_HOURS = "resources/gpu_hours"
"""Metric of a stage's run, and summed up of the pipeline's: hours times the accelerators of the training."""


class TrackingError(errors.UserError):
    """MLflow cannot be used."""


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
        env |= {"MLFLOW_S3_ENDPOINT_URL": storage.endpoint_url} if storage.endpoint_url else {}
        env |= {"AWS_CA_BUNDLE": storage.ca_bundle} if storage.ca_bundle else {}
    return env


def tracking_uri(tracking: TrackingConfig) -> str:
    """Where runs are recorded; a `TrackingError` where neither the configuration nor the environment says."""
    uri = tracking.uri or os.environ.get("MLFLOW_TRACKING_URI")
    if not uri:
        raise TrackingError("no MLflow tracking URI: set tracking.uri or MLFLOW_TRACKING_URI")
    return uri


def registry_client(tracking: TrackingConfig, storage: StorageConfig | None = None) -> Any:
    """An ``MlflowClient`` for runs, artifacts and the model registry; a `TrackingError` where it cannot be opened."""
    os.environ.update(mlflow_environment(storage))
    for name in ("mlflow", "alembic"):  # schema migrations are announced line by line otherwise
        logging.getLogger(name).setLevel(logging.WARNING)
    from mlflow.exceptions import MlflowException
    from mlflow.tracking import MlflowClient

    uri = tracking_uri(tracking)
    try:
        client = MlflowClient(tracking_uri=uri, registry_uri=uri)
        logging.getLogger("mlflow").setLevel(logging.WARNING)
        return client
    except (MlflowException, OSError) as error:
        raise TrackingError(f"cannot use MLflow at {without_password(uri)}: {first_line(error)}") from error


def without_password(uri: str) -> str:
    """A URI, or a text with URIs, without the names and passwords in them."""
    return re.sub(r"(?<=://)[^/\s]*@", "", uri)


def first_line(error: BaseException) -> str:
    """The first line of an error, without a password in a URI that it quotes."""
    return without_password(errors.first_line(error, sys.maxsize))


def s3_error_code(error: BaseException | None) -> str | None:
    """The code with which an S3 store refused a request, if that is behind this error."""
    while error is not None:
        response = getattr(error, "response", None)
        if isinstance(response, Mapping) and "Error" in response:
            return str(response["Error"].get("Code"))
        error = error.__cause__ or error.__context__
    return None


@contextlib.contextmanager
def mlflow_errors(what: str) -> Iterator[None]:
    """What MLflow raises within becomes a `TrackingError` that begins with ``what``."""
    from mlflow.exceptions import MlflowException

    try:
        yield
    except MlflowException as error:
        raise TrackingError(f"{what}: {first_line(error)}") from error


@contextlib.contextmanager
def short_timeouts() -> Iterator[None]:
    """MLflow's client tries for minutes by default, which is right where a stage begins but not within it."""
    wanted = {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1", "MLFLOW_HTTP_REQUEST_TIMEOUT": "10"}
    before = {name: os.environ.get(name) for name in wanted}
    os.environ.update(wanted)
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name) if value is None else os.environ.update({name: value})


def ensure_experiment(client: Any, name: str, artifact_root: str | None = None) -> str:
    """The id of the experiment; created, with its artifacts below ``artifact_root``, when there is none."""
    from mlflow.exceptions import MlflowException

    experiment = client.get_experiment_by_name(name)
    if experiment is None:
        try:
            return str(client.create_experiment(name, artifact_location=artifact_root))
        except MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":
                raise
            experiment = client.get_experiment_by_name(name)  # another process created it between the two calls
    if experiment.lifecycle_stage != "active":
        client.restore_experiment(experiment.experiment_id)
    return str(experiment.experiment_id)


def our_experiment(client: Any, context: RunContext) -> str:
    """The experiment of the configuration, with its artifacts in our store."""
    return ensure_experiment(client, context.tracking.experiment, context.storage.root_uri + "mlflow")


def find_run(client: Any, experiment: str, tags: Mapping[str, str]) -> Any:
    """The newest run with these tags, or None."""
    condition = " and ".join(f"tags.`{key}` = '{value}'" for key, value in tags.items())
    order = ["attributes.start_time DESC"]
    return next(iter(client.search_runs([experiment], condition, order_by=order, max_results=1)), None)


def reopen_run(client: Any, run_id: str, tags: Mapping[str, str]) -> Any:
    """Reopen a run; returns it as it was."""
    run = client.get_run(run_id)
    if run.info.status != "RUNNING":
        client.update_run(run_id, status="RUNNING")
    set_tags(client, run_id, tags)
    return run


def set_tags(client: Any, run_id: str, tags: Mapping[str, str]) -> None:
    """Set tags of a run (100 at most), replacing earlier values."""
    from mlflow.entities import RunTag

    client.log_batch(run_id, tags=[RunTag(key, str(value)[:_MAX_VALUE]) for key, value in tags.items()])


def origin_tags(source: str) -> dict[str, str]:
    """Where a run comes from: code, person, KFP run."""
    tags = {"mlflow.source.name": source, "mlflow.source.type": "JOB"}
    if commit := git_commit():
        tags["vthink.git_commit"] = tags["mlflow.source.git.commit"] = commit
    with contextlib.suppress(Exception):  # a container's user often has no name
        tags["mlflow.user"] = getpass.getuser()
    for name in ("pipeline_run_id", "pipeline_run_url"):
        if value := os.environ.get(f"KFP_{name.upper()}"):
            tags[f"kfp.{name}"] = value
    return tags


def flatten(config: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """Nested mappings as one level of ``a.b`` keys, with values as text."""
    flat: dict[str, str] = {}
    for key, value in config.items():
        if isinstance(value, Mapping):
            flat.update(flatten(value, f"{prefix}{key}."))
        else:
            text = value if isinstance(value, str) else json.dumps(value, default=str, sort_keys=True)
            flat[f"{prefix}{key}"] = text[:_MAX_VALUE]
    return flat


def finite(value: Any) -> Any:
    """JSON has no NaN and no infinity: they become null."""
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, list | tuple):
        return [finite(item) for item in value]
    if isinstance(value, Mapping):
        return {key: finite(item) for key, item in value.items()}
    return value
