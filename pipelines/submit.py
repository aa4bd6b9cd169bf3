"""Start a run of the pipeline on Kubeflow Pipelines."""

from __future__ import annotations

import tempfile
import warnings
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from ..components.common.config import RunContext
from .config import Config
from .pipeline import arguments, compile_to


class SubmitError(RuntimeError):
    """Kubeflow Pipelines cannot be reached or refused the run, in one line."""


@dataclass(frozen=True)
class SubmittedRun:
    """A run that Kubeflow Pipelines has accepted."""

    run_id: str
    """KFP's id."""
    url: str
    """Page of the run."""


def submit(
    config: Config,
    host: str,
    namespace: str,
    token: str | None = None,
    experiment: str | None = None,
    evaluation_gpus: int = 1,
) -> SubmittedRun:
    """Compile the pipeline and start a run of it.

    Args:
        config: the whole configuration; storage and tracking must be reachable from the cluster.
        host: address of Kubeflow Pipelines.
        namespace: namespace of the run.
        token: bearer token; None: the service account's of the pod this runs in, if any.
        experiment: KFP experiment; None: the configuration's MLflow experiment.
        evaluation_gpus: GPUs of the evaluation task.

    Raises:
        SubmitError: KFP cannot be reached, or refused; says what it answered.
    """
    import kfp
    import kfp_server_api
    import urllib3

    warnings.filterwarnings("ignore", "This client only works", FutureWarning)
    name = f"{config.name}-{datetime.now(UTC):%Y%m%d-%H%M%S}"
    context = RunContext(run_id=name, storage=config.storage, tracking=config.tracking, launch=config.launch)
    try:
        client = kfp.Client(host=host, namespace=namespace, existing_token=token)
        with tempfile.TemporaryDirectory() as folder:
            package = compile_to(Path(folder) / "vthink.yaml", evaluation_gpus)
            run = client.create_run_from_pipeline_package(
                str(package),
                arguments=arguments(config, context),
                run_name=name,
                experiment_name=experiment or config.tracking.experiment,
                namespace=namespace,
                enable_caching=False,
            )
    except kfp_server_api.ApiException as error:
        raise SubmitError(f"{host} answered {error.status} {error.reason}: {_body(error)}") from error
    except (urllib3.exceptions.HTTPError, OSError) as error:
        reason = getattr(error, "reason", None) or error
        said = str(reason).rpartition(": ")[2][:200]
        raise SubmitError(f"cannot reach Kubeflow Pipelines at {host} ({said}); is the address right?") from error
    return SubmittedRun(run.run_id, f"{host.rstrip('/')}/#/runs/details/{run.run_id}")


def _body(error: object) -> str:
    return " ".join(str(getattr(error, "body", "") or "").split())[:200]
