"""The model registry: which model is a candidate, and which one is in service.

A version's ``source`` is the ``s3://…/`` prefix of its model folder, as KServe needs it (an MLflow model URI would
hide it). The alias ``candidate`` names the version registered last; ``champion`` names what is in service, and moves
only with the record of a smoke test that passed. The version's tags lead back to the data it was made from.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from ..common.context import RunContext
from ..common.launch.lifetime import end_with_owner
from ..common.storage.manifest import Manifest
from ..common.storage.names import as_prefix, fingerprint, stage_prefix
from ..common.storage.s3 import Storage
from ..common.tracking.client import registry_client
from ..common.tracking.config import TrackingConfig
from ..common.tracking.run import Tracker
from .config import DeploymentConfig

CANDIDATE = "candidate"
CHAMPION = "champion"
REPLACED = "vthink.replaced"
"""Tag of a version: the one that was in service before it."""


class RegistryError(RuntimeError):
    """The registry cannot be reached, or lacks what was asked for, in one line."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelVersion:
    """A registered model."""

    name: str
    version: int
    source: str
    """``s3://…/`` prefix of the model folder."""
    aliases: tuple[str, ...]
    tags: dict[str, str]
    run_id: str | None
    """MLflow run that trained it."""


class Registry:
    """The versions of one registered model."""

    def __init__(self, tracking: TrackingConfig) -> None:
        self.name = tracking.registered_model
        self._client = registry_client(tracking)

    @contextmanager
    def _errors(self, doing: str) -> Iterator[None]:
        from mlflow.exceptions import MlflowException

        try:
            yield
        except MlflowException as error:
            reason = str(error).strip().splitlines()[0][:300]
            raise RegistryError(f"model registry, {doing} '{self.name}': {reason}") from error

    def versions(self) -> list[ModelVersion]:
        """All versions, the newest first."""
        found: list[ModelVersion] = []
        with self._errors("listing"):
            token = None
            while True:
                page = self._client.search_model_versions(f"name='{self.name}'", page_token=token)
                found.extend(self._version(entry) for entry in page)
                token = page.token
                if not token:
                    break
        return sorted(found, key=lambda version: -version.version)

    @staticmethod
    def _version(entry: Any) -> ModelVersion:
        return ModelVersion(
            name=entry.name,
            version=int(entry.version),
            source=entry.source,
            aliases=tuple(entry.aliases),
            tags=dict(entry.tags),
            run_id=entry.run_id or None,
        )

    def alias(self, alias: str) -> ModelVersion | None:
        """The version that an alias names, None when there is none."""
        from mlflow.exceptions import MlflowException

        with self._errors(f"looking up {alias} of"):
            try:
                return self._version(self._client.get_model_version_by_alias(self.name, alias))
            except MlflowException as error:
                if error.error_code in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
                    return None
                raise

    def find(self, name: str) -> ModelVersion:
        """The version with this number, or alias.

        Raises:
            RegistryError: naming the versions there are.
        """
        versions = self.versions()
        found = next((version for version in versions if name == str(version.version)), None)
        if found is None and not name.isdigit():
            found = self.alias(name)
        if found is not None:
            return found
        known = ", ".join(str(version.version) for version in versions) or "none yet; train one with `vthink run`"
        raise RegistryError(f"no version or alias '{name}' of the model '{self.name}'; versions: {known}")

    def register(self, source: str, run_id: str | None, tags: Mapping[str, str]) -> ModelVersion:
        """Register a model folder and make it the candidate; the same source gives the same version again.

        Args:
            source: its ``s3://…/`` prefix.
            run_id: MLflow run that trained it.
            tags: where it comes from; written again when the version exists.
        """
        source = as_prefix(source)
        with self._errors("registering"):
            known = [version for version in self.versions() if version.source == source]
            if known:
                version = known[-1].version
                for key, value in tags.items():
                    if known[-1].tags.get(key) != value:
                        self._client.set_model_version_tag(self.name, str(version), key, value)
            else:
                self._ensure_model()
                created = self._client.create_model_version(self.name, source, run_id=run_id, tags=dict(tags))
                version = int(created.version)
            self._client.set_registered_model_alias(self.name, CANDIDATE, str(version))
            return self._version(self._client.get_model_version(self.name, str(version)))

    def _ensure_model(self) -> None:
        from mlflow.exceptions import MlflowException

        try:
            self._client.create_registered_model(self.name, description="Video reasoning models trained by vthink")
        except MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":
                raise

    def tag(self, version: int, key: str, value: str) -> None:
        """Set a tag of a version."""
        with self._errors("tagging"):
            self._client.set_model_version_tag(self.name, str(version), key, value)

    def promote(self, version: int, smoke: Mapping[str, Any]) -> ModelVersion:
        """Put a version into service: ``champion`` names it from now on.

        Args:
            smoke: the record of its smoke test; without ``"passed": True`` nothing moves.

        Raises:
            RegistryError: the smoke test did not pass, or there is no such version.
        """
        if smoke.get("passed") is not True:
            raise RegistryError(f"'{self.name}' version {version} has not passed its smoke test; champion stays")
        with self._errors("promoting"):
            self._client.get_model_version(self.name, str(version))
            before = self.alias(CHAMPION)
            if before is not None and before.version != version:  # where `vthink rollback` goes
                self.tag(version, REPLACED, str(before.version))
            self._client.set_registered_model_alias(self.name, CHAMPION, str(version))
            return self._version(self._client.get_model_version(self.name, str(version)))


def champion(tracking: TrackingConfig) -> ModelVersion | None:
    """The version in service, None when there is none yet."""
    return Registry(tracking).alias(CHAMPION)


def register(run: str, config: str, model: str, evaluation: str, data: str) -> str:
    """The stage `register`: make a trained and evaluated model the candidate.

    Args:
        run: `RunContext` as JSON.
        config: `DeploymentConfig` as JSON.
        model: manifest URI of the training stage whose model is the candidate (GRPO's, or SFT's without GRPO).
        evaluation: manifest URI of the evaluation.
        data: manifest URI of the prepared data.

    Returns:
        URI of the manifest; ``details`` holds ``name``, ``version``, ``alias`` and ``source``.

    Raises:
        RegistryError: the model folder is not complete, or the registry refuses.
    """
    end_with_owner()
    started = time.monotonic()
    context = RunContext.load(run, "run")
    section = DeploymentConfig.load(config, "deployment")
    storage = Storage(context.storage)
    trained, evaluated, prepared = (Manifest.read(storage, uri) for uri in (model, evaluation, data))
    source = as_prefix(trained.files["model"])
    if not storage.is_complete(source):
        raise RegistryError(f"{source} has no complete model (no _COMPLETE.json); run {trained.stage} again")
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
    version = Registry(context.tracking).register(source, trained.mlflow_run_id, tags)
    details = {"name": version.name, "version": version.version, "alias": CANDIDATE, "source": source}
    found = Manifest.find(storage, prefix)
    if found is not None and found.details == details:
        return found.manifest_uri
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
