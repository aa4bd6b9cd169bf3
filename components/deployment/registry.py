"""The model registry: which model is a candidate, and which one is in service.

A version's ``source`` is the ``s3://…/`` prefix of its model folder, as KServe needs it (an MLflow model URI would
hide it). The alias ``candidate`` names the version registered last; ``champion`` names what is in service, and moves
only with the record of a smoke test that passed. The version's tags lead back to the data it was made from.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from ..common.errors import UserError
from ..common.storage.names import as_prefix
from ..common.tracking.client import registry_client
from ..common.tracking.config import TrackingConfig
from .smoke_test import SmokeTestResult

CANDIDATE = "candidate"
CHAMPION = "champion"
REPLACED = "vthink.replaced"
"""Tag of a version: the one that was in service before it."""


@dataclass(frozen=True, kw_only=True, slots=True)
class RegisteredVersion:
    """A registered model."""

    name: str
    version: int
    source: str
    """``s3://…/`` prefix of the model folder."""
    aliases: tuple[str, ...]
    tags: dict[str, str]
    run_id: str | None
    """MLflow run that trained it."""


class ModelRegistry:
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
            raise UserError(f"model registry, {doing} '{self.name}': {reason}") from error

    def versions(self) -> list[RegisteredVersion]:
        """All versions, the newest first."""
        versions: list[RegisteredVersion] = []
        with self._errors("listing"):
            token, more = None, True
            while more:
                page = self._client.search_model_versions(f"name='{self.name}'", page_token=token)
                versions += map(self._version, page)
                token, more = page.token, bool(page.token)
        return sorted(versions, key=lambda version: -version.version)

    @staticmethod
    def _version(entry: Any) -> RegisteredVersion:
        return RegisteredVersion(
            name=entry.name,
            version=int(entry.version),
            source=entry.source,
            aliases=tuple(entry.aliases),
            tags=dict(entry.tags),
            run_id=entry.run_id or None,
        )

    def alias(self, alias: str) -> RegisteredVersion | None:
        """The version that an alias names, None when there is none."""
        from mlflow.exceptions import MlflowException

        with self._errors(f"looking up {alias} of"):
            try:
                return self._version(self._client.get_model_version_by_alias(self.name, alias))
            except MlflowException as error:
                if error.error_code in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
                    return None
                raise

    def find(self, name: str) -> RegisteredVersion:
        """The version with this number, or alias.

        Raises:
            UserError: naming the versions there are.
        """
        versions = self.versions()
        named = next((version for version in versions if name == str(version.version)), None)
        if named is None and not name.isdigit():
            named = self.alias(name)
        if named is not None:
            return named
        known = ", ".join(str(version.version) for version in versions) or "none yet; train one with `vthink run`"
        raise UserError(f"no version or alias '{name}' of the model '{self.name}'; versions: {known}")

    def register(self, source: str, run_id: str | None, tags: Mapping[str, str]) -> RegisteredVersion:
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

    def promote(self, version: int, smoke: SmokeTestResult) -> RegisteredVersion:
        """Put a version into service: ``champion`` names it from now on.

        Args:
            smoke: the result of its smoke test; unless it passed nothing moves.

        Raises:
            UserError: the smoke test did not pass, or there is no such version.
        """
        if smoke.passed is not True:
            raise UserError(f"'{self.name}' version {version} has not passed its smoke test; champion stays")
        with self._errors("promoting"):
            self._client.get_model_version(self.name, str(version))
            before = self.alias(CHAMPION)
            if before is not None and before.version != version:  # where `vthink rollback` goes
                self.tag(version, REPLACED, str(before.version))
            self._client.set_registered_model_alias(self.name, CHAMPION, str(version))
            return self._version(self._client.get_model_version(self.name, str(version)))


def champion(tracking: TrackingConfig) -> RegisteredVersion | None:
    """The version in service, None when there is none yet."""
    return ModelRegistry(tracking).alias(CHAMPION)
