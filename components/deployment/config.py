"""Settings of registration, serving and the smoke test."""

import ipaddress
from typing import Literal, Self

from pydantic import Field, ValidationInfo, field_validator, model_validator

from ..common.config import Section


class ServerConfig(Section):
    """The server: where it listens and what it takes on."""

    host: str = "127.0.0.1"
    """Address to listen on; the loopback address, unless something in front of the server checks who asks."""
    port: int = Field(default=8080, ge=0, le=65535)
    """TCP port."""
    model_name: str = Field(default="vthink", pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,62}$")
    """The name that requests call the model by."""
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """``auto``: bfloat16 where the accelerator has it, float32 on a CPU; as in the model section."""
    attention: Literal["sdpa", "eager", "flash_attention_2"] = "sdpa"
    """Attention kernels; as in the model section."""
    max_request_bytes: int = Field(default=88 * 2**20, gt=0)
    """Larger request bodies are refused (413). Base64 makes a video a third larger."""
    max_video_bytes: int = Field(default=64 * 2**20, gt=0)
    """Larger videos and images are refused (413), however they come."""
    max_duration_s: float = Field(default=3600.0, gt=0)
    """Longer videos are refused (400)."""
    max_question_chars: int = Field(default=8192, gt=0)
    """Longer questions, options included, are refused (400)."""
    max_new_tokens: int = Field(default=1024, gt=0)
    """Most tokens of an answer; also what a request without ``max_tokens`` gets."""
    max_concurrency: int = Field(default=8, gt=0)
    """Requests that may be read, decoded, waiting or answered at once; one more is refused (429)."""
    decoders: int = Field(default=2, gt=0)
    """Processes that decode media side by side."""
    upload_timeout_s: float = Field(default=60.0, gt=0)
    """A request whose body takes longer to arrive is refused (408)."""
    request_timeout_s: float = Field(default=300.0, gt=0)
    """A request that is not answered after this long is given up (504)."""
    grace_period_s: int = Field(default=30, ge=0)
    """How long running requests may go on after the server was told to stop."""
    allow_http_media: bool = False
    """Fetch ``http(s)://`` media for a request. Private, loopback and link-local addresses stay refused."""
    allowed_media_domains: tuple[str, ...] = ()
    """Hosts that media may come from (``example.org``, or ``.example.org`` for all below it); empty: any public one."""
    media_timeout_s: float = Field(default=30.0, gt=0)
    """Fetching media may take this long in all, redirects included."""
    max_media_redirects: int = Field(default=3, ge=0)
    """Redirects followed when fetching media; each is checked like the first address."""

    @field_validator("host")
    @classmethod
    def _host_is_an_address(cls, value: str) -> str:
        try:
            ipaddress.ip_address(value)
        except ValueError:
            raise ValueError("give an IP address, for example 127.0.0.1 (this machine) or 0.0.0.0 (all)") from None
        return value

    @field_validator("allowed_media_domains")
    @classmethod
    def _domains_are_names(cls, value: tuple[str, ...], info: ValidationInfo) -> tuple[str, ...]:
        if value and not info.data.get("allow_http_media"):
            raise ValueError("allowed_media_domains has no effect without allow_http_media: true")
        for domain in value:
            if not domain.strip(".") or any(c in domain for c in "/:@* ") or domain != domain.lower():
                raise ValueError(f"'{domain}' is not a lower-case host name such as media.example.org")
        return value

    @property
    def loopback(self) -> bool:
        """Whether only this machine can reach the server."""
        return ipaddress.ip_address(self.host).is_loopback


_NAME = r"^[a-z]([-a-z0-9]{0,38}[a-z0-9])?$"


