"""The stage `register`: a trained and evaluated model becomes the candidate, with tags that lead back to its data."""

from __future__ import annotations

import time

from ..common.context import RunContext
from ..common.errors import UserError
from ..common.launch.process import end_with_owner
from ..common.storage.manifest import Manifest
from ..common.storage.names import as_prefix, fingerprint, stage_prefix
from ..common.storage.s3 import Storage
from ..common.tracking.run import Tracker
from .config import DeploymentConfig
from .registry import CANDIDATE, ModelRegistry


def register_model(run: str, config: str, model: str, evaluation: str, data: str) -> str:
    """Make a trained and evaluated model the candidate; the arguments are those of `component.register`.

    Returns:
        URI of the manifest; ``details`` holds ``name``, ``version``, ``alias`` and ``source``.

    Raises:
        UserError: the model folder is not complete, or the registry refuses.
    """
    end_with_owner()
    started = time.monotonic()
    context = RunContext.load(run, "run")
    section = DeploymentConfig.load(config, "deployment")
    storage = Storage(context.storage)
    trained, evaluated, prepared = (Manifest.read(storage, uri) for uri in (model, evaluation, data))
    source = as_prefix(trained.files["model"])
    if not storage.is_complete(source):
        raise UserError(f"{source} has no complete model (no _COMPLETE.json); run {trained.stage} again")
    name = context.tracking.registered_model
    inputs = {"model": model, "evaluation": evaluation, "data": data}
    key = fingerprint(
        "register",
        name,
        source,
        [trained.fingerprint, evaluated.fingerprint, prepared.fingerprint],
        context.redo.get("register", 0),
    )
    prefix = stage_prefix(context, "register", key)
    tags = {
        "vthink.fingerprint": trained.fingerprint,
        "vthink.stage": trained.stage,
        "vthink.model_uri": model,
        "vthink.evaluation_uri": evaluation,
        "vthink.evaluation_fingerprint": evaluated.fingerprint,
        "vthink.data_uri": data,
        "vthink.data_fingerprint": prepared.fingerprint,
        "vthink.run_id": context.run_id,
        "vthink.parent_run_id": context.parent_run_id or "",
        "vthink.git_commit": trained.git_commit or "",
        "vthink.version": trained.version,
    }
    # What a person compares versions by: the candidate's own measurements, those by problem type left out.
    figures = {name: value for name, value in evaluated.metrics.items() if name.count("/") < 4}
    figures = {k: v for k, v in figures.items() if k.startswith(f"evaluation/{trained.stage}/")}
    tags |= {f"metric.{name}": f"{value:.6g}" for name, value in {**trained.metrics, **figures}.items()}
    # The registry may have been emptied since, so it is asked even when the manifest is there.
    version = ModelRegistry(context.tracking).register(source, trained.mlflow_run_id, tags)
    details = {"name": version.name, "version": version.version, "alias": CANDIDATE, "source": source}
    earlier = Manifest.find(storage, prefix)
    if earlier is not None and earlier.details == details:
        return earlier.manifest_uri
    with Tracker.start(context, "register", key, section.model_dump(mode="json"), inputs) as tracker:
        tracker.set_tags({name: tags[name] for name in ("vthink.data_fingerprint", "vthink.evaluation_uri")})
        tracker.set_tags({"vthink.model_version": str(version.version)})
        manifest = Manifest(
            stage="register",
            fingerprint=key,
            uri=prefix,
            inputs=inputs,
            files={"model": source},
            config=section.model_dump(mode="json"),
            details=details,
            mlflow_run_id=tracker.run_id,
            seconds=time.monotonic() - started,
            git_commit=trained.git_commit,
        )
        return manifest.write(storage)
