"""A training stage as its launcher sees it: fingerprint, reuse, training processes, result. No torch here."""

from .... import __version__
from ..config import Section, Stage
from ..context import RunContext
from ..launch.backend import choose_backend
from ..launch.job import TrainingJob
from ..model.config import ModelConfig
from ..storage.manifest import Manifest
from ..storage.names import fingerprint, stage_prefix
from ..storage.s3 import Storage


def train_stage(
    stage: Stage, section: type[Section], worker: str, run: str, config: str, model: str, data: str, policy: str = ""
) -> str:
    """Train in processes of their own, here or on a cluster, or reuse the result of having done so.

    Args:
        section, worker: class of the stage's section, and module of its training process.
        run, config, model: `RunContext`, the stage's section and `ModelConfig` as JSON.
        data: URI of the prepared data's manifest.
        policy: URI of the manifest whose model is the start; empty: the base model is.

    Returns: URI of the manifest; its ``files["model"]`` is the prefix of the trained model."""
    context = RunContext.load(run, "run")
    settings = section.load(config, stage)
    base = ModelConfig.load(model, "model")
    storage = Storage(context.storage)
    inputs = [Manifest.read(storage, uri).fingerprint for uri in (data, policy) if uri]
    processes = context.launch.processes * context.launch.nodes  # they multiply the batch
    key = fingerprint(stage, settings, base, inputs, processes, context.redo.get(stage, 0), __version__)
    prefix = stage_prefix(context, stage, key)
    manifest = Manifest.find(storage, prefix)
    if manifest is not None:
        print(f"{stage}: reused {prefix}")
        return manifest.manifest_uri
    job = TrainingJob(
        stage=stage,
        worker=worker,
        fingerprint=key,
        prefix=prefix,
        run=context,
        config=settings.model_dump(mode="json"),
        model=base.model_dump(mode="json"),
        data=data,
        policy=policy,
        processes=processes,
    )
    return choose_backend(context.launch).train(job, lambda line: print(line, flush=True)).manifest_uri
