"""The `TrainJob` of a stage."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from ..job import ROLLOUT_URL, WORK_DIR, training_environment, worker_command
from .client import TRAIN_JOB, Object

if TYPE_CHECKING:
    from ...config import Stage
    from ...context import RunContext

MANAGER = "vthink.dev/launcher"
"""Who wrote the part of ``runtimePatches`` that is ours; Kueue writes one of its own."""


JOBSET_LABEL = "jobset.sigs.k8s.io/jobset-name"


JOB_LABEL, ATTEMPT_LABEL, STAGE_LABEL = "vthink.dev/job", "vthink.dev/attempt", "vthink.dev/stage"


SHAPE = "vthink.dev/shape"
"""Annotation: fingerprint of what a running job must not differ in."""


RUN = "vthink.dev/run"
"""Annotation with the run's id, which may be longer than a label's value."""


_FORWARDED = ("AWS_ENDPOINT_URL_S3", "AWS_REGION", "AWS_DEFAULT_REGION", "AWS_EC2_METADATA_DISABLED", "NO_PROXY",
              "HTTP_PROXY", "HTTPS_PROXY", "no_proxy", "http_proxy", "https_proxy", "VTHINK_GIT_COMMIT")  # fmt: skip


_FORWARDED_PREFIXES = ("MLFLOW_", "NCCL_", "HF_")


_SECRET = re.compile(r"PASSWORD|TOKEN|SECRET|USERNAME|_KEY$|AUTH")


def job_name(context: RunContext, stage: str, job: Mapping[str, Any]) -> str:
    """Name of a stage's job, the same whenever it is asked for again: run, stage, hash of the settings.

    The number of ranks is not part of it: a run that goes on with other nodes must find the job it replaces. Short
    enough for what JobSet appends to it, also with an attempt.
    """
    from ...storage.names import fingerprint

    job = {key: value for key, value in job.items() if key != "processes"}
    settings = fingerprint("trainjob", context.run_id, stage, job, context.redo.get(stage, 0))
    run = re.sub(r"[^a-z0-9]+", "-", context.run_id.lower()).strip("-")[:20].strip("-")
    run = run if run[:1].isalpha() else f"r-{run}".rstrip("-")
    return f"{run}-{stage}-{settings[:8]}"


def nodes(context: RunContext) -> int:
    """Nodes that a job gets."""
    return context.launch.cluster.nodes or context.launch.nodes


def image(context: RunContext) -> str:
    """Image of the training pods."""
    from ..... import __version__

    known = os.environ.get("VTHINK_IMAGE_TRAIN", f"ghcr.io/vthink/vthink-train-python:{__version__}")
    return context.launch.cluster.image or known


def environment(context: RunContext, environ: Mapping[str, str] = os.environ) -> list[Object]:
    """The training container's variables: where the stores are, and which run it belongs to.

    Keys are never copied into the object, which every reader of the namespace sees: they come from the secret.
    """
    settings = context.launch.cluster
    values = {
        name: value
        for name, value in environ.items()
        if name in _FORWARDED or (name.startswith(_FORWARDED_PREFIXES) and not _SECRET.search(name))
    }
    values |= training_environment(context)
    values[WORK_DIR] = settings.work_dir
    # Which rank of the whole job printed a line; torchrun's own mark counts per node.
    values["TORCHELASTIC_LOG_LINE_PREFIX_TEMPLATE"] = "[rank${rank}]:"
    found: list[Object] = [{"name": name, "value": value} for name, value in sorted(values.items())]
    if settings.s3_secret is not None:
        for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
            reference = {"name": settings.s3_secret, "key": name, "optional": True}
            found.append({"name": name, "valueFrom": {"secretKeyRef": reference}})
    return found


def command(context: RunContext, module: str, job_uri: str) -> list[str]:
    """What a node runs. The nodes, this node's number and the meeting point come from the runtime (``PET_*``).

    It is torchrun itself: ``accelerate launch`` and the ``trl`` command ignore those variables and would silently train
    with one process.
    """
    launch = context.launch
    found = ["torchrun", "--max-restarts=0"]
    # Workers get nearly all of the grace period to write their checkpoint; torchrun's own limit is 30 s.
    found.append(f"--shutdown-timeout={max(10, launch.cluster.grace_period_s - 20)}")
    if nodes(context) * launch.processes > 1:
        found += ["--tee=3", f"--log-dir={launch.cluster.work_dir}/logs"]
    return [*found, *worker_command(module, job_uri)]


def train_job(
    context: RunContext,
    stage: Stage,
    name: str,
    attempt: int,
    run: Sequence[str],
    owner: Mapping[str, Any] | None = None,
    rollout_model: str | None = None,
) -> Object:
    """The `TrainJob`.

    Args:
        context: the run; ``launch`` says how many nodes and processes, and where.
        stage: decides the pool.
        name: see `job_name`.
        attempt: from 1.
        run: the command, see `command`.
        owner: reference to the run's Workflow: when that is deleted, so is the job.
        rollout_model: hub id of the model that a rollout server starts with; it gets the policy's weights later.
    """
    from ...storage.names import fingerprint

    launch, settings = context.launch, context.launch.cluster
    placement = launch.placement(stage)
    resources: Object = {"cpu": settings.cpu, "memory": settings.memory}
    if settings.accelerator is not None:
        resources[settings.accelerator] = launch.processes
    pod: Object = {
        "serviceAccountName": settings.service_account,
        "terminationGracePeriodSeconds": settings.grace_period_s,
    }
    pod |= pod_placement(placement)
    template: Object = {"spec": pod}
    if settings.topology is not None and placement.labels:
        template["metadata"] = {"annotations": {"kueue.x-k8s.io/podset-required-topology": settings.topology}}
    jobs = [{"name": "node", "template": {"spec": {"template": template}}}]
    runtime, env = settings.runtime, environment(context)
    full_name = name if attempt == 1 else f"{name}-a{attempt}"
    if settings.rollout_servers and stage == "grpo":
        # The second replicated job is the runtime's; a patch can place its pods and set variables. Not run here.
        runtime = f"{settings.runtime}-vllm"
        server: Object = pod_placement(placement)
        if rollout_model is not None:
            server["containers"] = [{"name": "vllm", "env": [{"name": "VTHINK_ROLLOUT_MODEL", "value": rollout_model}]}]
        if server:
            jobs.append({"name": "vllm", "template": {"spec": {"template": {"spec": server}}}})
        env.append({"name": ROLLOUT_URL, "value": f"http://{full_name}-vllm-0-0.{full_name}:8000"})
    spec: Object = {
        "runtimeRef": {"apiGroup": TRAIN_JOB.group, "kind": "ClusterTrainingRuntime", "name": runtime},
        "trainer": {
            "image": image(context),
            "numNodes": nodes(context),
            "numProcPerNode": launch.processes,
            "command": list(run),
            "env": env,
            "resourcesPerNode": {"requests": resources, "limits": dict(resources)},
        },
        "runtimePatches": [
            {"manager": MANAGER, "trainingRuntimeSpec": {"template": {"spec": {"replicatedJobs": jobs}}}}
        ],
    }
    shape = [nodes(context), launch.processes, image(context), runtime, list(run), resources, placement.model_dump()]
    metadata: Object = {
        "name": full_name,
        "labels": {
            "app.kubernetes.io/part-of": "vthink",
            JOB_LABEL: name,
            STAGE_LABEL: stage,
            ATTEMPT_LABEL: str(attempt),
            **placement.labels,
        },
        "annotations": {SHAPE: fingerprint("shape", shape), RUN: context.run_id},
    }
    if owner is not None:
        metadata["ownerReferences"] = [dict(owner)]
    return {"apiVersion": TRAIN_JOB.api_version, "kind": TRAIN_JOB.name, "metadata": metadata, "spec": spec}


def pod_placement(placement: Any) -> Object:
    """A `Placement` as fields of a pod's spec."""
    found: Object = {}
    if placement.node_selector:
        found["nodeSelector"] = dict(placement.node_selector)
    if placement.tolerations:
        found["tolerations"] = [entry.model_dump(exclude_none=True) for entry in placement.tolerations]
    return found
