"""What a finished stage says about its output."""

from datetime import UTC, datetime
from typing import Annotated, Any, Self

from pydantic import AllowInfNan, Field, field_validator

from .... import __version__
from ..config import ConfigError, Section
from ..provenance import git_commit
from .names import MANIFEST, StorageError, as_prefix, digest, join, split_uri
from .s3 import Storage


class Manifest(Section):
    """What a finished stage says about its output. Written last, it is the stage's completion marker."""

    stage: str
    fingerprint: str  # identity of the stage's configuration and inputs
    uri: str  # prefix of the output, ending in `/`; the manifest itself is `manifest.json` below it
    inputs: dict[str, str] = Field(default_factory=dict)  # URIs of what went in, by name
    counts: dict[str, int] = Field(default_factory=dict)  # whole numbers worth telling, such as rows in and out
    metrics: dict[str, Annotated[float, AllowInfNan(False)]] = Field(default_factory=dict)  # final measurements
    files: dict[str, str] = Field(default_factory=dict)  # URIs of what came out, by name; a folder's ends in `/`
    config: dict[str, Any] = Field(default_factory=dict)  # the stage's section of the configuration
    details: dict[str, Any] = Field(default_factory=dict)  # anything else that later stages or a person need
    mlflow_run_id: str | None = None
    seconds: float = 0.0  # how long the stage took
    created: str = Field(default_factory=lambda: datetime.now(UTC).isoformat(timespec="seconds"))  # in UTC, ISO 8601
    version: str = __version__  # of this package
    git_commit: str | None = Field(default_factory=git_commit)  # of this package's source, when known

    @field_validator("uri")
    @classmethod
    def _prefix(cls, uri: str) -> str:
        split_uri(uri)
        return as_prefix(uri)

    @property
    def manifest_uri(self) -> str:
        """Where the manifest itself is."""
        return join(self.uri, MANIFEST)

    def write(self, storage: Storage) -> str:
        """Write ``<uri>manifest.json``, with a checksum of itself; returns its URI."""
        data = self.model_dump(mode="json")
        storage.write_json(self.manifest_uri, {**data, "sha256": digest(data)})
        return self.manifest_uri

    @classmethod
    def read(cls, storage: Storage, manifest_uri: str) -> Self:
        """Read a manifest; one that is missing, cut off or altered is a `StorageError`."""
        data = storage.read_json(manifest_uri)
        recorded = data.pop("sha256", None) if isinstance(data, dict) else None
        if recorded is None or recorded != digest(data):
            raise StorageError(f"{manifest_uri} is damaged: its checksum does not fit its content")
        try:
            # What is not stored is unknown: the defaults would name this process's own code.
            return cls.load({"git_commit": None, "version": "", **data}, source=manifest_uri)
        except ConfigError as error:
            raise StorageError(str(error)) from error

    @classmethod
    def find(cls, storage: Storage, prefix_uri: str) -> Self | None:
        """The manifest below a prefix, or None when the stage did not finish there. One that was cut off while being
        written counts as not there; a store that cannot be asked is an error."""
        uri = join(as_prefix(prefix_uri), MANIFEST)
        if not storage.exists(uri):
            return None
        try:
            return cls.read(storage, uri)
        except StorageError:
            storage.read_bytes(uri)
            return None
