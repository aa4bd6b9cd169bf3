"""Where bytes are kept."""

from typing import Self

from pydantic import Field, model_validator

from ..config import Section


class StorageConfig(Section):
    """The S3-compatible store. Keys come from the environment or the platform's identity, never from here."""

    endpoint_url: str | None = None
    """Endpoint, e.g. ``http://127.0.0.1:9000``; null: the SDK's default (or ``AWS_ENDPOINT_URL_S3``)."""
    bucket: str = "vthink"
    """Bucket for everything a run writes."""
    prefix: str = ""
    """Prefix inside the bucket, without a leading slash; empty, or ends in ``/``."""
    region: str = "us-east-1"
    """Region; most S3-compatible stores ignore it."""
    path_style: bool = True
    """Address buckets by path, not by host name (MinIO, Ceph, rclone)."""
    ca_bundle: str | None = None
    """PEM file with the certificate authority of the endpoint."""
    outage_s: float = Field(default=600.0, ge=0)
    """How long a store that has answered before may be away, busy, or refuse expired keys, before work fails."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.prefix.startswith("/") or (self.prefix and not self.prefix.endswith("/")):
            raise ValueError("prefix must not start with '/' and must end with '/'")
        return self

    @property
    def root_uri(self) -> str:
        """``s3://bucket/prefix``, ending in ``/``."""
        return f"s3://{self.bucket}/{self.prefix}"
