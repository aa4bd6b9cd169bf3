"""The SFT stage as its launcher sees it: fingerprint, reuse, training processes, result. No torch here."""

from __future__ import annotations

from ... import __version__
from ..common.context import RunContext
from ..common.launch.local import run_training
from ..common.model.config import ModelConfig
from ..common.storage.manifest import Manifest
from ..common.storage.names import fingerprint, stage_prefix
from ..common.storage.s3 import Storage
from .config import SFTConfig


def run(run: str, config: str, model: str, data: str) -> str:
    """Fine-tune the base model on the prepared data's traces, or reuse the result of having done so.

    Args:
        run: `RunContext` as JSON.
        config: `SFTConfig` as JSON.
        model: `ModelConfig` as JSON.
        data: URI of the prepared data's manifest.

    Returns:
        URI of the manifest; its ``files["model"]`` is the prefix of the trained model.
    """
    context = RunContext.load(run, "run")
    section = SFTConfig.load(config, "sft")
    base = ModelConfig.load(model, "model")
    storage = Storage(context.storage)
    data_fingerprint = Manifest.read(storage, data).fingerprint
    ranks = context.launch.processes * context.launch.nodes  # they multiply the batch
    key = fingerprint("sft", section, base, data_fingerprint, ranks, context.redo.get("sft", 0), __version__)
    prefix = stage_prefix(context, "sft", key)
    finished = Manifest.find(storage, prefix)
    if finished is None:
        job = {
            "config": section.model_dump(mode="json"),
            "model": base.model_dump(mode="json"),
            "data": data,
            "processes": ranks,
        }
        finished = run_training(context, "sft", "vthink.components.sft", job, key, prefix)
    else:
        print(f"sft: reused {prefix}")
    return finished.manifest_uri
