"""The job file: everything that a training process is told."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ..context import RunContext
    from ..storage.s3 import Storage

STORAGE = "VTHINK_STORAGE"
"""Environment variable with the storage section (JSON), by which a training worker finds its job."""


WORK_DIR = "VTHINK_WORK_DIR"
"""Environment variable with the scratch folder of a training node, where it is another than the launcher's."""


ROLLOUT_URL = "VTHINK_ROLLOUT_URL"
"""Environment variable with the address of the rollout server that a training job brought along; it replaces
``grpo.vllm.server_url``, which cannot know the job's name."""


def write_job(
    storage: Storage, context: RunContext, stage: str, job: Mapping[str, Any], fingerprint: str, prefix: str
) -> str:
    """Write ``<prefix>job.json``, everything a training worker is told; returns its URI."""
    from ..storage.names import join

    added = {
        "stage": stage, "fingerprint": fingerprint, "prefix": prefix, "run": context.model_dump(mode="json"),
    }  # fmt: skip
    if clash := set(added) & set(job):
        raise ValueError(f"the job must not define {', '.join(sorted(clash))}")
    uri = join(prefix, "job.json")
    storage.write_json(uri, {**job, **added})
    return uri


def read_job(uri: str) -> dict[str, Any]:
    """What a training worker is told (`write_job`); the store is the one named in ``VTHINK_STORAGE``."""
    from ..storage.config import StorageConfig
    from ..storage.s3 import Storage

    text = os.environ.get(STORAGE)
    storage = Storage(StorageConfig.load(text, source=STORAGE) if text else StorageConfig())
    job: dict[str, Any] = storage.read_json(uri)
    if folder := os.environ.get(WORK_DIR):
        job["run"]["work_dir"] = folder
    if (url := os.environ.get(ROLLOUT_URL)) and job.get("config", {}).get("vllm"):
        job["config"]["vllm"]["server_url"] = url
    return job


def training_environment(context: RunContext) -> dict[str, str]:
    """The variables that a training worker needs, here and in a TrainJob, besides credentials."""
    env = {STORAGE: context.storage.to_json(), "PYTHONUNBUFFERED": "1", "TOKENIZERS_PARALLELISM": "false"}
    if context.launch.threads:
        env["OMP_NUM_THREADS"] = str(context.launch.threads)
    return env


def worker_command(module: str, job_uri: str) -> list[str]:
    """What torchrun is told to start, here and in a TrainJob."""
    return ["-m", module, "--job", job_uri]
