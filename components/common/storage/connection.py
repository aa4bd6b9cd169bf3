"""The connection to an S3 server: waiting for one that is away, and what its errors mean."""

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

PARALLEL_FILES = 4  # files of a folder that are sent or fetched at once
_PARTS_PER_FILE = 4
_PART_BYTES = 32 * 2**20

_BAD_KEYS = frozenset(
    {"InvalidAccessKeyId", "SignatureDoesNotMatch", "InvalidToken", "ExpiredToken", "TokenRefreshRequired"}
)
_UNEXPLAINED = frozenset({"400", "403"})
_BUSY = frozenset({"SlowDown", "Throttling", "ThrottlingException", "RequestTimeout", "RequestTimeTooSkewed"})
_MISSING = frozenset({"404", "NoSuchKey", "NotFound"})

_log = logging.getLogger(__name__)


class Connection:
    """A boto3 client that is made when it is needed, and asked again while the store is out of order."""

    def __init__(self, config: StorageConfig):
        self.config = config
        self._lock = threading.Lock()
        self._connected: Any = None
        self._reached = False  # whether the store has answered anything yet
        self._worked = False  # whether it has taken our keys yet

    @property
    def client(self) -> Any:
        """The boto3 client. Its first use fails within seconds when the endpoint is down or the keys are missing."""
        from botocore.exceptions import ClientError

        with self._lock:
            if self._connected is None:
                session = _session()
                with contextlib.suppress(ClientError):
                    probe = _connect(session, self.config, attempts=2, connect_s=3, read_s=5)
                    probe.head_bucket(Bucket=self.config.bucket)
                self._connected = _connect(session, self.config, attempts=3, connect_s=10, read_s=60)
                self._reached = True
            return self._connected

    def request(
        self, uri: str, action: Callable[[Any], T], missing_ok: bool = False, ok: Collection[str] = ()
    ) -> T | Any:
        """Ask the store for something, again and again while it is out of order, `StorageConfig.outage_s` at most.

        ``action`` gets the boto3 client, perhaps twice, which no request here minds. None is returned for the error
        codes in ``ok``, and with ``missing_ok`` where the object is not there; what else boto3 raises becomes a
        `StorageError` of one line about ``uri``."""
        import boto3.exceptions
        from botocore.exceptions import BotoCoreError, ClientError

        accepted = {*ok, *(_MISSING if missing_ok else ())}

        def call() -> T | None:
            try:
                result = action(self.client)
            except ClientError as error:
                if _code(error) not in accepted:
                    raise
                result = None
            self._worked = True
            return result

        def warn(error: Exception, failures: int, left_s: float) -> None:
            if failures == 1:
                _log.warning("%s; trying for another %.0f s", self._describe(_cause(error), uri), left_s)

        try:
            return retry(call, transient=self._transient, limit_s=self.config.outage_s, on_retry=warn)
        except (ClientError, BotoCoreError, boto3.exceptions.Boto3Error, ValueError, OSError) as error:
            raise StorageError(self._describe(_cause(error), uri)) from error

    def _transient(self, raised: Exception) -> bool:
        """Whether an error may go away by itself. Refused keys are read anew: somebody may renew them."""
        from botocore import exceptions as boto

        error = _cause(raised)
        if isinstance(error, boto.ClientError):
            code, status = _code(error), error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
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
        except (ClientError, BotoCoreError) as error:
            return isinstance(error, ClientError) and _code(error) in _BAD_KEYS
        return False

    def _describe(self, error: BaseException, uri: str) -> str:
        """What went wrong, in one line for a person."""
        from botocore import exceptions as boto

        line = first_line(error)
        store = f"the S3 endpoint {self.config.endpoint_url or os.environ.get('AWS_ENDPOINT_URL_S3') or 'of AWS'}"
        if isinstance(error, boto.ClientError):
            return self._describe_answer(error, uri, store)
        if isinstance(error, boto.NoCredentialsError | boto.PartialCredentialsError | boto.ProfileNotFound):
            hint = "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE, or give the pod an identity"
            return f"no usable S3 credentials ({line}); {hint}"
        if isinstance(error, boto.SSLError):
            return f"TLS with {store} failed ({line}); see storage.ca_bundle"
        if isinstance(error, boto.HTTPClientError | boto.ConnectionError | boto.IncompleteReadError):
            return f"cannot reach {store} ({line}); is it running, and is storage.endpoint_url right?"
        if isinstance(error, OSError):
            full = error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
            return f"{uri}: {line}" + ("; free space on this machine's disk" if full else "")
        return f"{uri}: {store[4:]}: {line}"

    def _describe_answer(self, error: Any, uri: str, store: str) -> str:
        code = _code(error)
        if code in _BAD_KEYS:
            keys = "AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY and AWS_SESSION_TOKEN"
            return f"{store} refused the credentials ({code}); check {keys}, or the profile or identity in use"
        if code == "RequestTimeTooSkewed":
            return f"{store} finds this machine's clock wrong; set the clock"
        if code in {"403", "AccessDenied", "Forbidden"}:
            return f"{store} denied access to {uri}; check the keys and their rights"
        if code == "NoSuchBucket":
            return f"the bucket of {uri} does not exist at {store}"
        if code in _MISSING:
            return f"{uri} does not exist"
        return f"{uri}: {store} answered {code}: {error.response['Error'].get('Message', '')}"


def _code(error: Any) -> str:
    """The code with which S3 answered."""
    return str(error.response.get("Error", {}).get("Code", ""))


def _cause(error: BaseException) -> BaseException:
    """What boto3's and s3transfer's own errors are about."""
    of_boto = type(error).__module__.startswith(("boto3.", "s3transfer."))
    within = getattr(error, "last_exception", None) or (of_boto and (error.__cause__ or error.__context__))
    return _cause(within) if within else error


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


def _connect(session: Any, config: StorageConfig, attempts: int, connect_s: float, read_s: float) -> Any:
    from botocore.config import Config

    settings = Config(
        connect_timeout=connect_s,
        read_timeout=read_s,
        retries={"mode": "standard", "total_max_attempts": attempts},
        max_pool_connections=PARALLEL_FILES * _PARTS_PER_FILE + 4,
        s3={"addressing_style": "path" if config.path_style else "auto"},
        # The newer default adds trailing checksums, which several S3-compatible servers refuse.
        request_checksum_calculation="when_required",
        response_checksum_validation="when_required",
    )
    place = {"endpoint_url": config.endpoint_url, "region_name": config.region, "verify": config.ca_bundle}
    return session.client("s3", config=settings, **place)


def transfer_config() -> Any:
    """How boto3 sends and fetches a file: a large one in parts, several at once."""
    from boto3.s3.transfer import TransferConfig

    size = _PART_BYTES
    return TransferConfig(multipart_threshold=size, multipart_chunksize=size, max_concurrency=_PARTS_PER_FILE)
