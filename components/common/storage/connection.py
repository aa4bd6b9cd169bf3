"""Connections to an S3 server, and what its errors mean."""

from __future__ import annotations

import functools
from typing import Any

from .config import StorageConfig

_PART_BYTES = 32 * 2**20


_PARALLEL_FILES = 4


_PARTS_PER_FILE = 4


_BAD_KEYS = frozenset(
    {"InvalidAccessKeyId", "SignatureDoesNotMatch", "InvalidToken", "ExpiredToken", "TokenRefreshRequired"}
)


_UNEXPLAINED = frozenset({"400", "403"})


_BUSY = frozenset({"SlowDown", "Throttling", "ThrottlingException", "RequestTimeout", "RequestTimeTooSkewed"})


_MISSING = frozenset({"404", "NoSuchKey", "NotFound", "NoSuchBucket"})


def _code(error: Any) -> str:
    return str(error.response.get("Error", {}).get("Code", ""))


def _cause(error: BaseException) -> BaseException:
    """What boto3's and s3transfer's own errors are about."""
    while True:
        within = getattr(error, "last_exception", None) or (
            error.__cause__ or error.__context__
            if type(error).__module__.startswith(("boto3.", "s3transfer."))
            else None
        )
        if within is None:
            return error
        error = within


def _first_line(error: BaseException) -> str:
    lines = str(error).splitlines()
    return lines[0] if lines else type(error).__name__


@functools.cache
def _descriptions() -> Any:
    """What botocore reads from its files about S3: parsing it takes most of the time that a new client needs."""
    import botocore.session

    return botocore.session.Session().get_component("data_loader")


def _session() -> Any:
    """A session of our own: boto3's default one is not safe to build clients from in several threads."""
    import boto3
    import botocore.session

    session = botocore.session.Session()
    session.register_component("data_loader", _descriptions())
    return boto3.session.Session(botocore_session=session)


def _connect(
    session: Any, config: StorageConfig, attempts: int, connect_timeout_s: float, read_timeout_s: float
) -> Any:
    from botocore.config import Config

    return session.client(
        "s3",
        endpoint_url=config.endpoint_url,
        region_name=config.region,
        verify=config.ca_bundle,
        config=Config(
            connect_timeout=connect_timeout_s,
            read_timeout=read_timeout_s,
            retries={"mode": "standard", "total_max_attempts": attempts},
            max_pool_connections=_PARALLEL_FILES * _PARTS_PER_FILE + 4,
            s3={"addressing_style": "path" if config.path_style else "auto"},
            # The newer default adds trailing checksums, which several S3-compatible servers refuse.
            request_checksum_calculation="when_required",
            response_checksum_validation="when_required",
        ),
    )


def _transfer() -> Any:
    from boto3.s3.transfer import TransferConfig

    return TransferConfig(
        multipart_threshold=_PART_BYTES, multipart_chunksize=_PART_BYTES, max_concurrency=_PARTS_PER_FILE
    )
