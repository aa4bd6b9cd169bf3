"""The model registry: which model is a candidate, and which one is in service; and the stage `register`.

A version's ``source`` is the ``s3://…/`` prefix of its model folder, as KServe needs it (an MLflow model URI would
hide it). The alias ``candidate`` names the version registered last; ``champion`` names what is in service, and moves
only with the record of a smoke test that passed. The version's tags lead back to the data it was made from.
"""

import contextlib
import time
from collections.abc import Iterator, Mapping

from pydantic import BaseModel

from ..common.context import RunContext
from ..common.errors import UserError
from ..common.launch.process import end_with_owner
from ..common.storage.manifest import Manifest
from ..common.storage.names import as_prefix, fingerprint, stage_prefix
from ..common.storage.s3 import Storage
from ..common.tracking.client import registry_client
from ..common.tracking.config import TrackingConfig
from ..common.tracking.run import Tracker
from .config import DeploymentConfig
from .smoke_test import SmokeTestResult

CANDIDATE = "candidate"
CHAMPION = "champion"
DTYPE = "vthink.dtype"  # tag of a version: the type that evaluation computed in
REPLACED = "vthink.replaced"  # tag of a version: the one that was in service before it


class RegisteredVersion(BaseModel, frozen=True, from_attributes=True):
    """A registered model; ``source`` is the ``s3://…/`` prefix of its folder."""

    name: str
    version: int
    source: str
    aliases: tuple[str, ...]
    tags: dict[str, str]

    @property
    def predictor(self) -> str:
        """Name of its predictor on a cluster."""
        return f"v{self.version}"