class KServeConfig(Section):
    """The served model on a cluster: KServe's `InferenceService`. Names are those of `k8s/`."""

    name: str = Field(default="vthink", pattern=_NAME)
    """Name of the InferenceService; also the name that requests call the model by."""
    runtime: str = Field(default="vthink-vllm", pattern=_NAME)
    """ServingRuntime: ``vthink-vllm``, or ``vthink-server``, our own server, which also runs on CPUs."""
    model_format: Literal["vLLM", "vthink"] = "vLLM"
    """Format of the runtime: ``vLLM`` gets arguments from the model's training; ``vthink`` reads the model folder."""
    service_account: str = Field(default="vthink-serve", pattern=_NAME)
    """Service account of the pods; its secrets open the object store."""
    api_key_secret: str | None = Field(default="vthink-api-keys", pattern=_NAME)
    """Secret whose key ``VLLM_API_KEY`` callers must present; null: whoever reaches the endpoint may ask."""
    gpus: int = Field(default=1, ge=0)
    """Accelerators (``launch.cluster.accelerator``) of a replica; vLLM splits the model over them."""
    cpu: str = "8"
    """CPUs of a replica, a Kubernetes quantity."""
    memory: str = "64Gi"
    """Memory of a replica, a Kubernetes quantity."""
    max_model_len: int = Field(default=16384, ge=1)
    """Most tokens of a prompt and its answer (vLLM); video tokens count."""
    min_replicas: int = Field(default=1, ge=0)
    """Fewest replicas. 0 needs something that wakes the model by the gateway's metrics (`k8s/team/scale-to-zero`)."""
    max_replicas: int = Field(default=1, ge=1)
    """Most replicas; more than ``min_replicas``: KEDA scales by the requests in work."""
    prometheus: str = "http://prometheus-operated.monitoring.svc:9090"
    """Where KEDA asks for the number of requests."""
    requests_per_replica: int = Field(default=8, ge=1)
    """Requests in work that a replica is meant to have."""
    canary_replicas: int = Field(default=1, ge=1)
    """Replicas of a candidate beside the model in service; fixed, and at most ``min_replicas`` (or 1)."""
    canary_percent: int = Field(default=10, ge=0, le=100)
    """Share of the traffic that a candidate gets after its smoke test, before it takes over; 0: none."""
    canary_s: float = Field(default=60.0, ge=0)
    """How long the candidate must stay ready with that share."""
    max_loss: float = Field(default=0.0, ge=0, le=1)
    """How much smaller the candidate's share of right answers may be than that of the model in service."""
    url: str = "http://{service}.{namespace}.svc.cluster.local"
    """How the deployer reaches a predictor's Service."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.min_replicas > self.max_replicas:
            raise ValueError("min_replicas must not exceed max_replicas")
        if self.canary_replicas > max(1, self.min_replicas):
            raise ValueError("canary_replicas must not exceed min_replicas (KServe refuses it)")
        if "{service}" not in self.url:
            raise ValueError("url must contain {service}: the candidate and the model in service are asked apart")
        return self


class DeploymentConfig(Section):
    """Registration, serving and the smoke test that decides whether a candidate becomes the champion."""

    target: Literal["local", "kserve"] = "local"
    """``local``: tested on a server of this machine; ``kserve``: rolled out on the cluster (default of `submit`)."""
    server: ServerConfig = ServerConfig()
    """The server."""
    kserve: KServeConfig = KServeConfig()
    """The served model on a cluster."""
    smoke_items: int = Field(default=8, ge=1)
    """Held-out items that are asked again through the candidate's endpoint."""
    smoke_kinds: tuple[str, ...] = ()
    """Only items whose ``metadata.kind`` is listed are asked again; empty: any."""
    smoke_min_agreement: float = Field(default=1.0, ge=0.0, le=1.0)
    """Share of them whose answer must be evaluation's; less than 1 where other batch sizes round differently (GPUs)."""
    smoke_question: str | None = None
    """The question whose structured answer is kept with the deployment; null: that of the first replayed item."""
    start_timeout_s: float = Field(default=600.0, gt=0)
    """The server must be ready after this long, download and loading included."""

    @property
    def serves_plain_vllm(self) -> bool:
        """Whether the server is vLLM, which knows nothing of this package's extension of OpenAI's API."""
        return self.target == "kserve" and self.kserve.model_format == "vLLM"
