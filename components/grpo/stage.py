"""The GRPO stage as its launcher sees it: fingerprint, reuse, training processes, result. No torch here."""

from __future__ import annotations

from ... import __version__
from ..common.context import RunContext
from ..common.launch.local import run_training
from ..common.model.config import ModelConfig
from ..common.storage.manifest import Manifest
from ..common.storage.names import fingerprint, stage_prefix
from ..common.storage.s3 import Storage
from .config import GRPOConfig


def run(run: str, config: str, model: str, data: str, policy: str) -> str:
    """Improve a policy by reinforcement learning on the prepared data, or reuse the result of having done so.

    Args:
        run: `RunContext` as JSON.
        config: `GRPOConfig` as JSON.
        model: `ModelConfig` as JSON; the policy to start from when ``policy`` is empty.
        data: URI of the prepared data's manifest.
        policy: URI of the SFT manifest whose model is the start, or ``""`` to start from the base model.

    Returns:
        URI of the manifest; its ``files["model"]`` is the prefix of the trained model.
    """
    context = RunContext.load(run, "run")
    section = GRPOConfig.load(config, "grpo")
    base = ModelConfig.load(model, "model")
    storage = Storage(context.storage)
    inputs = [Manifest.read(storage, uri).fingerprint for uri in (data, policy) if uri]
    ranks = context.launch.processes * context.launch.nodes  # they multiply the batch
    key = fingerprint("grpo", section, base, inputs, ranks, context.redo.get("grpo", 0), __version__)
    prefix = stage_prefix(context, "grpo", key)
    finished = Manifest.find(storage, prefix)
    if finished is None:
        job = {
            "config": section.model_dump(mode="json"),
            "model": base.model_dump(mode="json"),
            "data": data,
            "processes": ranks,
            "policy": policy,
        }
        finished = run_training(context, "grpo", "vthink.components.grpo", job, key, prefix)
    else:
        print(f"grpo: reused {prefix}")
    return finished.manifest_uri
