"""The second process of a run: kfp.local."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from ...components.common.context import RunContext
from ...components.common.launch.lifetime import end_with_owner
from ..config import Config, to_yaml
from .watch import _ANSI, PARENT


def run_dag(job_file: Path) -> None:
    """The second process: the pipeline's MLflow run, and the DAG in it."""
    end_with_owner()
    from kfp import local

    from ...components.common.tracking import pipeline
    from ..pipeline import arguments, build

    job = json.loads(job_file.read_text("utf-8"))
    config = Config.load(job["config"], "job")
    context = RunContext.load(job["context"], "job")
    root, name = context.storage.root_uri + "mlflow", context.run_id
    parent = pipeline.start_parent(context.tracking, name, to_yaml(config), name, root, context.storage)
    job_file.with_name(PARENT).write_text(json.dumps(parent), "utf-8")
    context = context.model_copy(update={"parent_run_id": parent})
    local.init(local.SubprocessRunner(use_venv=False), pipeline_root=str(job_file.parent), raise_on_error=True)
    try:
        build()(**arguments(config, context))
    except RuntimeError as error:
        pipeline.finish_parent(context.tracking, parent, "FAILED")
        said = _ANSI.sub("", str(error))
        if "finished with status FAILURE" not in said:
            raise
        # A task failed and has said why.
        sys.exit(said)
    pipeline.finish_parent(context.tracking, parent)


if __name__ == "__main__":
    run_dag(Path(sys.argv[1]))
