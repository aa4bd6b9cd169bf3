"""The second process of a run on this machine: the pipeline's MLflow run, and in it the DAG by ``kfp.local``."""

from __future__ import annotations

import sys
from pathlib import Path

from pydantic import BaseModel

from ...components.common.compat.kfp import TaskFailedError, run_here
from ...components.common.context import RunContext
from ...components.common.launch.process import end_with_owner
from ..config import Config, to_yaml


class LocalRunJob(BaseModel):
    """``job.json``: what the first process tells the second one."""

    config: Config
    context: RunContext


def parent_file(job_file: Path) -> Path:
    """File by which the second process tells the first one the MLflow run of the pipeline."""
    return job_file.with_name("parent_run_id")


def run_dag(job_file: Path) -> None:
    """Run the DAG of a job; its folder becomes the ``pipeline_root``."""
    from ...components.common.tracking import pipeline
    from ..pipeline import arguments, build

    end_with_owner()
    job = LocalRunJob.model_validate_json(job_file.read_text("utf-8"))
    context, run_id = job.context, job.context.run_id
    root = context.storage.root_uri + "mlflow"
    parent = pipeline.start_parent(context.tracking, run_id, to_yaml(job.config), run_id, root, context.storage)
    parent_file(job_file).write_text(parent, "utf-8")
    context = context.model_copy(update={"parent_run_id": parent})
    try:
        run_here(build(), arguments(job.config, context), job_file.parent)
    except RuntimeError as error:
        pipeline.finish_parent(context.tracking, parent, "FAILED")
        if isinstance(error, TaskFailedError):
            sys.exit(str(error))
        raise
    pipeline.finish_parent(context.tracking, parent)


if __name__ == "__main__":
    run_dag(Path(sys.argv[1]))