class ModelRegistry:
    """The versions of one registered model."""

    def __init__(self, tracking: TrackingConfig) -> None:
        self.name = tracking.registered_model
        self._client = registry_client(tracking)

    @contextlib.contextmanager
    def _errors(self, doing: str, *expected: str) -> Iterator[None]:
        """MLflow's errors as a line; those with ``expected`` codes only end the block."""
        from mlflow.exceptions import MlflowException

        try:
            yield
        except MlflowException as error:
            if error.error_code not in expected:
                reason = str(error).strip().splitlines()[0][:300]
                raise UserError(f"model registry, {doing} '{self.name}': {reason}") from error

    def versions(self) -> list[RegisteredVersion]:
        """All versions, the newest first."""
        versions: list[RegisteredVersion] = []
        with self._errors("listing"):
            token: str | None = ""
            while token is not None:
                page = self._client.search_model_versions(f"name='{self.name}'", page_token=token or None)
                versions += map(RegisteredVersion.model_validate, page)
                token = page.token or None
        return sorted(versions, key=lambda version: -version.version)

    def alias(self, alias: str) -> RegisteredVersion | None:
        """The version that an alias names, None when there is none."""
        with self._errors(f"looking up {alias} of", "RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
            return RegisteredVersion.model_validate(self._client.get_model_version_by_alias(self.name, alias))
        return None

    def find(self, name: str) -> RegisteredVersion:
        """The version with this number, or alias. UserError names the versions there are."""
        versions = self.versions()
        named = next((version for version in versions if name == str(version.version)), None)
        named = named or (None if name.isdigit() else self.alias(name))
        if named is not None:
            return named
        known = ", ".join(str(version.version) for version in versions) or "none yet; train one with `vthink run`"
        raise UserError(f"no version or alias '{name}' of the model '{self.name}'; versions: {known}")

    def register(self, source: str, run_id: str | None, tags: Mapping[str, str]) -> RegisteredVersion:
        """Make a model folder the candidate. The same ``source`` is the same version again, its ``tags`` renewed."""
        source = as_prefix(source)
        known = [version for version in self.versions() if version.source == source]
        with self._errors("registering"):
            if known:
                version = known[-1].version
                for key, value in tags.items():
                    if known[-1].tags.get(key) != value:
                        self._client.set_model_version_tag(self.name, str(version), key, value)
            else:
                with self._errors("registering", "RESOURCE_ALREADY_EXISTS"):
                    about = "Video reasoning models trained by vthink"
                    self._client.create_registered_model(self.name, description=about)
                created = self._client.create_model_version(self.name, source, run_id=run_id, tags=dict(tags))
                version = int(created.version)
            self._client.set_registered_model_alias(self.name, CANDIDATE, str(version))
            return RegisteredVersion.model_validate(self._client.get_model_version(self.name, str(version)))

    def tag(self, version: int, key: str, value: str) -> None:
        """Set a tag of a version."""
        with self._errors("tagging"):
            self._client.set_model_version_tag(self.name, str(version), key, value)

    def promote(self, version: int, smoke: SmokeTestResult) -> RegisteredVersion:
        """Put a version into service: ``champion`` names it from now on. UserError: there is no such version, or its
        smoke test did not pass; nothing moves then."""
        if smoke.passed is not True:
            raise UserError(f"'{self.name}' version {version} has not passed its smoke test; champion stays")
        with self._errors("promoting"):
            self._client.get_model_version(self.name, str(version))
            before = self.alias(CHAMPION)
            if before is not None and before.version != version:  # where `vthink rollback` goes
                self.tag(version, REPLACED, str(before.version))
            self._client.set_registered_model_alias(self.name, CHAMPION, str(version))
            return RegisteredVersion.model_validate(self._client.get_model_version(self.name, str(version)))


def champion(tracking: TrackingConfig) -> RegisteredVersion | None:
    """The version in service, None when there is none yet."""
    return ModelRegistry(tracking).alias(CHAMPION)


def register_model(run: str, config: str, model: str, evaluation: str, data: str) -> str:
    """Make a trained and evaluated model the candidate; the arguments are those of `component.register`.

    Returns the URI of the manifest; its ``details`` hold ``name``, ``version``, ``alias`` and ``source``. UserError:
    the model folder is not complete, or the registry refuses."""
    end_with_owner()
    started = time.monotonic()
    context = RunContext.load(run, "run")
    section = DeploymentConfig.load(config, "deployment").model_dump(mode="json")
    storage = Storage(context.storage)
    trained, evaluated, prepared = (Manifest.read(storage, uri) for uri in (model, evaluation, data))
    source = as_prefix(trained.files["model"])
    if not storage.is_complete(source):
        raise UserError(f"{source} has no complete model (no _COMPLETE.json); run {trained.stage} again")
    inputs = {"model": model, "evaluation": evaluation, "data": data}
    before = [trained.fingerprint, evaluated.fingerprint, prepared.fingerprint]
    key = fingerprint("register", context.tracking.registered_model, source, before, context.redo.get("register", 0))
    prefix = stage_prefix(context, "register", key)
    origin = {
        "fingerprint": trained.fingerprint, "stage": trained.stage, "model_uri": model, "version": trained.version,
        "evaluation_uri": evaluation, "evaluation_fingerprint": evaluated.fingerprint,
        "data_uri": data, "data_fingerprint": prepared.fingerprint, "git_commit": trained.git_commit or "",
        "run_id": context.run_id, "parent_run_id": context.parent_run_id or "",
    }  # fmt: skip
    tags = {f"vthink.{name}": value for name, value in origin.items()} | {DTYPE: evaluated.details.get("dtype", "")}
    # What a person compares versions by: the candidate's own measurements, those by problem type left out.
    figures = {k: v for k, v in evaluated.metrics.items() if k.startswith(f"evaluation/{trained.stage}/")}
    figures = {name: value for name, value in figures.items() if name.count("/") < 4}
    tags |= {f"metric.{name}": f"{value:.6g}" for name, value in {**trained.metrics, **figures}.items()}
    # The registry may have been emptied since, so it is asked even when the manifest is there.
    version = ModelRegistry(context.tracking).register(source, trained.mlflow_run_id, tags)
    details = {"name": version.name, "version": version.version, "alias": CANDIDATE, "source": source}
    earlier = Manifest.find(storage, prefix)
    if earlier is not None and earlier.details == details:
        return earlier.manifest_uri
    with Tracker.start(context, "register", key, section, inputs) as tracker:
        tracker.set_tags({name: tags[name] for name in ("vthink.data_fingerprint", "vthink.evaluation_uri")})
        tracker.set_tags({"vthink.model_version": str(version.version)})
        return Manifest(
            stage="register", fingerprint=key, uri=prefix, inputs=inputs, config=section,
            files={"model": source}, details=details, mlflow_run_id=tracker.run_id,
            seconds=time.monotonic() - started, git_commit=trained.git_commit,
        ).write(storage)  # fmt: skip
