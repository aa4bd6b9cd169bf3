"""The training job that the tests of the cluster launch."""

from __future__ import annotations

from typing import Any

from vthink.components.common.context import RunContext
from vthink.components.common.launch.config import LaunchConfig
from vthink.components.common.launch.job import TrainingJob
from vthink.components.common.launch.kubernetes import trainjob
from vthink.components.common.storage.names import join
from vthink.components.common.storage.s3 import Storage

Object = dict[str, Any]
KEY = "f" * 16


def context_of(storage: Storage, **launch: Any) -> RunContext:
    launch.setdefault("pool", {"sft": "gpu", "grpo": "gpu-spot"})
    settings = LaunchConfig(backend="trainjob", nodes=launch.pop("nodes", 2), processes=8, **launch)
    return RunContext(run_id="video_r1_7b-20261121-0800", storage=storage.config, launch=settings)


def job_of(context: RunContext, stage: Any = "sft", **changes: Any) -> TrainingJob:
    """A stage's job as its launcher makes it."""
    fields = {
        "stage": stage,
        "worker": "vthink.components.sft",
        "fingerprint": KEY,
        "prefix": join(context.storage.root_uri, f"sft/{KEY}/"),
        "run": context,
        "config": {"learning_rate": 1e-6},
        "model": {},
        "data": "s3://b/data/manifest.json",
        "processes": context.launch.processes * context.launch.nodes,
    }
    return TrainingJob(**{**fields, **changes})


def built(context: RunContext, stage: Any = "sft", attempt: int = 1) -> Object:
    return trainjob.train_job(job_of(context, stage), attempt)
