"""The connection to an S3 server: waiting for one that is away, and what its errors mean."""

from __future__ import annotations

import contextlib
import errno
import functools
import logging
import os
import threading
from collections.abc import Callable, Collection
from typing import Any, TypeVar

from ..errors import first_line
from ..retry import retry
from .config import StorageConfig
from .names import StorageError

T = TypeVar("T")

PARALLEL_FILES = 4
"""Files of a folder that are sent or fetched at once."""
_PARTS_PER_FILE = 4
_PART_BYTES = 32 * 2**20

_BAD_KEYS = frozenset(
    {"InvalidAccessKeyId", "SignatureDoesNotMatch", "InvalidToken", "ExpiredToken", "TokenRefreshRequired"}
)
_UNEXPLAINED = frozenset({"400", "403"})
_BUSY = frozenset({"SlowDown", "Throttling", "ThrottlingException", "RequestTimeout", "RequestTimeTooSkewed"})
_MISSING = frozenset({"404", "NoSuchKey", "NotFound", "NoSuchBucket"})

_log = logging.getLogger(__name__)


class Connection:
    """A boto3 client that is made when it is needed, and asked again while the store is out of order."""

    def __init__(self, config: StorageConfig):
        self.config = config
        self._lock = threading.Lock()
        self._connected: Any = None
        self._reached = False
        """Whether the store has answered anything yet."""
        self._worked = False
        """Whether it has taken our keys yet."""

    @property
    def client(self) -> Any:
        """The boto3 client. Its first use fails within seconds when the endpoint is down or the keys are missing."""
        if self._connected is None:
            with self._lock:
                if self._connected is None:
                    from botocore.exceptions import ClientError

                    session = _session()
                    with contextlib.suppress(ClientError):
                        probe = _connect(session, self.config, attempts=2, connect_timeout_s=3, read_timeout_s=5)
                        probe.head_bucket(Bucket=self.config.bucket)
                    self._connected = _connect(
                        session, self.config, attempts=3, connect_timeout_s=10, read_timeout_s=60
                    )
                    self._reached = True
        return self._connected

    def request(
        self, uri: str, action: Callable[[Any], T], missing_ok: bool = False, ok: Collection[str] = ()
    ) -> T | Any:
        """Ask the store for something, again and again while it is out of order, `StorageConfig.outage_s` at most.

        Args:
            uri: what it is about, for the message.
            action: gets the boto3 client. Whatever it does may happen twice, which no request here minds.
            missing_ok: None is returned when the object is not there.
            ok: error codes for which None is returned as well.

        Raises:
            StorageError: what boto3 raised, in one line.
        """
        import boto3.exceptions
        from botocore.exceptions import BotoCoreError, ClientError

        accepted = {*ok, *(_MISSING - {"NoSuchBucket"} if missing_ok else ())}

        def call() -> T | None:
            try:
                result = action(self.client)
            except ClientError as error:
                if error_code(error) not in accepted:
                    raise
                result = None
            self._worked = True
            return result

        def warn(error: Exception, failures: int, left_s: float) -> None:
            if failures == 1:
                _log.warning("%s; trying for another %.0f s", self.describe(_cause(error), uri), left_s)

        try:
            return retry(
                call,
                transient=lambda error: self._transient(_cause(error)),
                limit_s=self.config.outage_s,
                on_retry=warn,
            )
        except (ClientError, BotoCoreError, boto3.exceptions.Boto3Error, ValueError, OSError) as error:
            raise StorageError(self.describe(_cause(error), uri)) from error

    def _transient(self, error: BaseException) -> bool:
        """Whether an error may go away by itself. Refused keys are read anew: somebody may renew them."""
        from botocore import exceptions as boto

        if isinstance(error, boto.ClientError):
            code, status = error_code(error), error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
            if self._worked and (code in _BAD_KEYS or (code in _UNEXPLAINED and self._keys_are_refused())):
                self._connected = None
                return True
            return self._reached and (status >= 500 or status == 429 or code in _BUSY)
        if isinstance(error, boto.NoCredentialsError | boto.CredentialRetrievalError):
            self._connected = None
            return self._worked
        away = boto.HTTPClientError | boto.ConnectionError | boto.IncompleteReadError | boto.ResponseStreamingError
        return self._reached and isinstance(error, away) and not isinstance(error, boto.SSLError)

    def _keys_are_refused(self) -> bool:
        """Why a HEAD request failed, which has no body to say so."""
        from botocore.exceptions import BotoCoreError, ClientError

        try:
            self.client.list_objects_v2(Bucket=self.config.bucket, MaxKeys=1)
        except ClientError as error:
            return error_code(error) in _BAD_KEYS
        except BotoCoreError:
            return False
        return False

    def describe(self, error: BaseException, uri: str) -> str:
        """What went wrong, in one line for a person."""
        from botocore import exceptions as boto

        endpoint = self.config.endpoint_url or os.environ.get("AWS_ENDPOINT_URL_S3") or "of AWS"
        if isinstance(error, boto.NoCredentialsError | boto.PartialCredentialsError | boto.ProfileNotFound):
            return (
                f"no usable S3 credentials ({first_line(error)}); set AWS_ACCESS_KEY_ID and "
                "AWS_SECRET_ACCESS_KEY, or AWS_PROFILE, or give the pod an identity"
            )
        if isinstance(error, boto.SSLError):
            return f"TLS with the S3 endpoint {endpoint} failed ({first_line(error)}); see storage.ca_bundle"
        if isinstance(error, boto.HTTPClientError | boto.ConnectionError | boto.IncompleteReadError):
            return (
                f"cannot reach the S3 endpoint {endpoint} ({first_line(error)}); is it running, and is "
                "storage.endpoint_url right?"
            )
        if isinstance(error, boto.ClientError):
            code = error_code(error)
            if code in _BAD_KEYS:
                return (
                    f"the S3 endpoint {endpoint} refused the credentials ({code}); check AWS_ACCESS_KEY_ID, "
                    "AWS_SECRET_ACCESS_KEY and AWS_SESSION_TOKEN, or the profile or identity in use"
                )
            if code == "RequestTimeTooSkewed":
                return f"the S3 endpoint {endpoint} finds this machine's clock wrong; set the clock"
            if code in {"403", "AccessDenied", "Forbidden"}:
                return f"the S3 endpoint {endpoint} denied access to {uri}; check the keys and their rights"
            if code == "NoSuchBucket":
                return f"the bucket of {uri} does not exist at the S3 endpoint {endpoint}"
            if code in _MISSING:
                return f"{uri} does not exist"
            message = error.response["Error"].get("Message", "")
            return f"{uri}: the S3 endpoint {endpoint} answered {code}: {message}"
        if isinstance(error, OSError):
            full = error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
            return f"{uri}: {first_line(error)}" + ("; free space on this machine's disk" if full else "")
        return f"{uri}: S3 endpoint {endpoint}: {first_line(error)}"


def error_code(error: Any) -> str:
    """The code with which S3 answered."""
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
            max_pool_connections=PARALLEL_FILES * _PARTS_PER_FILE + 4,
            s3={"addressing_style": "path" if config.path_style else "auto"},
            # The newer default adds trailing checksums, which several S3-compatible servers refuse.
            request_checksum_calculation="when_required",
            response_checksum_validation="when_required",
        ),
    )


def transfer_config() -> Any:
    """How boto3 sends and fetches a file: a large one in parts, several at once."""
    from boto3.s3.transfer import TransferConfig

    return TransferConfig(
        multipart_threshold=_PART_BYTES, multipart_chunksize=_PART_BYTES, max_concurrency=_PARTS_PER_FILE
    )
